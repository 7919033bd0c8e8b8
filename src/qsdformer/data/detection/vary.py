"""Resizing images together with their boxes and masks, and varying them for training.

K objects, H rows, W columns. What is random comes from one generator, made of an image's key.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from qsdformer.data.detection.records import Flags, Floats

# The published second branch: a shorter side, and the sides between which a crop's lie.
BEFORE_CROP = (400, 500, 600)
CROP_SIDES = (384, 600)
UNLIMITED = 2**31


@dataclass(frozen=True, kw_only=True)
class Sample:
    """An image with `boxes` (K, 4) and `masks` (K, H, W) or None; `kept` are those of the file."""

    image: Image.Image
    boxes: Floats
    masks: Flags | None
    kept: Flags


def fitted_size(size: tuple[int, int], short: int, longest: int) -> tuple[int, int]:
    """Height and width with a shorter side of `short`, or less, so that none is over `longest`."""
    scale = min(short / min(size), longest / max(size))
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def resized(sample: Sample, size: tuple[int, int]) -> Sample:
    """The sample with `size` (H, W)."""
    width, height = sample.image.size
    if (height, width) == size:
        return sample
    image = resized_image(sample.image, size)
    x, y = size[1] / width, size[0] / height
    boxes = sample.boxes * np.array([x, y, x, y], np.float32)
    masks = sample.masks
    return replace(
        sample, image=image, boxes=boxes, masks=None if masks is None else _resized(masks, size)
    )


def resized_image(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """An image with `size` (H, W), bilinear, antialiased when it shrinks."""
    if image.size == (size[1], size[0]):
        return image
    return image.resize((size[1], size[0]), Image.Resampling.BILINEAR)


def mirrored(sample: Sample) -> Sample:
    """Left and right exchanged."""
    return _flipped(sample, 0)


def upside_down(sample: Sample) -> Sample:
    """Top and bottom exchanged."""
    return _flipped(sample, 1)


def _flipped(sample: Sample, axis: Literal[0, 1]) -> Sample:
    """The other way round along x (0) or y (1)."""
    first, last = axis, axis + 2  # of a box: its smaller and its larger coordinate
    boxes = sample.boxes.copy()
    boxes[:, [first, last]] = sample.image.size[axis] - sample.boxes[:, [last, first]]
    flip = (Image.Transpose.FLIP_LEFT_RIGHT, Image.Transpose.FLIP_TOP_BOTTOM)[axis]
    masks = None if sample.masks is None else np.flip(sample.masks, 2 - axis)
    return replace(sample, image=sample.image.transpose(flip), boxes=boxes, masks=masks)


def cropped(sample: Sample, box: tuple[int, int, int, int]) -> Sample:
    """The part left, top, right, bottom of a sample, without the objects that are not in it."""
    left, top, right, bottom = box
    boxes = sample.boxes - np.array([left, top, left, top], np.float32)
    boxes[:, 0::2] = boxes[:, 0::2].clip(0, right - left)
    boxes[:, 1::2] = boxes[:, 1::2].clip(0, bottom - top)
    masks = sample.masks
    cut = replace(
        sample,
        image=sample.image.crop(box),
        boxes=boxes,
        masks=None if masks is None else masks[:, top:bottom, left:right],
    )
    return without_vanished(cut)


def without_vanished(sample: Sample) -> Sample:
    """The sample without boxes of no extent, which rounding too can make of thin ones."""
    boxes, masks = sample.boxes, sample.masks
    there: Flags = (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])
    if there.all():
        return sample
    kept = sample.kept.copy()
    kept[kept] = there
    masks = None if masks is None else masks[there]
    return replace(sample, boxes=boxes[there], masks=masks, kept=kept)


@dataclass(frozen=True, kw_only=True)
class Variation:
    """How training images are varied; `sizes` are shorter sides to choose from, or none."""

    sizes: tuple[int, ...] = ()
    hflip: bool = False
    vflip: bool = False
    random_crop: bool = False

    def __call__(self, sample: Sample, rng: np.random.Generator) -> tuple[Sample, int | None]:
        """One variation of a sample, and the shorter side that it is to be resized to, if drawn."""
        draws = rng.random(3)
        if self.hflip and draws[0] < 0.5:
            sample = mirrored(sample)
        if self.vflip and draws[1] < 0.5:
            sample = upside_down(sample)
        if self.random_crop and draws[2] < 0.5:
            sample = _published_crop(sample, rng)
        if not self.sizes:
            return sample, None
        return sample, self.sizes[int(rng.integers(len(self.sizes)))]


def _published_crop(sample: Sample, rng: np.random.Generator) -> Sample:
    short = BEFORE_CROP[int(rng.integers(len(BEFORE_CROP)))]
    size = fitted_size((sample.image.height, sample.image.width), short, UNLIMITED)
    sample = resized(sample, size)
    low, high = CROP_SIDES
    sides = [int(rng.integers(min(side, low), min(side, high) + 1)) for side in size]
    top, left = (int(rng.integers(side - part + 1)) for side, part in zip(size, sides, strict=True))
    return cropped(sample, (left, top, left + sides[1], top + sides[0]))


def to_tensor(image: Image.Image) -> Tensor:
    """(C, H, W) float32 in [0, 1]."""
    pixels = np.array(image, np.uint8)
    pixels = pixels[:, :, None] if pixels.ndim == 2 else pixels
    return torch.from_numpy(pixels).permute(2, 0, 1).contiguous().float().div_(255)


def _resized(masks: Flags, size: tuple[int, int]) -> npt.NDArray[np.bool_]:
    if not len(masks):
        return np.zeros((0, *size), bool)
    values = torch.from_numpy(np.ascontiguousarray(masks)).to(torch.uint8)[None]
    found: Flags = F.interpolate(values, size=size, mode="nearest-exact")[0].bool().numpy()
    return found
