"""From images to the uint8 pixels that an integer graph takes.

Needs Pillow and NumPy only. The pixels are those of timm's evaluation transform, before it
normalises them.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

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

    Resized so that the shorter side is image_size / crop_pct, then cropped at the centre. `mean`
    and `std` are those of pixels in [0, 1]; the graph's first table has them folded in.
    """

    image_size: int
    channels: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str = "bilinear"
    crop_pct: float = 1.0

    @classmethod
    def of(cls, info: DataInfo) -> Preprocessing:
        """As evaluation prepares the images that `info` describes."""
        names = [field.name for field in dataclasses.fields(cls)]
        return cls(**{name: getattr(info, name) for name in names})


def pixels(images: Iterable[Image.Image], pre: Preprocessing) -> Array:
    """uint8 (B, C, H, W): shorter side to image_size / crop_pct, centre cropped."""
    prepared = [_one(image, pre) for image in images]
    if not prepared:
        raise UserError("no images: give at least one")
    return np.stack(prepared)


def _one(image: Image.Image, pre: Preprocessing) -> Array:
    if pre.interpolation not in FILTERS:
        raise UserError(f"unknown interpolation {pre.interpolation!r} in the model's preprocessing")
    image = in_channels(middle(image), pre.channels)
    short = math.floor(pre.image_size / pre.crop_pct)
    width, height = image.size
    if min(width, height) != short:
        long = int(short * max(width, height) / min(width, height))
        size = (short, long) if width <= height else (long, short)
        image = image.resize(size, FILTERS[pre.interpolation])
    left, top = (round((side - pre.image_size) / 2.0) for side in image.size)
    image = image.crop((left, top, left + pre.image_size, top + pre.image_size))
    values = np.asarray(image, np.uint8)
    return values[None] if pre.channels == 1 else np.ascontiguousarray(values.transpose(2, 0, 1))
