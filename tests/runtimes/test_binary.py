from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor
from variants import VARIANTS, info_for, random_pixels

from qsdformer.errors import UserError
from qsdformer.graph.lowering import lower
from qsdformer.graph.trace import trace
from qsdformer.nn.neurons import counts_to_spikes
from qsdformer.nn.quantizers import QuantConv2d, quantized_layers
from qsdformer.nn.taps import spiking_neurons, tap
from qsdformer.runtimes import binary as execution
from qsdformer.runtimes.binary import multi_bit, run_binary
from qsdformer.runtimes.executors import normalised


def inputs(model, count: int = 2, seed: int = 0) -> Tensor:
    pixels = random_pixels(model, count, seed).numpy()
    return normalised(pixels, lower(model, info_for(model)).preprocessing)


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("variant", VARIANTS)
def test_binary_spike_counts_and_logits_equal_multi_bit_ones(lively, variant, seed):
    model = lively(**VARIANTS[variant])
    images = inputs(model, seed=seed)
    logits, counts = multi_bit(model, images)
    binary = run_binary(model, images)
    assert set(binary.counts) == set(spiking_neurons(model)) == set(counts)
    for name, expected in counts.items():
        assert torch.equal(binary.counts[name].reshape(expected.shape), expected), name
    assert torch.equal(binary.logits, logits)


def test_neurons_of_the_tests_fire_at_many_levels(lively):
    for variant in ("published-D4-T1", "fully-D4-T1", "lif-T4"):
        model = lively(**VARIANTS[variant])
        counts = run_binary(model, inputs(model)).counts
        active = [name for name, c in counts.items() if c.max() > 0]
        assert len(active) > 0.8 * len(counts), variant


def test_a_frame_for_every_time_step_gives_multi_bit_counts(lively):
    model = lively(time_steps=4)
    frames = torch.stack([inputs(model, seed=seed) for seed in range(4)])
    logits, counts = multi_bit(model, frames)
    binary = run_binary(model, frames)
    assert all(torch.equal(binary.counts[n].reshape(c.shape), c) for n, c in counts.items())
    assert torch.equal(binary.logits, logits)


def additions_one_by_one(spikes: np.ndarray, layer: QuantConv2d) -> int:
    """Additions of binary spikes (D, B, C, H, W), counted output by output and tap by tap."""
    size, stride, pad = layer.kernel_size[0], layer.stride[0], int(layer.padding[0])
    out_per_group = layer.out_channels // layer.groups
    height, width = spikes.shape[-2:]
    total = 0
    for y in range((height + 2 * pad - size) // stride + 1):
        for x in range((width + 2 * pad - size) // stride + 1):
            for i in range(size):
                for j in range(size):
                    row, column = y * stride + i - pad, x * stride + j - pad
                    if 0 <= row < height and 0 <= column < width:
                        total += int(spikes[..., row, column].sum()) * out_per_group
    return total


@pytest.mark.parametrize("variant", ["published-D4-T1", "fully-D2-T4", "lif-T4"])
def test_additions_equal_those_counted_one_by_one(lively, variant):
    model = lively(**VARIANTS[variant])
    images = inputs(model)
    binary = run_binary(model, images)
    convs = {n: m for n, m in quantized_layers(model).items() if isinstance(m, QuantConv2d)}
    with torch.no_grad(), tap(model, *convs, inputs=True) as real:
        model(images)
    step = 1 / model.config.levels
    assert len(convs.keys() & binary.additions.keys()) > 10
    for name, layer in convs.items():
        if name not in binary.additions:
            continue
        gain = model.config.attention_gain if ".projection." in name else 1.0
        counts = (real[name] / (step * gain)).round()
        spikes = counts_to_spikes(counts, model.config.levels).numpy()
        assert binary.additions[name] == additions_one_by_one(spikes, layer), name


def test_attention_additions_equal_those_counted_one_by_one(lively):
    model = lively(levels=2)
    binary = run_binary(model, inputs(model, count=1))
    name = "stages.3.blocks.0.attention"
    q, k, v = (binary.counts[f"{name}.{x}_neuron"][0].flatten(1) for x in "qkv")  # (C, N)
    heads, d = model.config.heads, q.shape[0] // model.config.heads
    pairs = rows = 0
    for head in range(heads):
        for token in range(q.shape[1]):
            mine = range(head * d, (head + 1) * d)
            pairs += sum(int(k[i, token]) * int(v[j, token]) for i in mine for j in mine)
            rows += sum(int(q[i, token]) * d for i in mine)
    assert pairs > 0
    assert rows > 0
    assert binary.additions[f"{name}.kv"] == pairs
    assert binary.additions[f"{name}.qkv"] == rows


def test_head_adds_every_class_for_every_spike(lively):
    model = lively(time_steps=4)
    binary = run_binary(model, inputs(model))
    assert binary.additions["head"] == int(binary.counts["neuron"].sum()) * 5


def test_multiplications_remain_in_the_stem_alone_when_fully_spiking(lively):
    fully = lively(fully_spiking=True)
    assert set(run_binary(fully, inputs(fully)).macs) == {"stages.0.downsample.conv"}
    published = lively()
    macs = run_binary(published, inputs(published)).macs
    inner = ("depthwise", "pointwise2", "downsample.conv")
    assert all(name.endswith(inner) for name in macs)
    assert "stages.3.blocks.0.attention.q.conv.depthwise" in macs
    assert "stages.1.blocks.0.sepconv.depthwise" not in macs


def test_multiplications_of_the_stem_leave_the_border_out(lively):
    model = lively()  # 3x3 stem with stride 2 on 32 pixels: 16 outputs reach 47 = 16 * 3 - 1 rows
    macs = run_binary(model, inputs(model, count=2)).macs
    assert macs["stages.0.downsample.conv"] == 2 * 47 * 47 * 3 * 2


def test_sums_that_are_off_by_a_unit_in_the_last_place_give_the_same_counts(lively, monkeypatch):
    """Other algorithms of convolution (Winograd, Fourier) leave such errors; cutting off would
    turn 2.9999998 additions into 2."""
    model = lively()
    exact = execution.F.conv2d

    def slightly_off(x, *args, **kwargs):
        y = exact(x, *args, **kwargs)
        return y if x.dtype == torch.float64 else torch.nextafter(y, torch.zeros_like(y))

    monkeypatch.setattr(execution.F, "conv2d", slightly_off)
    trains = [
        s for s in trace(model, (2, 3, 32, 32)).of_kind("conv") if s.inputs[0].kind == "neuron"
    ]
    for step in trains:
        spikes = (torch.rand(3, 2, *step.inputs[0].size) < 0.5).float()
        train = execution.SpikeTrain(make=lambda s=spikes: s, unit=0.25, value=spikes.sum(0) / 4)
        got = execution._Binary({}).do(step, train)
        monkeypatch.setattr(execution.F, "conv2d", exact)
        assert torch.equal(got, execution._Binary({}).do(step, train)), step.name
        monkeypatch.setattr(execution.F, "conv2d", slightly_off)
    assert len(trains) > 10


def test_models_without_spikes_or_codes_are_refused(make_model):
    image = torch.zeros(1, 3, 32, 32)
    with pytest.raises(UserError, match="makes no spikes"):
        run_binary(make_model(neuron="relu").eval(), image)
    with pytest.raises(UserError, match=r"sepconv.pointwise1 \(QuantConv2d\) has fp32 weights"):
        run_binary(make_model(weight_bits=None).eval(), image)
    with pytest.raises(ValueError, match="training mode"):
        run_binary(make_model(), image)
