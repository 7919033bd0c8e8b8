"""Many variants of a design on the same spikes: which of them nothing else beats.

A sweep is written `lanes=32|64,encoding=address|address+count,buffers=0.5|1`: values by key, every
combination of them. A key is one of `SHORT`, `buffers` (times what the design has), or the path of
a number in the design's file.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from qsdformer.accelerator.design import Design, changed, paths
from qsdformer.accelerator.results import Figures, figures
from qsdformer.accelerator.simulate import simulate
from qsdformer.errors import UserError
from qsdformer.graph.integer import IntegerGraph
from qsdformer.graph.ops import Array
from qsdformer.parsing import load_yaml, nearest

ADDERS = ("linear", "convolution", "attention")
SHORT: dict[str, tuple[str, ...]] = {
    "lanes": tuple(f"units.{name}.lanes" for name in ADDERS),
    "engines": tuple(f"units.{name}.engines" for name in ADDERS),
    "rows": ("units.array.rows",),
    "columns": ("units.array.columns",),
    "encoding": ("encoding",),
    "share": tuple(f"units.{name}.shares_weights" for name in ADDERS[:2]),
    "order": ("units.convolution.order",),
    "clock": ("clock_mhz",),
    "dram": ("dram_bits",),
}
BUFFERS = "buffers"


@dataclass(frozen=True, kw_only=True)
class Point:
    """A variant with its figures; None and the reason where the network does not fit it."""

    settings: dict[str, Any]
    design: Design
    found: Figures | None
    problem: str = ""
    best: bool = False  # no other is better in frames/s, energy or memory and worse in none

    @property
    def coordinates(self) -> tuple[float, float, float]:
        """What is to be small: time, energy, memory."""
        assert self.found is not None
        return self.found.microseconds, self.found.total, self.design.kib


def parse_sweep(text: str, design: Design) -> dict[str, list[Any]]:
    """Values by key; a `UserError` for a key that `design` has not."""
    known = [*SHORT, BUFFERS, *paths(design)]
    found: dict[str, list[Any]] = {}
    for part in text.split(","):
        key, sign, values = (piece.strip() for piece in part.partition("="))
        if not sign or not values:
            raise UserError(f"--sweep: {part!r} must be KEY=VALUE|VALUE..., such as lanes=32|64")
        if key not in known:
            raise UserError(f"--sweep: unknown key {key}{nearest(key, known)}")
        if key in found:
            raise UserError(f"--sweep: {key} is given twice: put its values together, with |")
        for other in found:
            if both := [path for path in _changes(key, design) if path in _changes(other, design)]:
                raise UserError(f"--sweep: {other} and {key} both change {both[0]}: give one")
        found[key] = [load_yaml(v, f"--sweep: {key}={v!r}") for v in values.split("|")]
    return found


def _changes(key: str, design: Design) -> list[str]:
    """The paths of the numbers in the design's file that `key` changes."""
    if key == BUFFERS:
        return [f"buffers.{name}.kib" for name in design.buffers.named()]
    return [path for path in SHORT.get(key, (key,)) if path in paths(design)]


def variant(design: Design, settings: dict[str, Any]) -> Design:
    """`design` with some numbers changed; a `UserError` for a value that is not allowed."""
    for key, value in settings.items():
        if key == BUFFERS:
            if not isinstance(value, (int, float)) or isinstance(value, bool) or value <= 0:
                raise UserError(f"--sweep: {key}={value!r}: must be a number above 0")
            for name, buffer in design.buffers.named().items():
                design = changed(design, f"buffers.{name}.kib", buffer.kib * value)
        else:
            here = _changes(key, design)
            if not here:
                raise UserError(f"--sweep: design {design.name} has no unit with {key}")
            for path in here:
                design = changed(design, path, value)
    return design


def sweep(
    graph: IntegerGraph,
    design: Design,
    images: Array,
    keys: dict[str, list[Any]],
    on_point: Callable[[], None] = lambda: None,
) -> list[Point]:
    """Every combination of the values of `keys`, simulated, the first compared; best are marked."""
    combinations = [
        dict(zip(keys, values, strict=True)) for values in itertools.product(*keys.values())
    ]
    variants = [variant(design, settings) for settings in combinations]
    points: list[Point] = []
    for settings, made in zip(combinations, variants, strict=True):
        first = not any(point.found for point in points)  # of those that are possible
        try:
            found, problem = figures(simulate(graph, made, images, check=first)), ""
        except UserError as error:
            found, problem = None, str(error)
        points.append(Point(settings=settings, design=made, found=found, problem=problem))
        on_point()
    if not any(point.found for point in points):
        raise UserError(points[0].problem)
    return marked(points)


def marked(points: Sequence[Point]) -> list[Point]:
    """The points, those that no other point beats marked as best."""
    possible = [p.coordinates for p in points if p.found is not None]

    def beaten(mine: tuple[float, ...]) -> bool:
        return any(
            other != mine and all(a <= b for a, b in zip(other, mine, strict=True))
            for other in possible
        )

    return [
        dataclasses.replace(p, best=p.found is not None and not beaten(p.coordinates))
        for p in points
    ]
