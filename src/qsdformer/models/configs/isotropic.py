"""What the configurations of SDT v1 and Spikformer share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from qsdformer.errors import require
from qsdformer.nn.config import LARGEST_WIDTH, NetworkConfig, check_heads, is_whole
from qsdformer.parsing import option


@dataclass(frozen=True, kw_only=True)
class IsotropicConfig(NetworkConfig):
    """The shape of a network with one token grid.

    `pooling` has a 1 for each of the stem's steps that is followed by a max pool, which halves
    the grid; else a 0. The stem has four steps, or one more than `stem_widths` has numbers.
    """

    SHAPE: ClassVar[tuple[str, ...]] = (
        *NetworkConfig.SHAPE,
        "width",
        "depth",
        "mlp_ratio",
        "pooling",
        "stem_widths",
    )
    SHOWN: ClassVar[tuple[str, ...]] = ("width", "depth", "heads", "pooling", "time_steps")
    COUNTS: ClassVar[tuple[str, ...]] = (*NetworkConfig.COUNTS, "depth", "mlp_ratio")

    width: int = option(512, "channels of the blocks")
    depth: int = option(8, "transformer blocks")
    mlp_ratio: int = option(4, "hidden width of the MLPs, in widths")
    pooling: str = option(
        "1111",
        "a 0 or 1 for each of the stem's steps: 1 if a max pool follows, that halves the grid",
    )
    stem_widths: tuple[int, ...] | None = option(
        None,
        "channels after each of the stem's steps but the last; none: 1/8, 1/4 and 1/2 of width",
        added=True,
    )

    attention_threshold: float = option(0.5, "LIF firing threshold of the neuron inside attention")
    attention_norm: bool = option(False, "batch norm before the neuron inside attention")

    @property
    def stem_channels(self) -> tuple[int, ...]:
        """Channels after each of the stem's steps; the last are the blocks'."""
        width = self.width
        return *(self.stem_widths or (width // 8, width // 4, width // 2)), width

    def _check_types(self) -> None:
        super()._check_types()
        widths = self.stem_widths
        if widths is not None:
            some = isinstance(widths, (tuple, list)) and len(widths) > 0
            ok = some and all(is_whole(w) and 1 <= w <= LARGEST_WIDTH for w in widths)
            require(self, "stem_widths", ok, f"numbers from 1 to {LARGEST_WIDTH}, or none")
            object.__setattr__(self, "stem_widths", tuple(widths))

    def _check_family(self) -> None:
        ok = self.width >= 8 and self.width % 8 == 0
        require(self, "width", ok, "a multiple of 8 (the stem starts with an eighth)")
        steps = len(self.stem_channels)
        flags = isinstance(self.pooling, str) and len(self.pooling) == steps
        rule = f"{steps} digits of 0 and 1, one for each step of the stem"
        require(self, "pooling", flags and set(self.pooling) <= set("01"), rule)
        require(self, "attention_threshold", self.attention_threshold > 0, "above 0")
        check_heads(self.heads, self.width)
