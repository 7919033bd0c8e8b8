"""Reading single image files the way evaluation sees a dataset's images."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from qsdformer.data.base import DataError, DataInfo, size_text
from qsdformer.data.decoding import in_channels, middle, open_image
from qsdformer.data.preprocessing import Preprocessing, pixels
from qsdformer.errors import UserError

Transform = Callable[[Image.Image], Tensor]


def load_images(paths: Iterable[str | os.PathLike[str]], info: DataInfo) -> Tensor:
    """Normalised images (B, C, H, W) float32, of any file format and size Pillow can read.

    Grey and RGB are converted to what the model wants. A missing or corrupt file is a
    `UserError` that names it.
    """
    return prepare((open_image(path) for path in paths), info)


def prepare(images: Iterable[Image.Image], info: DataInfo) -> Tensor:
    """Pillow images of any size and mode as evaluation sees them: (B, C, H, W) float32."""
    transform = eval_transform(info)
    prepared = [transform(in_channels(image, info.channels)) for image in images]
    if not prepared:
        raise ValueError("paths is empty: give at least one image file")
    return torch.stack(prepared)


def load_pixels(paths: Sequence[str], info: DataInfo) -> Tensor:
    """Pixels (N, C, H, W) uint8 that evaluation sees, before it normalises them.

    `UserError` for an unreadable file, or where all together would not fit into memory.
    """
    height, width = info.sides
    needed = len(paths) * info.channels * height * width
    if needed > physical_memory():
        raise UserError(
            f"{len(paths):,} images of {size_text(info.image_size)} px need {needed / 1e9:,.0f} GB "
            "in memory: lower data.image_size or leave data.in_memory out"
        )
    held = np.empty((len(paths), info.channels, height, width), np.uint8)
    preprocessing = Preprocessing.of(info)
    for place, path in zip(held, paths, strict=True):
        place[...] = pixels([read_image(path, info.channels)], preprocessing)[0]
    return torch.from_numpy(held)


def physical_memory() -> int:
    """Bytes of this machine's memory."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def eval_transform(info: DataInfo) -> Transform:
    """timm's evaluation transform: resize, centre crop, scale to [0, 1], normalise.

    Images that are not square, or stretched, are prepared as an artifact prepares them.
    """
    if info.fit != "crop" or not isinstance(info.image_size, int):
        preprocessing = Preprocessing.of(info)
        return lambda image: normalise(torch.from_numpy(pixels([image], preprocessing)), info)[0]
    from timm.data import create_transform  # which takes seconds

    transform = create_transform(
        input_size=(info.channels, info.image_size, info.image_size),
        is_training=False,
        interpolation=info.interpolation,
        crop_pct=info.crop_pct,
        mean=info.mean,
        std=info.std,
    )
    return lambda image: transform(middle(image))


def normalise(images: Tensor, info: DataInfo) -> Tensor:
    """uint8 images (B, C, H, W) as float32: (pixel / 255 - mean) / std, per channel."""
    mean = torch.tensor(info.mean).view(1, -1, 1, 1)
    std = torch.tensor(info.std).view(1, -1, 1, 1)
    return images.float().div_(255).sub_(mean).div_(std)


def read_image(path: str | os.PathLike[str], channels: int) -> Image.Image:
    """The decoded image in mode L (1 channel) or RGB (3); raises `UserError` naming the file."""
    try:
        return in_channels(open_image(path), channels)
    except UserError as error:
        raise DataError(str(error)) from error
