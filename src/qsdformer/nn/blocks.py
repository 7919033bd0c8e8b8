"""The blocks of Meta-SpikeFormer (Yao et al., ICLR 2024) with quantised convolutions.

Every residual is a membrane shortcut: it adds real-valued membrane potentials before the next
neuron. Tensors are (T*B, C, H, W). The same blocks with ReLU or GELU make the counterpart ANN.

With `config.fully_spiking` a neuron stands before every convolution, also inside SepConv and
RepConv, where the publication runs two convolutions in a row on real values.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from qsdformer.nn.config import ModelConfig, NetworkConfig, PyramidConfig
from qsdformer.nn.neurons import firing_window, make_neuron
from qsdformer.nn.quantizers import QuantConv2d

NormRole = Literal["plain", "branch_end", "neuron", "qkv"]

SEPCONV_EXPANSION = 2
CONV_EXPANSION = 4
MLP_EXPANSION = 4


def make_norm(config: NetworkConfig, channels: int, role: NormRole = "plain") -> nn.BatchNorm2d:
    """A batch norm, started according to what it does.

    "branch_end" closes a residual branch and starts at `residual_gain`; "neuron" feeds a neuron
    and "qkv" a neuron of the attention. Rectified norms start centred in the firing window.
    """
    norm = nn.BatchNorm2d(channels)
    rectified = {"none": (), "qkv": ("qkv",), "all": ("qkv", "neuron")}[config.rectify]
    if role == "branch_end":
        nn.init.constant_(norm.weight, config.residual_gain)
    elif config.is_spiking and role in rectified:
        mean, deviation = firing_window(config)
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


class BorderNorm(nn.BatchNorm2d):
    """A batch norm whose output is meant to be padded with the value it gives to 0.

    Returns (output minus that value, that value): after this shift the border is zero, so that
    the next convolution pads with zeros and adds the constant's share as a bias.
    """

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        """(T*B, C, H, W) to the shifted output of the same shape and the border value (C,)."""
        assert self.running_mean is not None
        assert self.running_var is not None
        if not self.training:
            scale = self.weight * torch.rsqrt(self.running_var + self.eps)
            border = self.bias - self.running_mean * scale
            return x * scale.view(1, -1, 1, 1), border
        normed_mean = self.running_mean * torch.rsqrt(self.running_var + self.eps)
        if torch.compiler.is_compiling():
            normed_mean = _kept(normed_mean)
        border = self.bias - self.weight * normed_mean
        assert self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        shifted = F.batch_norm(
            x,
            self.running_mean,
            self.running_var,
            self.weight,
            self.bias - border,
            training=True,
            momentum=self.momentum or 0.0,
            eps=self.eps,
        )
        return shifted, border


def border_share(border: Tensor, conv: QuantConv2d) -> Tensor:
    """What padding with `border` (C,) adds to the output of a depthwise `conv`, (1, C, 1, 1).

    Added after a convolution of `BorderNorm`'s shifted output, it stands for the padding itself,
    without a padded copy.
    """
    share = border * conv.effective_weight().sum(dim=(1, 2, 3))
    return share.view(1, -1, 1, 1)


class RepConv(nn.Module):
    """1x1, norm with padded border, depthwise 3x3, 1x1, norm: the projections of attention."""

    def __init__(self, config: ModelConfig, width: int) -> None:
        super().__init__()
        bits = config.weight_bits
        self.fully_spiking = config.fully_spiking
        self.pointwise1 = QuantConv2d(width, width, 1, bias=False, bits=bits)
        self.norm1 = (
            _between_convolutions(config, width) if config.fully_spiking else (BorderNorm(width))
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
            x, border = self.norm1(x)
            x = self.depthwise(x) + border_share(border, self.depthwise)
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
