"""Reading single image files the way evaluation sees a dataset's images."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable

import numpy as np
import torch
from PIL import Image
from timm.data import create_transform
from torch import Tensor

from qsdformer.data.base import DataError, DataInfo
from qsdformer.graph.decoding import DECODE_ERRORS

Transform = Callable[[Image.Image], Tensor]


def load_images(paths: Iterable[str | os.PathLike[str]], info: DataInfo) -> Tensor:
    """Normalised images (B, C, H, W) float32, of any file format and size Pillow can read.

    Grey and RGB are converted to what the model wants. A missing or corrupt file is a
    `UserError` that names it.
    """
    transform = eval_transform(info)
    images = [transform(read_image(path, info.channels)) for path in paths]
    if not images:
        raise ValueError("paths is empty: give at least one image file")
    return torch.stack(images)


def eval_transform(info: DataInfo) -> Transform:
    """timm's evaluation transform: resize, centre crop, scale to [0, 1], normalise."""
    return create_transform(
        input_size=(info.channels, info.image_size, info.image_size),
        is_training=False,
        interpolation=info.interpolation,
        crop_pct=info.crop_pct,
        mean=info.mean,
        std=info.std,
    )


def read_image(path: str | os.PathLike[str], channels: int) -> Image.Image:
    """The decoded image in mode L (1 channel) or RGB (3); raises `UserError` naming the file."""
    try:
        with Image.open(path) as image:
            return _eight_bits(image).convert("L" if channels == 1 else "RGB")
    except DECODE_ERRORS as error:
        reason = " ".join((getattr(error, "strerror", None) or str(error)).split())
        if isinstance(error, Image.UnidentifiedImageError):
            reason = "not an image in a known format"
        raise DataError(
            f"cannot read image {os.fspath(path)}: {reason}; replace or remove the file"
        ) from error


def _eight_bits(image: Image.Image) -> Image.Image:
    """Sixteen-bit grey images scaled down, which Pillow's own conversion would clip to white."""
    if not image.mode.startswith("I;16"):
        return image
    return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
