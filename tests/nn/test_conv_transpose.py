"""The quantised transposed convolution: per-channel codes, integers, binary spikes, the ledger."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from qsdformer.analysis.operations import operations
from qsdformer.data.base import DataInfo
from qsdformer.graph.lowering import lower
from qsdformer.nn import IELIF, QuantConv2d, QuantConvTranspose2d, QuantLinear
from qsdformer.nn.quantizers import (
    initial_step_size,
    lsq_quantize,
    quantized_layers,
    quantized_together,
)
from qsdformer.runtimes.binary import multi_bit, run_binary

INFO = DataInfo(image_size=8, channels=3, class_names=tuple("ab"), mean=(0.5,) * 3, std=(0.25,) * 3)


class Upscaling(nn.Module):
    """A stem, two transposed convolutions that see spikes, with and without bias, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = QuantConv2d(3, 6, 3, padding=1, bits=8), nn.BatchNorm2d(6)
        self.neuron1, self.neuron2, self.neuron3 = IELIF(4), IELIF(4), IELIF(4)
        self.up1 = QuantConvTranspose2d(6, 5, 2, 2, bits=4)
        self.up2 = QuantConvTranspose2d(5, 4, 2, 2, bias=False, bits=3)
        self.head = QuantLinear(4, 2, bits=4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.up1(self.neuron1(self.norm(self.stem(x))))
        x = self.neuron3(self.up2(self.neuron2(x)))
        return self.head(x.mean((2, 3)))


def upscaling(seed: int = 0) -> Upscaling:
    torch.manual_seed(seed)
    model = Upscaling()
    with torch.no_grad():
        model(torch.randn(8, 3, 8, 8))
        for layer in (model.up1, model.up2):  # so that the neurons behind them fire
            layer.weight.mul_(6.0)
            layer.reset_step_size()
    return model.eval()


def pixels(seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (2, 3, 8, 8), dtype=torch.uint8, generator=generator)


def normalised(images: Tensor) -> Tensor:
    return (images.float() / 255 - 0.5) / 0.25


def test_each_output_channel_has_a_step_size():
    torch.manual_seed(0)
    layer = QuantConvTranspose2d(3, 5, 2, 2, bits=4)
    by_output = layer.weight.detach().transpose(0, 1)
    assert torch.equal(layer.log_step_size, initial_step_size(by_output, 4).log())
    codes = layer.codes()
    assert codes.shape == layer.weight.shape
    assert codes.is_contiguous()
    scaled = codes * layer.step_size.view(1, -1, 1, 1)
    assert torch.equal(layer.effective_weight(), scaled)


@pytest.mark.parametrize("training", [True, False])
def test_it_computes_with_the_quantised_weight(training: bool):
    torch.manual_seed(0)
    layer = QuantConvTranspose2d(3, 5, 2, 2, bits=4).train(training)
    weight = lsq_quantize(layer.weight.transpose(0, 1), layer.step_size, 4).transpose(0, 1)
    x = torch.randn(2, 3, 4, 4)
    expected = F.conv_transpose2d(x, weight, layer.bias, stride=2)
    assert torch.allclose(layer(x), expected, atol=1e-6)


def test_quantising_together_gives_the_same_values_and_gradients():
    model, x = upscaling().train(), torch.randn(2, 3, 8, 8)
    found = []
    for together in (False, True):
        model.zero_grad()
        if together:
            with quantized_together(list(quantized_layers(model).values())):
                y = model(x)
        else:
            y = model(x)
        y.square().sum().backward()
        found.append([y.detach(), *(p.grad.clone() for p in model.parameters())])
    assert len(quantized_layers(model)) == 4
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_its_codes_follow_its_weight_and_a_state_without_step_sizes_loads():
    layer, full = QuantConvTranspose2d(3, 5, 2, 2, bits=4).eval(), nn.ConvTranspose2d(3, 5, 2, 2)
    x = torch.randn(2, 3, 4, 4)
    with torch.no_grad():
        before = layer(x)
        layer.load_state_dict(full.state_dict())
        assert not torch.equal(layer(x), before)
    by_output = full.weight.detach().transpose(0, 1)
    assert torch.equal(layer.log_step_size, initial_step_size(by_output, 4).log())


def test_what_it_cannot_do_is_refused():
    with pytest.raises(ValueError, match="groups=3: a transposed convolution has one group"):
        QuantConvTranspose2d(3, 3, 2, 2, groups=3, bits=4)
    with pytest.raises(ValueError, match="output_size"):
        QuantConvTranspose2d(3, 3, 2, 2, bits=4)(torch.zeros(1, 3, 2, 2), [4, 4])


@pytest.mark.parametrize("seed", range(3))
def test_integers_and_binary_spikes_agree_with_training_time_evaluation(seed: int):
    model, images = upscaling(seed), pixels(seed)
    logits, expected = multi_bit(model, normalised(images))
    assert expected["neuron3"].unique().numel() > 2
    graph = lower(model, INFO)
    assert [type(op).__name__ for op in graph.ops].count("ConvTranspose") == 2
    found, counts = graph.run_with_counts(images.numpy())
    assert all(np.array_equal(counts[name], c.numpy()) for name, c in expected.items())
    assert np.abs(found * graph.logit_scale - logits.numpy()).max() < 1e-4  # logits have 16 bits
    binary = run_binary(model, normalised(images))
    assert all(torch.equal(binary.counts[name], c) for name, c in expected.items())
    assert torch.allclose(binary.logits, logits, atol=1e-6)


@pytest.mark.parametrize("seed", range(2))
def test_the_ledger_counts_the_additions_that_binary_spikes_make(seed: int):
    model, images = upscaling(seed), pixels(seed)
    up = next(op for op in operations(model, (8, 8)) if op.name == "up1")
    assert (up.kind, up.weights, up.fan_in, up.weight_bits) == ("ac", 6 * 5 * 4, 6, 4)
    assert up.dense_macs == up.reached == 6 * 5 * 4 * 64
    assert up.reach is not None
    binary = run_binary(model, normalised(images))
    count = int(binary.counts["neuron1"].sum())
    assert set(up.reach.flatten().tolist()) == {5 * 4}
    assert binary.additions["up1"] == count * 5 * 4
