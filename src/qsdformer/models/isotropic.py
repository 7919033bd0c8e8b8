"""What SDT v1 and Spikformer share: a max-pooled stem, blocks on one token grid, a linear head."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from qsdformer.models.base import SpikingTransformer
from qsdformer.models.configs.isotropic import IsotropicConfig
from qsdformer.nn.quantizers import quantized_layers, quantized_together
from qsdformer.nn.timing import TimeMean


class IsotropicTransformer(SpikingTransformer):
    """Stem, blocks, spatial mean, perhaps a neuron, mean over time steps, linear head."""

    config: IsotropicConfig

    def __init__(
        self,
        config: IsotropicConfig,
        stem: nn.Module,
        blocks: list[nn.Module],
        neuron: nn.Module,
    ) -> None:
        super().__init__(config, config.width)
        self.stem = stem
        self.blocks = nn.ModuleList(blocks)
        self.neuron = neuron
        self.time_mean = TimeMean(config.time_steps)
        self.head = self._make_head()

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, H, W) or (T, B, C, H, W) to logits (B, classes); without a head, features."""
        if not self.training:
            return self.forward_head(self.forward_features(images))
        with quantized_together(list(quantized_layers(self).values())):
            return self.forward_head(self.forward_features(images))

    def forward_features(self, images: Tensor) -> Tensor:
        """What the last block puts out, (T*B, width, H', W')."""
        x = self.stem(images)
        for block in self.blocks:
            x = block(x)
        return x

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """(T*B, width, H', W') to logits (B, classes)."""
        x = self.time_mean(self.neuron(x.mean(dim=(2, 3))))
        return x if pre_logits else self.head(x)

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Regular expressions that sort parameters into stem and blocks, for layer-wise rates."""
        return {"stem": r"^stem", "blocks": r"^blocks\.(\d+)"}
