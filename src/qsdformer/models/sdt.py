"""Spike-driven Transformer v1.

Paper: Spike-driven Transformer (Yao et al., NeurIPS 2023, arXiv 2307.01694); the published
program is BICLab/Spike-Driven-Transformer, whose names for q, k and v are kept. All residuals add
membrane potentials; attention masks q by the coincidences of k and v, without products of counts.
The published network has LIF neurons of threshold 1 and weights in full precision.
"""

from __future__ import annotations

from torch import Tensor, nn

from qsdformer.models.configs.sdt import SDTConfig
from qsdformer.models.isotropic import IsotropicTransformer
from qsdformer.nn.blocks import MLP
from qsdformer.nn.neurons import make_neuron
from qsdformer.nn.pointwise import MaskAttention, PointwiseAttention
from qsdformer.nn.sps import MembraneStem


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
            MembraneStem(config, config.stem_channels, config.pooling),
            [Block(config) for _ in range(config.depth)],
            make_neuron(config),
        )
