"""Spikformer: attention without softmax on a residual stream of spike counts.

Paper: Spikformer (Zhou et al., ICLR 2023); the published program is ZK-Zhou/spikformer. Every
residual branch ends in a neuron, so the stream holds whole numbers, 0 to D*(2 + 2*depth) counts,
and convolutions in the blocks read them directly: it is not spike-driven. The published network
has LIF neurons of threshold 1, 1/2 after attention, and weights in full precision.
"""

from __future__ import annotations

from torch import Tensor, nn

from qsdformer.models.configs.spikformer import SpikformerConfig
from qsdformer.models.isotropic import IsotropicTransformer
from qsdformer.nn.attention import SpikeAttention
from qsdformer.nn.blocks import make_norm
from qsdformer.nn.neurons import make_neuron
from qsdformer.nn.pointwise import Pointwise, PointwiseAttention
from qsdformer.nn.sps import SpikeStem


class SpikeMLP(nn.Module):
    """1x1 to several times the width, norm, neuron, 1x1 back, norm, neuron."""

    def __init__(self, config: SpikformerConfig) -> None:
        super().__init__()
        width, inner = config.width, config.width * config.mlp_ratio
        self.fc1 = Pointwise(config, width, inner, role="neuron", bias=True)
        self.neuron1 = make_neuron(config)
        self.fc2 = Pointwise(config, inner, width, role="neuron", bias=True)
        self.neuron2 = make_neuron(config)

    def forward(self, x: Tensor) -> Tensor:
        """Counts (T*B, C, H, W) to one neuron's counts of the same shape."""
        return self.neuron2(self.fc2(self.neuron1(self.fc1(x))))


class Block(nn.Module):
    """x += attention(x); x += mlp(x), on spike counts."""

    def __init__(self, config: SpikformerConfig) -> None:
        super().__init__()
        width, norm = config.width, config.attention_norm
        threshold = config.attention_threshold
        self.attention = PointwiseAttention(
            config,
            width,
            config.heads,
            SpikeAttention(config.heads, config.attention_scale),
            norm=make_norm(config, width, "qkv", threshold=threshold) if norm else None,
            neuron=make_neuron(config, threshold=threshold),
            qkv_bias=config.qkv_bias,
            output_bias=True,
            spikes=True,
        )
        self.mlp = SpikeMLP(config)

    def forward(self, x: Tensor) -> Tensor:
        """Counts (T*B, C, H, W) to counts of the same shape, up to 2D larger."""
        x = x + self.attention(x)
        return x + self.mlp(x)


class Spikformer(IsotropicTransformer):
    """Spikformer: spike counts between stem, blocks and head, whose input is their mean."""

    def __init__(self, config: SpikformerConfig) -> None:
        super().__init__(
            config,
            SpikeStem(config, config.stem_channels, config.pooling),
            [Block(config) for _ in range(config.depth)],
            nn.Identity(),
        )
