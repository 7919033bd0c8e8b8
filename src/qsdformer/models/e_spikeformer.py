"""E-SpikeFormer (Spike-driven Transformer v3), base sizes.

Paper: Scaling Spike-driven Transformer with Efficient Spike Firing Approximation Training (Yao et
al., TPAMI 2025); the published program is BICLab/Spike-Driven-Transformer-V3. The stages of
Meta-SpikeFormer in its fully spike-driven form, with other transformer blocks: a SepConv, attention
whose v is four times as wide as q and k, an MLP. Its neurons count membrane potentials in units of
counts, and round halves to even. The published networks have T = 1, D = 4 and weights in full
precision.
"""

from __future__ import annotations

import math

from torch import Tensor, nn

from qsdformer.models.configs.e_spikeformer import ESpikeFormerConfig
from qsdformer.models.metaspikeformer import PyramidTransformer
from qsdformer.nn.attention import SpikeAttention
from qsdformer.nn.blocks import MLP, SepConv, drop_path, make_norm
from qsdformer.nn.neurons import make_neuron
from qsdformer.nn.pointwise import PointwiseAttention

VALUE_RATIO = 4  # width of v, in widths of q and k


class Block(nn.Module):
    """x += sepconv(x); x += attention(x); x += mlp(x), on membrane potentials."""

    def __init__(self, config: ESpikeFormerConfig, width: int, drop_path_rate: float) -> None:
        super().__init__()
        self.time_steps = config.time_steps
        self.drop_path_rate = drop_path_rate
        self.sepconv = SepConv(config, width, kernel=3)
        inner, norm = width * VALUE_RATIO, config.attention_norm
        scale = config.attention_scale or 2 / math.sqrt(width / config.heads)
        self.attention = PointwiseAttention(
            config,
            width,
            config.heads,
            SpikeAttention(config.heads, scale),
            norm=make_norm(config, inner, "qkv") if norm else None,
            neuron=make_neuron(config),
            value_ratio=VALUE_RATIO,
        )
        self.mlp = MLP(config, width)

    def forward(self, x: Tensor) -> Tensor:
        """(T*B, C, H, W) to the same shape."""
        for branch in (self.sepconv, self.attention, self.mlp):
            x = x + drop_path(branch(x), self.drop_path_rate, self.time_steps, self.training)
        return x


class ESpikeFormer(PyramidTransformer):
    """Meta-SpikeFormer's stages with other blocks; the head reads counts, not counts / D."""

    config: ESpikeFormerConfig

    def __init__(self, config: ESpikeFormerConfig) -> None:
        super().__init__(config)
        self.neuron = make_neuron(config, gain=config.levels)

    def _transformer_block(self, width: int, drop_path_rate: float) -> nn.Module:
        return Block(self.config, width, drop_path_rate)
