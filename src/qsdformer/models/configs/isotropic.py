"""What the configurations of SDT v1 and Spikformer share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from qsdformer.errors import require
from qsdformer.nn.config import NetworkConfig, check_heads
from qsdformer.parsing import option


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

    width: int = option(512, "channels of the blocks")
    depth: int = option(8, "transformer blocks")
    mlp_ratio: int = option(4, "hidden width of the MLPs, in widths")
    pooling: str = option(
        "1111",
        "four of 0 and 1: which of the stem's steps a max pool follows, that halves the grid",
    )

    attention_threshold: float = option(0.5, "LIF firing threshold of the neuron inside attention")
    attention_norm: bool = option(False, "batch norm before the neuron inside attention")

    def _check_family(self) -> None:
        ok = self.width >= 8 and self.width % 8 == 0
        require(self, "width", ok, "a multiple of 8 (the stem starts with an eighth)")
        flags = isinstance(self.pooling, str) and len(self.pooling) == 4
        require(self, "pooling", flags and set(self.pooling) <= set("01"), "four of 0 and 1")
        require(self, "attention_threshold", self.attention_threshold > 0, "above 0")
        check_heads(self.heads, self.width)
