"""The blocks of Meta-SpikeFormer (Yao et al., ICLR 2024) with quantised convolutions.

Every residual is a membrane shortcut: it adds real-valued membrane potentials before the next
neuron. Tensors are (T*B, C, H, W). The same blocks with ReLU or GELU make the counterpart ANN.

With `config.fully_spiking` a neuron stands before every convolution, also inside SepConv and
RepConv, where the publication runs two convolutions in a row on real values.
"""

from __future__ import annotations

from typing import Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from qsdformer.nn.config import ModelConfig, NetworkConfig, PyramidConfig
from qsdformer.nn.neurons import firing_window, make_neuron
from qsdformer.nn.quantizers import QuantConv2d

NormRole = Literal["plain", "branch_end", "neuron", "qkv"]

SEPCONV_EXPANSION = 2
CONV_EXPANSION = 4
MLP_EXPANSION = 4


def make_norm(
    config: NetworkConfig,
    channels: int,
    role: NormRole = "plain",
    *,
    vectors: bool = False,
    threshold: float | None = None,
) -> nn.BatchNorm1d | nn.BatchNorm2d:
    """A batch norm of maps, or of vectors (N, C), started according to what it does.

    "branch_end" closes a residual branch and starts at `residual_gain`; "neuron" feeds a neuron
    and "qkv" a neuron of the attention. Rectified norms start centred in the firing window, for a
    LIF neuron with a `threshold` of its own in that one's.
    """
    norm = nn.BatchNorm1d(channels) if vectors else nn.BatchNorm2d(channels)
    rectified = {"none": (), "qkv": ("qkv",), "all": ("qkv", "neuron")}[config.rectify]
    if role == "branch_end":
        nn.init.constant_(norm.weight, config.residual_gain)
    elif config.is_spiking and role in rectified:
        mean, deviation = firing_window(config, threshold)
        nn.init.constant_(norm.bias, mean)
        nn.init.constant_(norm.weight, deviation)
    return norm


def drop_path(x: Tensor, rate: float, time_steps: int, training: bool) -> Tensor:
    """Stochastic depth: zero a residual branch per sample, the same at all time steps.

    `x` is (T*B, C, H, W); survivors are scaled by 1/(1 - rate).
    """
    if rate == 0.0 or not training:
        return x
    keep = torch.empty(x.shape[0] // time_steps, 1, 1, 1, device=x.device, dtype=x.dtype)
    keep = keep.bernoulli_(1 - rate).div_(1 - rate)
    return x * keep.repeat(time_steps, 1, 1, 1)


class Downsample(nn.Module):
    """Neuron (not in the stem), strided convolution with bias, batch norm."""

    def __init__(
        self,
        config: PyramidConfig,
        width_in: int,
        width_out: int,
        *,
        stride: int,
        stem: bool = False,
    ) -> None:
        super().__init__()
        kernel = config.stem_kernel if stem else 3
        self.neuron = nn.Identity() if stem else make_neuron(config)
        self.conv = QuantConv2d(
            width_in,
            width_out,
            kernel,
            stride=stride,
            padding=kernel // 2,
            bits=config.stem_bits if stem else config.weight_bits,
        )
        self.norm = make_norm(config, width_out)

    def forward(self, x: Tensor) -> Tensor:
        """(T*B, C_in, H, W) to (T*B, C_out, H/stride, W/stride), sizes rounded up."""
        return self.norm(self.conv(self.neuron(x)))


class SepConv(nn.Module):
    """Neuron, 1x1, norm, neuron, depthwise (7x7 unless told), 1x1, norm: a residual branch."""

    def __init__(self, config: PyramidConfig, width: int, kernel: int = 7) -> None:
        super().__init__()
        inner, bits = width * SEPCONV_EXPANSION, config.weight_bits
        self.neuron1 = make_neuron(config)
        self.pointwise1 = QuantConv2d(width, inner, 1, bias=False, bits=bits)
        self.norm1 = make_norm(config, inner, "neuron")
        self.neuron2 = make_neuron(config)
        self.depthwise = QuantConv2d(
            inner, inner, kernel, padding=kernel // 2, groups=inner, bias=False, bits=bits
        )
        self.between = _between_convolutions(config, inner)
        self.pointwise2 = QuantConv2d(inner, width, 1, bias=False, bits=bits)
        self.norm2 = make_norm(config, width, "branch_end")

    def forward(self, x: Tensor) -> Tensor:
        """(T*B, C, H, W) to the same shape."""
        x = self.norm1(self.pointwise1(self.neuron1(x)))
        x = self.between(self.depthwise(self.neuron2(x)))
        return self.norm2(self.pointwise2(x))


def _between_convolutions(config: PyramidConfig, width: int) -> nn.Module:
    """Norm and neuron in the fully spike-driven variant, nothing as published."""
    if not config.fully_spiking:
        return nn.Identity()
    return nn.Sequential(make_norm(config, width, "neuron"), make_neuron(config))


@torch.library.custom_op("qsdformer::kept", mutates_args=())
def _kept(x: Tensor) -> Tensor:
    """A copy that compiled code must keep for the backward pass.

    Compilers compute cheap values again in the backward pass, and there the running statistics
    have been updated already. What an operation of one's own returns, they keep.
    """
    return x.clone()


@_kept.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)


def border_conv(x: Tensor, norm: nn.Module, conv: QuantConv2d) -> Tensor:
    """A depthwise `conv` of `norm`'s output, padded with the value that `norm` gives to 0.

    (T*B, C, H, W) to (T*B, C, H', W'). `norm` is a batch norm of any kind: plain, synchronised
    (SyncBatchNorm) or frozen; it has weight, bias and running statistics. The value at 0 is
    subtracted before the convolution, so that its border is zero, and its share is added
    afterwards, without a padded copy. Raises ValueError for other norms and convolutions.
    """
    if not conv.groups == conv.in_channels == conv.out_channels:
        raise ValueError(
            f"groups={conv.groups}: border_conv needs a depthwise convolution, as many groups and "
            f"output channels as the {conv.in_channels} input channels"
        )
    if norm.weight is None or norm.running_mean is None:
        raise ValueError("border_conv needs a norm with weight, bias and running statistics")
    shifted, border = _shifted(norm, x)
    # What padding with `border` (C,) adds to the output.
    share = border * conv.effective_weight().sum(dim=(1, 2, 3))
    return conv(shifted) + share.view(1, -1, 1, 1)


def _shifted(norm: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """The output of `norm` minus the value it gives to 0, and that value (C,).

    The value is that of the running statistics, in training those before this forward pass.
    """
    weight, bias = cast(Tensor, norm.weight), cast(Tensor, norm.bias)
    mean, variance = cast(Tensor, norm.running_mean), cast(Tensor, norm.running_var)
    eps = cast(float, norm.eps)
    # Frozen norms are no batch norms to PyTorch, and use their statistics in training too.
    if not (norm.training and isinstance(norm, _BatchNorm)):
        scale = weight * torch.rsqrt(variance + eps)
        border = bias - mean * scale
        return x * scale.view(1, -1, 1, 1), border
    normed_mean = mean * torch.rsqrt(variance + eps)
    if torch.compiler.is_compiling():
        normed_mean = _kept(normed_mean)
    border = bias - weight * normed_mean
    # Without a momentum statistics are means over all passes, as in torch's `update_bn`.
    if type(norm) is not nn.BatchNorm2d or norm.momentum is None:
        return norm(x) - border.view(1, -1, 1, 1), border
    assert norm.num_batches_tracked is not None
    norm.num_batches_tracked.add_(1)
    shifted = F.batch_norm(
        x,
        mean,
        variance,
        weight,
        bias - border,
        training=True,
        momentum=norm.momentum,
        eps=eps,
    )
    return shifted, border


class RepConv(nn.Module):
    """1x1, norm with padded border, depthwise 3x3, 1x1, norm: the projections of attention."""

    def __init__(self, config: ModelConfig, width: int) -> None:
        super().__init__()
        bits = config.weight_bits
        self.fully_spiking = config.fully_spiking
        self.pointwise1 = QuantConv2d(width, width, 1, bias=False, bits=bits)
        self.norm1 = (
            _between_convolutions(config, width) if config.fully_spiking else nn.BatchNorm2d(width)
        )
        self.depthwise = QuantConv2d(
            width, width, 3, padding=1, groups=width, bias=False, bits=bits
        )
        self.between = _between_convolutions(config, width)
        self.pointwise2 = QuantConv2d(width, width, 1, bias=False, bits=bits)
        self.norm2 = make_norm(config, width)

    def forward(self, x: Tensor) -> Tensor:
        """(T*B, C, H, W) to the same shape."""
        x = self.pointwise1(x)
        if self.fully_spiking:
            x = self.depthwise(self.norm1(x))
        else:
            x = border_conv(x, self.norm1, self.depthwise)
        return self.norm2(self.pointwise2(self.between(x)))


class ConvBlock(nn.Module):
    """SepConv, then two 3x3 convolutions, each a residual branch."""

    def __init__(self, config: PyramidConfig, width: int) -> None:
        super().__init__()
        inner, bits = width * CONV_EXPANSION, config.weight_bits
        self.sepconv = SepConv(config, width)
        self.neuron1 = make_neuron(config)
        self.conv1 = QuantConv2d(width, inner, 3, padding=1, bias=False, bits=bits)
        self.norm1 = make_norm(config, inner, "neuron")
        self.neuron2 = make_neuron(config)
        self.conv2 = QuantConv2d(inner, width, 3, padding=1, bias=False, bits=bits)
        self.norm2 = make_norm(config, width, "branch_end")

    def forward(self, x: Tensor) -> Tensor:
        """(T*B, C, H, W) to the same shape."""
        x = x + self.sepconv(x)
        y = self.norm1(self.conv1(self.neuron1(x)))
        return x + self.norm2(self.conv2(self.neuron2(y)))


class MLP(nn.Module):
    """Neuron, 1x1 to 4x the width, norm, neuron, 1x1 back, norm: a residual branch."""

    def __init__(self, config: NetworkConfig, width: int, ratio: int = MLP_EXPANSION) -> None:
        super().__init__()
        inner, bits = width * ratio, config.weight_bits
        self.neuron1 = make_neuron(config)
        self.fc1 = QuantConv2d(width, inner, 1, bits=bits)
        self.norm1 = make_norm(config, inner, "neuron")
        self.neuron2 = make_neuron(config)
        self.fc2 = QuantConv2d(inner, width, 1, bits=bits)
        self.norm2 = make_norm(config, width, "branch_end")

    def forward(self, x: Tensor) -> Tensor:
        """(T*B, C, H, W) to the same shape."""
        x = self.norm1(self.fc1(self.neuron1(x)))
        return self.norm2(self.fc2(self.neuron2(x)))
