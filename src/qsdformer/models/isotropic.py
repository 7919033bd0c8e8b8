"""What SDT v1 and Spikformer share: a max-pooled stem, blocks on one token grid, a linear head."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

from qsdformer.errors import require
from qsdformer.models.base import SpikingTransformer
from qsdformer.nn.config import NetworkConfig, check_heads
from qsdformer.nn.quantizers import quantized_layers, quantized_together
from qsdformer.nn.timing import TimeInput, TimeMean


@dataclass(frozen=True, kw_only=True)
class IsotropicConfig(NetworkConfig):
    """The shape of a network with one token grid.

    `pooling` has a 1 for each of the stem's four steps that is followed by a max pool, which
    halves the grid; else a 0.
    """

    SHAPE: ClassVar[tuple[str, ...]] = (
        *NetworkConfig.SHAPE,
        "width",
        "depth",
        "mlp_ratio",
        "pooling",
    )
    SHOWN: ClassVar[tuple[str, ...]] = ("width", "depth", "heads", "pooling", "time_steps")
    COUNTS: ClassVar[tuple[str, ...]] = (*NetworkConfig.COUNTS, "depth", "mlp_ratio")

    width: int = 512
    depth: int = 8
    mlp_ratio: int = 4  # hidden width of the MLPs, in widths
    pooling: str = "1111"

    attention_threshold: float = 0.5  # LIF firing threshold of the neuron inside attention
    attention_norm: bool = False  # batch norm before that neuron

    def _check_family(self) -> None:
        ok = self.width >= 8 and self.width % 8 == 0
        require(self, "width", ok, "a multiple of 8 (the stem starts with an eighth)")
        flags = isinstance(self.pooling, str) and len(self.pooling) == 4
        require(self, "pooling", flags and set(self.pooling) <= set("01"), "four of 0 and 1")
        require(self, "attention_threshold", self.attention_threshold > 0, "above 0")
        check_heads(self.heads, self.width)


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
        self.time_input = TimeInput(config.time_steps, config.in_channels)
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
        x = self.stem(self.time_input(images))
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
