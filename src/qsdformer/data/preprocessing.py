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

from qsdformer.data.base import INTERPOLATIONS, Preparation, as_image_size
from qsdformer.data.decoding import as_shown, in_channels, middle
from qsdformer.errors import UserError

if TYPE_CHECKING:
    from qsdformer.data.base import DataInfo

Array = np.ndarray

FILTERS = {name: Image.Resampling[name.upper()] for name in INTERPOLATIONS}


@dataclass(frozen=True, kw_only=True)
class Preprocessing(Preparation):
    """How an image file becomes the uint8 pixels of the graph.

    With `placed`, (height, width), an image is fitted into that size in place of image_size. What
    is left on the right and below has the mean colour, which is 0 once it is normalised; the
    graph's first table has `mean` and `std` folded in.
    """

    placed: tuple[int, int] | None = None

    @property
    def inner(self) -> tuple[int, int]:
        """Height and width that an image is brought to, or into; the rest is filled."""
        return self.placed or self.sides

    def place_of(self, size: tuple[int, int]) -> tuple[int, int]:
        """Height and width of what shows an image of `size` (height, width)."""
        return size_within(size, self.inner) if self.fit == "pad" else self.inner

    def to_dict(self) -> dict[str, Any]:
        """As artifacts hold it: `fit` and `placed` only where they say something."""
        values = dataclasses.asdict(self)
        if self.fit == "crop":
            del values["fit"]
        if self.placed is None:
            del values["placed"]
        return values

    @classmethod
    def of(cls, info: DataInfo, multiple: int = 1) -> Preprocessing:
        """As evaluation prepares the images that `info` describes.

        Sides that are not multiples of `multiple` are filled up to the next one.
        """
        names = [f.name for f in dataclasses.fields(Preparation) if f.name != "image_size"]
        filled = tuple(-(-side // multiple) * multiple for side in info.sides)
        return cls(
            **{name: getattr(info, name) for name in names},
            image_size=as_image_size(filled),
            placed=None if filled == info.sides else info.sides,
        )


def size_within(size: tuple[int, int], box: tuple[int, int]) -> tuple[int, int]:
    """The largest size of the proportions of `size` that fits into `box`; heights and widths."""
    factor = min(inner / side for inner, side in zip(box, size, strict=True))
    tall, wide = (max(1, round(side * factor)) for side in size)
    return min(tall, box[0]), min(wide, box[1])


def pixels(images: Iterable[Image.Image], pre: Preprocessing) -> Array:
    """uint8 (B, C, H, W), as `Preprocessing` says, of images as a file or Pillow gives them."""
    prepared = [_one(image, pre) for image in images]
    if not prepared:
        raise UserError("no images: give at least one")
    return np.stack(prepared)


def _one(image: Image.Image, pre: Preprocessing) -> Array:
    try:
        image = as_shown(image)
    except ValueError as error:
        raise UserError(f"cannot use an image of mode {image.mode}: {error}") from error
    image = in_channels(middle(image) if pre.fit == "crop" else image, pre.channels)
    image = _covering_crop(image, pre) if pre.fit == "crop" else _resized(image, pre)
    values = np.asarray(image, np.uint8)
    values = values[None] if pre.channels == 1 else np.ascontiguousarray(values.transpose(2, 0, 1))
    return filled(values, pre)


def filled(images: Array, pre: Preprocessing) -> Array:
    """uint8 images (..., C, h, w) of at most the network's size, filled up with the mean colour."""
    height, width = pre.sides
    if images.shape[-2:] == (height, width):
        return images
    mean = np.rint(255 * np.clip(pre.mean, 0, 1)).astype(np.uint8).reshape(-1, 1, 1)
    whole = np.empty((*images.shape[:-2], height, width), np.uint8)
    whole[...] = mean
    whole[..., : images.shape[-2], : images.shape[-1]] = images
    return whole


def _resized(image: Image.Image, pre: Preprocessing) -> Image.Image:
    height, width = pre.place_of((image.height, image.width))
    if image.size == (width, height):
        return image
    return image.resize((width, height), FILTERS[pre.interpolation])


def _covering_crop(image: Image.Image, pre: Preprocessing) -> Image.Image:
    """Resized by one factor until it covers the size wanted, and cropped at its centre."""
    tall, wide = pre.inner
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
