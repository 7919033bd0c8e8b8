"""Quantised spike-driven self-attention (Q-SDSA), and softmax attention for the counterpart ANN.

Legend: B batch (T folded in), C channels, H x W grid, N = H*W tokens, h heads, d = C/h.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from qsdformer.nn.blocks import MLP, RepConv, drop_path, make_norm
from qsdformer.nn.config import ModelConfig
from qsdformer.nn.neurons import make_neuron


def spike_attention(q_BhNd: Tensor, k_BhNd: Tensor, v_BhNd: Tensor, scale: float) -> Tensor:
    """scale * q (k^T v), linear in N and without softmax; (B, h, N, d).

    With spike values k/D, D a power of two, the products are exact below 2^24: sums of
    at most N * d products of counts, integers / D^3.
    """
    return (q_BhNd @ (k_BhNd.transpose(-2, -1) @ v_BhNd)) * scale


def softmax_attention(q_BhNd: Tensor, k_BhNd: Tensor, v_BhNd: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(d)) v; (B, h, N, d)."""
    if q_BhNd.is_cuda:  # fused kernels, which keep no N x N, want d to be dense in memory
        q_BhNd, k_BhNd, v_BhNd = (x.contiguous() for x in (q_BhNd, k_BhNd, v_BhNd))
    return F.scaled_dot_product_attention(q_BhNd, k_BhNd, v_BhNd)


def to_heads(x_BCHW: Tensor, heads: int) -> Tensor:
    """(B, C, H, W) to (B, h, N, d), tokens in row-major order."""
    return x_BCHW.flatten(2).unflatten(1, (heads, -1)).transpose(-2, -1)


def from_heads(x_BhNd: Tensor, height: int, width: int) -> Tensor:
    """(B, h, N, d) back to (B, C, H, W)."""
    return x_BhNd.transpose(-2, -1).flatten(1, 2).unflatten(-1, (height, width))


class SpikeAttention(nn.Module):
    """Attention of spikes without softmax: scale * q (k^T v) per head; None scales by 1/N.

    v may have more channels than q and k, and then so has the result.
    """

    def __init__(self, heads: int, scale: float | None = None) -> None:
        super().__init__()
        self.heads = heads
        self.scale = scale

    def factor(self, tokens: int) -> float:
        """The scale for a grid of `tokens`."""
        return self.scale if self.scale is not None else 1.0 / tokens

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """q, k (B, C, H, W) and v (B, C_v, H, W) to (B, C_v, H, W)."""
        if q.dim() != 4:
            raise ValueError(
                f"attention of a shape {tuple(q.shape)}: it takes maps (B, C, H, W); tokens "
                "(B, N, C) become one with x.transpose(1, 2).unflatten(2, (height, width))"
            )
        height, width = q.shape[-2:]
        q, k, v = (to_heads(x, self.heads) for x in (q, k, v))
        return from_heads(spike_attention(q, k, v, self.factor(height * width)), height, width)

    def extra_repr(self) -> str:
        """Settings shown by print(model)."""
        return f"heads={self.heads}, scale={self.scale}"


class SoftmaxAttention(nn.Module):
    """softmax(q k^T / sqrt(d)) v per head, for the counterpart ANN."""

    def __init__(self, heads: int) -> None:
        super().__init__()
        self.heads = heads

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """(B, C, H, W) each, to the same shape."""
        height, width = q.shape[-2:]
        heads = (to_heads(x, self.heads) for x in (q, k, v))
        return from_heads(softmax_attention(*heads), height, width)


class Projection(nn.Module):
    """RepConv and one more batch norm; makes q, k, v and the output of attention."""

    def __init__(self, config: ModelConfig, width: int, *, output: bool = False) -> None:
        super().__init__()
        self.conv = RepConv(config, width)
        self.norm = make_norm(config, width, "branch_end" if output else "qkv")

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to the same shape."""
        return self.norm(self.conv(x))


class Attention(nn.Module):
    """Self-attention over the token grid, a residual branch.

    Spiking: q, k, v are spike counts / D and the attention result passes a neuron. ANN: q, k, v
    are real values under softmax. `q_neuron`, `k_neuron`, `v_neuron` and `attention_neuron` exist
    in both, so that taps read student and teacher by the same names.
    """

    q: nn.Module
    k: nn.Module
    v: nn.Module
    q_neuron: nn.Module
    k_neuron: nn.Module
    v_neuron: nn.Module

    def __init__(self, config: ModelConfig, width: int) -> None:
        super().__init__()
        spiking = config.is_spiking
        self.heads = config.heads
        self.neuron = make_neuron(config)
        for name in ("q", "k", "v"):
            self.add_module(name, Projection(config, width))
            self.add_module(f"{name}_neuron", make_neuron(config) if spiking else nn.Identity())
        self.product = (
            SpikeAttention(config.heads, config.attention_scale)
            if spiking
            else SoftmaxAttention(config.heads)
        )
        normed = spiking and config.attention_norm
        self.attention_norm = make_norm(config, width, "qkv") if normed else nn.Identity()
        self.attention_neuron = (
            make_neuron(config, config.attention_gain) if spiking else nn.Identity()
        )
        self.projection = Projection(config, width, output=True)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to the same shape."""
        x = self.neuron(x)
        q = self.q_neuron(self.q(x))
        k = self.k_neuron(self.k(x))
        v = self.v_neuron(self.v(x))
        attended = self.attention_norm(self.product(q, k, v))
        return self.projection(self.attention_neuron(attended))


class LayerScale(nn.Module):
    """A learned factor per channel."""

    def __init__(self, width: int, initial: float) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.full((width,), float(initial)))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to the same shape."""
        return x * self.scale.view(1, -1, 1, 1)


class TransformerBlock(nn.Module):
    """x += scale1 * attention(x); x += scale2 * mlp(x)."""

    def __init__(self, config: ModelConfig, width: int, drop_path_rate: float = 0.0) -> None:
        super().__init__()
        self.time_steps = config.time_steps
        self.drop_path_rate = drop_path_rate
        self.attention = Attention(config, width)
        self.mlp = MLP(config, width)
        initial = config.layer_scale
        self.scale1 = nn.Identity() if initial is None else LayerScale(width, initial)
        self.scale2 = nn.Identity() if initial is None else LayerScale(width, initial)

    def forward(self, x: Tensor) -> Tensor:
        """(T*B, C, H, W) to the same shape."""
        x = x + self._drop(self.scale1(self.attention(x)))
        return x + self._drop(self.scale2(self.mlp(x)))

    def _drop(self, branch: Tensor) -> Tensor:
        return drop_path(branch, self.drop_path_rate, self.time_steps, self.training)
