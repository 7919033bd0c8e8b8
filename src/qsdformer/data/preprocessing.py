"""From images to the uint8 pixels that an integer graph takes.

Needs Pillow and NumPy only. The pixels are those of timm's evaluation transform, before it
normalises them.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from qsdformer.data.base import Fit, ImageSize, sides
from qsdformer.data.decoding import in_channels, middle
from qsdformer.errors import UserError

if TYPE_CHECKING:
    from qsdformer.data.base import DataInfo

Array = np.ndarray

FILTERS = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "box": Image.Resampling.BOX,
    "hamming": Image.Resampling.HAMMING,
    "lanczos": Image.Resampling.LANCZOS,
}


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """How an image file becomes the uint8 pixels of the graph.

    With `fit` crop it is resized so that it covers image_size / crop_pct (of a square, its shorter
    side is that long), then cropped at the centre; with stretch, resized to image_size. `mean` and
    `std` are those of pixels in [0, 1]; the graph's first table has them folded in.
    """

    image_size: ImageSize
    channels: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str = "bilinear"
    crop_pct: float = 1.0
    fit: Fit = "crop"

    @property
    def sides(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return sides(self.image_size)

    def to_dict(self) -> dict[str, Any]:
        """As artifacts hold it: `fit` only where it is not crop."""
        values = dataclasses.asdict(self)
        if self.fit == "crop":
            del values["fit"]
        return values

    @classmethod
    def of(cls, info: DataInfo) -> Preprocessing:
        """As evaluation prepares the images that `info` describes."""
        names = [field.name for field in dataclasses.fields(cls)]
        return cls(**{name: getattr(info, name) for name in names})


def pixels(images: Iterable[Image.Image], pre: Preprocessing) -> Array:
    """uint8 (B, C, H, W), as `Preprocessing` says."""
    prepared = [_one(image, pre) for image in images]
    if not prepared:
        raise UserError("no images: give at least one")
    return np.stack(prepared)


def _one(image: Image.Image, pre: Preprocessing) -> Array:
    if pre.interpolation not in FILTERS:
        raise UserError(f"unknown interpolation {pre.interpolation!r} in the model's preprocessing")
    image = in_channels(middle(image) if pre.fit == "crop" else image, pre.channels)
    image = _covering_crop(image, pre) if pre.fit == "crop" else _stretched(image, pre)
    values = np.asarray(image, np.uint8)
    return values[None] if pre.channels == 1 else np.ascontiguousarray(values.transpose(2, 0, 1))


def _stretched(image: Image.Image, pre: Preprocessing) -> Image.Image:
    height, width = pre.sides
    if image.size == (width, height):
        return image
    return image.resize((width, height), FILTERS[pre.interpolation])


def _covering_crop(image: Image.Image, pre: Preprocessing) -> Image.Image:
    """Resized by one factor until it covers the size wanted, and cropped at its centre."""
    tall, wide = pre.sides
    across, down = (math.floor(side / pre.crop_pct) for side in (wide, tall))
    width, height = image.size
    # The side that is the shorter one, measured against what is wanted of it, fits exactly.
    if width * down <= height * across:
        size = (across, int(across * height / width))
    else:
        size = (int(down * width / height), down)
    if image.size != size:
        image = image.resize(size, FILTERS[pre.interpolation])
    left, top = (
        round((side - wanted) / 2.0) for side, wanted in zip(size, (wide, tall), strict=True)
    )
    return image.crop((left, top, left + wide, top + tall))
