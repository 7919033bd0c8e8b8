"""Meta-SpikeFormer as a whole: sizes, shapes, gradients, exactness."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from qsdformer.errors import UserError
from qsdformer.models.configs.metaspikeformer import SIZES
from qsdformer.models.metaspikeformer import MetaSpikeFormer, create_model
from qsdformer.nn.attention import Attention
from qsdformer.nn.blocks import Downsample
from qsdformer.nn.neurons import counts_to_spikes
from qsdformer.nn.quantizers import QuantConv2d, quantized_layers
from qsdformer.nn.taps import spiking_neurons, tap

# DESIGN's table: parameters in millions and multiply-accumulates at 224 pixels in billions.
PUBLISHED_SIZES = {
    "metaspikeformer_8m": (8.4, 3.6),
    "metaspikeformer_15m": (15.2, 6.5),
    "metaspikeformer_31m": (31.4, 14.0),
    "metaspikeformer_55m": (55.4, 24.8),
}


def _macs(model: MetaSpikeFormer, size: int) -> int:
    """Multiply-accumulates of convolutions, linear layers and attention for one image."""
    counts = []

    def of_layer(layer: nn.Module, _: object, y: torch.Tensor) -> None:
        counts.append(y.numel() * layer.weight[0].numel())

    def of_attention(block: nn.Module, _: object, y: torch.Tensor) -> None:
        _, width, height, breadth = y.shape
        # k^T v and q (k^T v): N d^2 each, for every head.
        counts.append(2 * height * breadth * width * (width // block.heads))

    for layer in quantized_layers(model).values():
        layer.register_forward_hook(of_layer)
    for block in model.modules():
        if isinstance(block, Attention):
            block.register_forward_hook(of_attention)
    model(torch.empty(1, 3, size, size, device="meta"))
    return sum(counts)


@pytest.mark.parametrize("name", PUBLISHED_SIZES)
def test_published_sizes_have_the_published_parameters_and_macs(name):
    with torch.device("meta"):
        model = create_model(name).eval()
    parameters = sum(p.numel() for p in model.parameters()) / 1e6
    assert (round(parameters, 1), round(_macs(model, 224) / 1e9, 1)) == PUBLISHED_SIZES[name]


@pytest.mark.parametrize("name", sorted(set(SIZES) - set(PUBLISHED_SIZES)))
def test_the_other_named_sizes_can_be_built(name):
    with torch.device("meta"):
        model = create_model(name)
    assert model.config.dims == SIZES[name]["dims"]
    assert len(model.stages[3].blocks) + len(model.stages[4].blocks) == model.config.depth


def test_an_unknown_size_is_refused_with_the_known_ones():
    with pytest.raises(UserError, match=r"unknown model 'huge': choose from metaspikeformer_tiny"):
        create_model("huge")


def test_fields_replace_those_of_the_named_size():
    model = create_model("metaspikeformer_tiny", depth=2, num_classes=7, in_channels=1)
    assert (model.config.depth, model.config.dims) == (2, (16, 32, 64, 80))
    assert model.eval()(torch.randn(2, 1, 28, 28)).shape == (2, 7)


BITS = [(None, None, None), (2, 8, 4), (4, 8, 8), (8, None, 2)]
SPIKING = [
    {
        "neuron": neuron,
        "fully_spiking": fully_spiking,
        "time_steps": steps,
        "rectify": rectify,
        "weight_bits": bits[0],
        "stem_bits": bits[1],
        "head_bits": bits[2],
        # Every other case, shifted so that all bits meet both.
        "layer_scale": (None, 0.1)[(i + i // len(BITS)) % 2],
    }
    for i, (neuron, fully_spiking, steps, rectify, bits) in enumerate(
        itertools.product(("ielif", "lif"), (False, True), (1, 2), ("none", "qkv", "all"), BITS)
    )
]
OTHERS = [
    *({"neuron": n, "layer_scale": s} for n in ("relu", "gelu") for s in (None, 0.1)),
    {"neuron": "relu", "weight_bits": 4, "stem_bits": 8, "head_bits": 8},
    {"surrogate": "rect"},
    {"attention_norm": False, "attention_scale": 0.25, "attention_gain": 2.0},
    {"levels": 1},
    {"levels": 3, "time_steps": 2},
    {"levels": 8, "stem_stride": 1, "stem_kernel": 7},
    {"drop_path_rate": 0.2},
]


def _id(fields: dict[str, object]) -> str:
    return "-".join(f"{value}" for value in fields.values())


def _before_a_batch_norm(name: str, model: MetaSpikeFormer) -> bool:
    """Biases that the batch norm behind them takes away again: their true gradient is zero."""
    return name.endswith("bias") and isinstance(
        model.get_submodule(name.rpartition(".")[0]), QuantConv2d
    )


@pytest.mark.parametrize("fields", [*SPIKING, *OTHERS], ids=_id)
def test_every_parameter_receives_a_finite_gradient(make_model, fields):
    # LIF neurons of so small a network are silent at threshold 1, and silence passes nothing on.
    model = make_model(dims=(16, 8, 8, 8), threshold=0.2, **fields)
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(8, 3, 33, 33, generator=generator)
    # Layer by layer: quantising together would hand zeros to layers that nothing used.
    logits = model.forward_head(model.forward_features(images))
    F.cross_entropy(logits, torch.arange(8) % 5).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        if not _before_a_batch_norm(name, model):
            assert parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize("bits", BITS, ids=str)
def test_each_layer_has_the_bits_of_its_place(make_model, bits):
    weight_bits, stem_bits, head_bits = bits
    model = make_model(weight_bits=weight_bits, stem_bits=stem_bits, head_bits=head_bits)
    for name, layer in quantized_layers(model).items():
        special = {"stages.0.downsample.conv": stem_bits, "head": head_bits}
        assert layer.bits == special.get(name, weight_bits), name


def test_a_model_forward_equals_its_layers_one_by_one(make_model):
    images = torch.randn(4, 3, 32, 32)
    a, b = make_model(), make_model()
    together, one_by_one = a(images), b.forward_head(b.forward_features(images))
    assert torch.equal(together, one_by_one)
    together.sum().backward()
    one_by_one.sum().backward()
    # A weight that is used twice sums its gradients in another order.
    for (name, p), q in zip(a.named_parameters(), b.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [(28, 28), (29, 29), (31, 40), (32, 32), (47, 33), (65, 65)])
def test_any_image_size_and_channels(make_model, channels, size):
    model = make_model(in_channels=channels).eval()
    features = model.forward_features(torch.randn(2, channels, *size))
    assert features.shape == (2, 8, *(-(-side // 16) for side in size))
    assert model.forward_head(features).shape == (2, 5)


@pytest.mark.parametrize("stem_stride", [1, 2])
def test_the_smallest_image_works_and_a_smaller_one_is_refused(make_model, stem_stride):
    model = make_model(stem_stride=stem_stride).eval()
    smallest = 8 * stem_stride // 2 + 1
    assert model(torch.randn(1, 3, smallest, smallest)).shape == (1, 5)
    with pytest.raises(UserError, match=f"this model needs {smallest} or more"):
        model(torch.randn(1, 3, smallest, smallest - 1))


@pytest.mark.parametrize("neuron", ["ielif", "lif"])
def test_a_repeated_frame_equals_a_still_image(make_model, settle, neuron):
    model = settle(make_model(neuron=neuron, time_steps=3))
    image = torch.randn(2, 3, 32, 32)
    still = model(image)
    assert still.shape == (2, 5)
    frames = image.expand(3, *image.shape)
    torch.testing.assert_close(model(frames), still)


def test_every_frame_counts(make_model, settle):
    model = settle(make_model(time_steps=2))
    frames = torch.randn(2, 4, 3, 32, 32)
    assert not torch.allclose(model(frames), model(frames[:1].expand_as(frames)))
    assert not torch.allclose(model(frames), model(frames[1:].expand_as(frames)))


def test_samples_do_not_mix_over_time(make_model, settle):
    model = settle(make_model(time_steps=2))
    images = torch.randn(3, 3, 32, 32)
    one_by_one = torch.cat([model(image[None]) for image in images])
    torch.testing.assert_close(model(images), one_by_one)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((2, 1, 32, 32), r"takes \(B, 3, H, W\) or \(2, B, 3, H, W\)"),
        ((3, 32, 32), r"images of shape \(3, 32, 32\)"),
        ((2, 32, 32, 3), r"images of shape \(2, 32, 32, 3\)"),
        ((3, 2, 3, 32, 32), "images with 3 frames: this model has 2 time steps"),
        ((2, 3, 32, 4), "32x4 pixels"),
    ],
)
def test_wrong_images_are_one_clear_line(make_model, shape, message):
    with pytest.raises(UserError, match=message) as caught:
        make_model(time_steps=2)(torch.randn(shape))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "fields",
    [
        {"levels": 1},
        {"levels": 3},
        {"levels": 4, "attention_gain": 2.0},
        {"levels": 8, "time_steps": 2},
        {"neuron": "lif", "time_steps": 2},
    ],
    ids=_id,
)
def test_neurons_emit_multiples_of_a_step_and_nothing_else(make_model, settle, fields):
    model = settle(make_model(fully_spiking=True, **fields))
    neurons = spiking_neurons(model)
    with tap(model, *neurons) as acts:
        model(torch.randn(4, 3, 32, 32))
    assert set(acts) == set(neurons)
    fired = 0
    for name, neuron in neurons.items():
        counts = neuron.counts(acts[name])
        assert (counts.min() >= 0) & (counts.max() <= neuron.levels), name
        # The value is 1/D as a float times the count, times the gain where there is one.
        values = counts.float() * (1 / neuron.levels)
        assert torch.equal(acts[name], values if neuron.gain == 1 else values * neuron.gain), name
        fired += int(counts.sum())
    assert fired > 0
    if model.config.levels == 1:
        assert {v for act in acts.values() for v in act.unique().tolist()} == {0.0, 1.0}


@pytest.mark.parametrize("fully_spiking", [False, True])
@pytest.mark.parametrize("levels", [1, 2, 4, 8])
def test_binary_spikes_one_virtual_step_at_a_time_give_the_same_logits(
    make_model, settle, monkeypatch, levels, fully_spiking
):
    model = settle(make_model(levels=levels, fully_spiking=fully_spiking))
    images = torch.randn(4, 3, 32, 32)
    expected = model(images)
    stepwise = []

    def additions(layer: QuantConv2d, x: torch.Tensor) -> torch.Tensor:
        """Additions of integer weights for every binary spike; then scale and bias, once."""
        counts = x * levels
        if not torch.equal(counts, counts.round()):
            return original(layer, x)
        stepwise.append(layer)
        codes = layer.codes().float()
        sums = sum(layer._conv_forward(s, codes, None) for s in counts_to_spikes(counts, levels))
        y = sums / levels * layer.step_size.view(1, -1, 1, 1)
        return y if layer.bias is None else y + layer.bias.view(1, -1, 1, 1)

    original = QuantConv2d.forward
    monkeypatch.setattr(QuantConv2d, "forward", additions)
    assert torch.equal(model(images), expected)
    # Real values go into the stem and, unless fully spiking, into inner convolutions.
    inner = ("sepconv.pointwise2", "conv.depthwise", "conv.pointwise2")
    for name, layer in quantized_layers(model).items():
        if isinstance(layer, QuantConv2d) and layer not in stepwise:
            published = not fully_spiking and name.endswith(inner)
            assert published or name == "stages.0.downsample.conv", name


def test_evaluation_is_deterministic_and_independent_of_the_batch(make_model, settle):
    model = settle(make_model(drop_path_rate=0.5))
    images = torch.randn(4, 3, 32, 32)
    assert torch.equal(model(images), model(images))
    torch.testing.assert_close(model(images[:1]), model(images)[:1])


def test_drop_path_really_drops_in_training(make_model):
    images = torch.randn(8, 3, 32, 32)
    dropping, whole = make_model(drop_path_rate=0.9), make_model()
    rates = [dropping.stages[i].blocks[0].drop_path_rate for i in (3, 4)]
    assert rates == [0.0, 0.9]
    with tap(dropping, "stages.4.downsample", "stages.4.blocks.0") as acts:
        dropping(images)
    unchanged = acts["stages.4.downsample"] == acts["stages.4.blocks.0"]
    # Both branches of a sample are dropped with probability .81.
    assert 1 <= unchanged.flatten(1).all(dim=1).sum() <= 8
    with tap(whole, "stages.4.downsample", "stages.4.blocks.0") as acts:
        whole(images)
    unchanged = acts["stages.4.downsample"] == acts["stages.4.blocks.0"]
    assert not unchanged.flatten(1).all(dim=1).any()


def test_the_ann_is_the_same_class_with_the_same_weights(make_model, make_config):
    student = make_model()
    teacher = MetaSpikeFormer(student.config.ann())
    extra = ("log_step_size", "attention_norm")
    names = {n: p.shape for n, p in student.named_parameters() if not any(e in n for e in extra)}
    assert {n: p.shape for n, p in teacher.named_parameters()} == names
    assert spiking_neurons(teacher) == {}
    assert teacher(torch.randn(2, 3, 32, 32)).shape == (2, 5)


def test_a_student_takes_the_weights_of_a_full_precision_twin(make_model):
    full = make_model(weight_bits=None, stem_bits=None, head_bits=None)
    with torch.no_grad():
        for layer in quantized_layers(full).values():
            layer.weight.mul_(5)
    student = make_model(weight_bits=4)
    student.load_state_dict(full.state_dict())
    for name, layer in quantized_layers(student).items():
        mean = layer.weight.detach().abs().flatten(1).mean(1)
        expected = 2 * mean / (2 ** (layer.bits - 1) - 1) ** 0.5
        torch.testing.assert_close(layer.step_size.detach(), expected, msg=name)


def test_a_model_without_head_gives_features(make_model):
    model = make_model(num_classes=0).eval()
    assert isinstance(model.head, nn.Identity)
    assert model(torch.randn(2, 3, 32, 32)).shape == (2, 8)


def test_a_still_image_passes_the_stem_convolution_once(make_model):
    model = make_model(time_steps=4).eval()
    stem = model.stages[0].downsample
    assert isinstance(stem, Downsample)
    with tap(model, "stages.0.downsample", "stages.0") as acts:
        model(torch.randn(2, 3, 32, 32))
    assert acts["stages.0.downsample"].shape[0] == 2
    assert acts["stages.0"].shape[0] == 8
