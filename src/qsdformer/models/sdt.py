"""Spike-driven Transformer v1.

Paper: Spike-driven Transformer (Yao et al., NeurIPS 2023, arXiv 2307.01694); the published
program is BICLab/Spike-Driven-Transformer, whose names for q, k and v are kept. All residuals add
membrane potentials; attention masks q by the coincidences of k and v, without products of counts.
The published network has LIF neurons of threshold 1 and weights in full precision.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

from qsdformer.models.isotropic import IsotropicConfig, IsotropicTransformer
from qsdformer.models.registry import Family, register
from qsdformer.nn.blocks import MLP
from qsdformer.nn.neurons import make_neuron
from qsdformer.nn.pointwise import MaskAttention, PointwiseAttention
from qsdformer.nn.sps import MembraneStem

_CIFAR: dict[str, Any] = {"depth": 2, "pooling": "0011"}
_EVENTS: dict[str, Any] = {"width": 256, "depth": 2, "in_channels": 2, "time_steps": 16}

# Named sizes, by depth and width as in the publication.
SIZES: dict[str, dict[str, Any]] = {
    "sdt_tiny": {"width": 96, "depth": 3, "heads": 4, "pooling": "0111"},
    "sdt_8_384": {"width": 384, "depth": 8},
    "sdt_6_512": {"width": 512, "depth": 6},
    "sdt_8_512": {"width": 512, "depth": 8},
    "sdt_10_512": {"width": 512, "depth": 10},
    "sdt_8_768": {"width": 768, "depth": 8},
    "sdt_cifar_2_256": {**_CIFAR, "width": 256},
    "sdt_cifar_2_512": {**_CIFAR, "width": 512},
    "sdt_cifar10dvs_2_256": {**_EVENTS, "pooling": "0011", "dvs_mode": True},
    "sdt_gesture_2_256": {**_EVENTS, "pooling": "0111"},
}
INPUTS = {
    "sdt_tiny": (3, 32, 32),
    "sdt_cifar_2_256": (3, 32, 32),
    "sdt_cifar_2_512": (3, 32, 32),
    "sdt_cifar10dvs_2_256": (2, 64, 64),
    "sdt_gesture_2_256": (2, 128, 128),
}


@dataclass(frozen=True, kw_only=True)
class SDTConfig(IsotropicConfig):
    """Configuration of a Spike-driven Transformer v1 and of its counterpart ANN."""

    family: ClassVar[str] = "sdt"

    dvs_mode: bool = False  # the extra max pools in attention of the published CIFAR10-DVS network


class Block(nn.Module):
    """x += attention(x); x += mlp(x), on membrane potentials."""

    def __init__(self, config: SDTConfig) -> None:
        super().__init__()
        core = MaskAttention(
            config,
            config.width,
            config.heads,
            threshold=config.attention_threshold,
            norm=config.attention_norm,
            dvs_mode=config.dvs_mode,
        )
        self.attention = PointwiseAttention(
            config, config.width, config.heads, core, output_bias=True
        )
        self.mlp = MLP(config, config.width, config.mlp_ratio)

    def forward(self, x: Tensor) -> Tensor:
        """(T*B, C, H, W) to the same shape."""
        x = x + self.attention(x)
        return x + self.mlp(x)


class SDT(IsotropicTransformer):
    """Spike-driven Transformer v1: membrane potentials between stem, blocks and head."""

    def __init__(self, config: SDTConfig) -> None:
        super().__init__(
            config,
            MembraneStem(config, config.width, config.pooling),
            [Block(config) for _ in range(config.depth)],
            make_neuron(config),
        )


register(
    Family(config=SDTConfig, model=SDT, sizes=SIZES, inputs=INPUTS, first_conv="stem.convs.0.conv")
)
