"""The blocks: what they compute, at the border too, and how they start."""

from __future__ import annotations

import copy

import pytest
import torch
from timm.utils.model import freeze_batch_norm_2d
from torch.nn import functional as F

from qsdformer.models.sdt import SDTConfig
from qsdformer.nn.attention import Attention, SpikeAttention
from qsdformer.nn.blocks import (
    MLP,
    ConvBlock,
    Downsample,
    RepConv,
    SepConv,
    _shifted,
    border_conv,
    drop_path,
    make_norm,
)
from qsdformer.nn.neurons import SpikingNeuron
from qsdformer.nn.pointwise import PointwiseAttention
from qsdformer.nn.quantizers import QuantConv2d
from qsdformer.nn.sps import MembraneStem


def _lively(norm: torch.nn.BatchNorm2d) -> None:
    """Statistics and parameters that no special case could hide behind."""
    with torch.no_grad():
        norm.weight.uniform_(0.5, 2.0)
        norm.bias.normal_()
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.5, 2.0)


def _plain_norm(norm: torch.nn.BatchNorm2d, x: torch.Tensor, training: bool) -> torch.Tensor:
    mean, variance = norm.running_mean.clone(), norm.running_var.clone()
    return F.batch_norm(
        x, mean, variance, norm.weight, norm.bias, training, norm.momentum, norm.eps
    )


def _border(norm: torch.nn.BatchNorm2d) -> torch.Tensor:
    """What the running statistics make of 0, (C,)."""
    zero = torch.zeros(1, norm.num_features, 1, 1)
    return _plain_norm(norm, zero, training=False).flatten()


def _bordered_pair(width: int = 4) -> tuple[torch.nn.BatchNorm2d, QuantConv2d]:
    torch.manual_seed(0)
    norm = torch.nn.BatchNorm2d(width)
    _lively(norm)
    return norm, QuantConv2d(width, width, 3, padding=1, groups=width, bias=False, bits=4)


def _padded(inner: torch.Tensor, border: torch.Tensor) -> torch.Tensor:
    b, c, h, w = inner.shape
    frame = border.view(1, -1, 1, 1).expand(b, c, h + 2, w + 2)
    inside = F.pad(torch.ones(1, 1, h, w), (1, 1, 1, 1)).bool()
    return torch.where(inside, F.pad(inner, (1, 1, 1, 1)), frame)


@pytest.mark.parametrize("training", [True, False])
def test_repconv_equals_a_convolution_of_the_explicitly_padded_map(make_config, training):
    torch.manual_seed(0)
    block = RepConv(make_config(), 6)
    _lively(block.norm1)
    block.train(training)
    x = torch.randn(3, 6, 5, 4)
    y = block.pointwise1(x)
    inner, border = _plain_norm(block.norm1, y, training), _border(block.norm1)
    weight = block.depthwise.effective_weight()
    expected = F.conv2d(_padded(inner, border), weight, groups=6)
    expected = block.norm2(block.pointwise2(expected))
    # Float sums in another order.
    torch.testing.assert_close(block(x), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("momentum", [0.1, 0.0, None])
def test_a_border_convolution_tracks_statistics_like_a_batch_norm(momentum):
    norm, conv = _bordered_pair()
    norm.momentum = momentum
    plain = copy.deepcopy(norm)
    for _ in range(3):
        x = torch.randn(3, 4, 5, 5)
        border_conv(x, norm, conv)
        plain(x)
    for key, value in plain.state_dict().items():
        assert torch.equal(norm.state_dict()[key], value), key


@pytest.mark.parametrize(
    ("norm", "conv"),
    [
        (torch.nn.BatchNorm2d(4), QuantConv2d(4, 4, 3, padding=1, bits=4)),
        (torch.nn.BatchNorm2d(4), QuantConv2d(4, 8, 3, padding=1, groups=4, bits=4)),
        (torch.nn.BatchNorm2d(4, affine=False), QuantConv2d(4, 4, 3, padding=1, groups=4, bits=4)),
        (
            torch.nn.BatchNorm2d(4, track_running_stats=False),
            QuantConv2d(4, 4, 3, padding=1, groups=4, bits=4),
        ),
    ],
)
def test_a_border_convolution_refuses_what_it_would_compute_wrongly(norm, conv):
    with pytest.raises(ValueError, match="border_conv needs a"):
        border_conv(torch.randn(2, 4, 5, 5), norm, conv)


def test_border_gradients_belong_to_the_statistics_of_the_forward_pass():
    # The update of the running mean must not reach the backward pass of the border value.
    norm, _ = _bordered_pair()
    mean = norm.running_mean.clone()
    deviation = (norm.running_var + norm.eps).sqrt()
    _, border = _shifted(norm, torch.randn(3, 4, 5, 5) + 5)
    border.sum().backward()
    torch.testing.assert_close(norm.weight.grad, -mean / deviation)
    torch.testing.assert_close(norm.bias.grad, torch.ones(4))


@pytest.mark.parametrize("training", [True, False])
def test_a_border_convolution_takes_norms_that_only_act_like_a_plain_one(training):
    class Other(torch.nn.BatchNorm2d):
        """Computes the same by its own forward, as SyncBatchNorm does on one device."""

    norm, conv = _bordered_pair()
    other = Other(4)
    other.load_state_dict(norm.state_dict())
    norm.train(training)
    other.train(training)
    x = torch.randn(3, 4, 5, 5)
    expected, got = border_conv(x, norm, conv), border_conv(x, other, conv)
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(other.state_dict(), norm.state_dict())


def test_a_frozen_norm_keeps_its_statistics_in_a_border_convolution():
    norm, conv = _bordered_pair()
    frozen = freeze_batch_norm_2d(torch.nn.Sequential(norm))[0]
    assert not isinstance(frozen, torch.nn.BatchNorm2d)
    x = torch.randn(3, 4, 5, 5)
    before = copy.deepcopy(frozen.state_dict())
    conv.train()
    frozen.train()
    assert torch.equal(border_conv(x, frozen, conv), border_conv(x, norm.eval(), conv))
    torch.testing.assert_close(frozen.state_dict(), before)


def test_drop_path_drops_whole_samples_at_all_time_steps():
    torch.manual_seed(0)
    steps, batch = 4, 50
    x = torch.rand(steps * batch, 2, 3, 3) + 1
    factors = (drop_path(x, 0.3, steps, training=True) / x).unflatten(0, (steps, batch))
    per_sample = factors[0, :, 0, 0, 0]
    torch.testing.assert_close(factors, per_sample.view(1, -1, 1, 1, 1).expand_as(factors))
    dropped = (per_sample == 0).sum().item()
    assert 0 < dropped < batch
    # Survivors make up for the others: 1 / (1 - .3).
    torch.testing.assert_close(
        per_sample[per_sample > 0], torch.full((batch - dropped,), 1 / 0.7), rtol=1e-6, atol=0
    )


def test_drop_path_keeps_the_mean():
    torch.manual_seed(0)
    mean = drop_path(torch.ones(20_000, 1, 1, 1), 0.25, 1, training=True).mean().item()
    # Standard error sqrt(.25 / .75 / 20000) = .004; four of them.
    assert mean == pytest.approx(1.0, abs=0.017)


@pytest.mark.parametrize(("rate", "training"), [(0.0, True), (0.9, False)])
def test_drop_path_is_off_at_rate_zero_and_in_evaluation(rate, training):
    x = torch.randn(4, 2, 3, 3)
    assert drop_path(x, rate, 1, training) is x


@pytest.mark.parametrize("block", [ConvBlock, SepConv, MLP, RepConv])
@pytest.mark.parametrize("fully_spiking", [False, True])
def test_blocks_keep_the_shape(make_config, block, fully_spiking):
    x = torch.randn(2, 6, 5, 7)
    assert block(make_config(fully_spiking=fully_spiking), 6)(x).shape == x.shape


@pytest.mark.parametrize(("size", "expected"), [(8, 4), (7, 4), (1, 1)])
def test_downsampling_rounds_sizes_up(make_config, size, expected):
    block = Downsample(make_config(), 3, 6, stride=2).eval()
    assert block(torch.randn(2, 3, size, size)).shape == (2, 6, expected, expected)


def test_the_stem_sees_the_image_and_has_bits_of_its_own(make_config):
    config = make_config(weight_bits=2, stem_bits=8, stem_kernel=5)
    stem = Downsample(config, 3, 4, stride=2, stem=True)
    later = Downsample(config, 3, 4, stride=2)
    assert isinstance(stem.neuron, torch.nn.Identity)
    assert isinstance(later.neuron, SpikingNeuron)
    assert (stem.conv.bits, stem.conv.kernel_size) == (8, (5, 5))
    assert (later.conv.bits, later.conv.kernel_size) == (2, (3, 3))


@pytest.mark.parametrize("fully_spiking", [False, True])
def test_only_the_fully_spiking_variant_has_spikes_before_every_convolution(
    make_config, fully_spiking
):
    torch.manual_seed(0)
    config = make_config(fully_spiking=fully_spiking)
    spiking_inputs = {}

    def watch(name: str, layer: torch.nn.Module) -> None:
        def record(_: torch.nn.Module, args: tuple[torch.Tensor, ...]) -> None:
            spiking_inputs[name] = torch.equal((args[0] * 4).round(), args[0] * 4)

        layer.register_forward_pre_hook(record)

    sepconv, repconv = SepConv(config, 6), RepConv(config, 6)
    for name in ("pointwise1", "depthwise", "pointwise2"):
        watch(f"sepconv.{name}", getattr(sepconv, name))
        watch(f"repconv.{name}", getattr(repconv, name))
    sepconv(torch.randn(2, 6, 5, 5))
    repconv(torch.randint(0, 5, (2, 6, 5, 5)) / 4)
    real = {name for name, spiking in spiking_inputs.items() if not spiking}
    published = {"sepconv.pointwise2", "repconv.depthwise", "repconv.pointwise2"}
    assert real == (set() if fully_spiking else published)


@pytest.mark.parametrize(
    ("rectify", "centred"), [("none", set()), ("qkv", {"qkv"}), ("all", {"qkv", "neuron"})]
)
def test_rectified_norms_start_centred_in_the_firing_window(make_config, rectify, centred):
    for role in ("plain", "neuron", "qkv"):
        norm = make_norm(make_config(rectify=rectify), 4, role)
        bias, weight = (0.5, 0.3) if role in centred else (0.0, 1.0)
        assert torch.equal(norm.bias, torch.full((4,), bias)), role
        assert torch.equal(norm.weight, torch.full((4,), weight)), role


def test_residual_branches_start_at_the_configured_gain(make_config):
    config = make_config(residual_gain=0.25)
    block = ConvBlock(config, 6)
    for norm in (block.norm2, block.sepconv.norm2, MLP(config, 6).norm2):
        assert torch.equal(norm.weight, torch.full((6,), 0.25))
    small = SDTConfig(width=16, depth=1, heads=2, residual_gain=0.25)
    core = SpikeAttention(2, 1.0)
    norms = [
        Attention(config, 8).projection.norm,
        PointwiseAttention(small, 16, 2, core).projection.norm,
        MembraneStem(small, small.stem_channels, "0111").position.norm,
    ]
    assert all(torch.equal(norm.weight, torch.full_like(norm.weight, 0.25)) for norm in norms)


def test_the_ann_is_never_rectified(make_config):
    norm = make_norm(make_config(neuron="relu", rectify="all"), 4, "qkv")
    assert torch.equal(norm.bias, torch.zeros(4))
