"""What `qsd predict` says of an image, whatever the task."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    from PIL import Image


@dataclass(frozen=True, kw_only=True)
class Found:
    """What is said of an image, as text and as JSON."""

    line: str
    entry: dict[str, Any]


# What predicts on (path, image) pairs, one after the other.
Predict: TypeAlias = "Callable[[Sequence[tuple[str, Image.Image]]], Iterable[Found]]"
