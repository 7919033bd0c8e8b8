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
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

from qsdformer.errors import require
from qsdformer.models.metaspikeformer import PyramidTransformer
from qsdformer.models.registry import Family, register
from qsdformer.nn.attention import SpikeAttention
from qsdformer.nn.blocks import MLP, SepConv, drop_path, make_norm
from qsdformer.nn.config import PyramidConfig, Rounding
from qsdformer.nn.neurons import make_neuron
from qsdformer.nn.pointwise import PointwiseAttention

VALUE_RATIO = 4  # width of v, in widths of q and k

# Named sizes, after their numbers of parameters.
SIZES: dict[str, dict[str, Any]] = {
    "e_spikeformer_tiny": {"dims": (16, 32, 64, 80), "depth": 3, "heads": 4, "stem_kernel": 3},
    "e_spikeformer_3m": {"dims": (24, 48, 96, 128)},
    "e_spikeformer_5m": {"dims": (32, 64, 128, 192)},
    "e_spikeformer_10m": {"dims": (48, 96, 192, 240)},
    "e_spikeformer_19m": {"dims": (64, 128, 256, 360)},
}


@dataclass(frozen=True, kw_only=True)
class ESpikeFormerConfig(PyramidConfig):
    """Configuration of an E-SpikeFormer of the base sizes and of its counterpart ANN."""

    family: ClassVar[str] = "e_spikeformer"

    # None: 2/sqrt(width of a head).
    attention_scale: float | None = None
    attention_norm: bool = False  # batch norm between attention and its neuron
    count_units: bool = True  # membrane potential D gives D counts; else 1 does
    rounding: Rounding = "even"  # of half counts

    def _check_family(self) -> None:
        super()._check_family()
        scale = self.attention_scale
        require(self, "attention_scale", scale is None or scale > 0, "above 0, or none")

    @property
    def window(self) -> float:
        """Membrane potential at which an IE-LIF neuron emits its largest count."""
        return float(self.levels) if self.count_units else 1.0


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


register(Family(config=ESpikeFormerConfig, model=ESpikeFormer, sizes=SIZES, feature_maps=True))
