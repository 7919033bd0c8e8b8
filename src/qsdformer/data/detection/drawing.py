"""Boxes and masks drawn on an image, with the name and score of each object."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from qsdformer.data.detection.records import Flags, Floats
from qsdformer.data.segmentation.overlay import palette

OPACITY = 0.45  # of a mask
SMALLEST = 256  # pixels of the shorter side that a picture is magnified to, so that text fits


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """Objects to draw: `boxes` (K, 4), `labels` from 1, `masks` (K, H, W) or None, and `scores`."""

    boxes: Floats
    labels: Sequence[int]
    scores: Sequence[float] | None = None
    masks: Flags | None = None


def drawn(image: Image.Image, objects: Drawn, class_names: Sequence[str]) -> Image.Image:
    """The image in colour with each object's mask, box, name and score, the best ones on top."""
    colours = palette(len(class_names) + 1)
    pixels = np.array(image.convert("RGB"))
    if objects.masks is not None:
        for mask, label in zip(objects.masks[::-1], objects.labels[::-1], strict=True):
            blended = pixels[mask] * (1 - OPACITY) + OPACITY * colours[label]
            pixels[mask] = blended.astype(np.uint8)
    factor = max(1, -(-SMALLEST // min(image.size)))
    picture = Image.fromarray(pixels).resize(
        (factor * image.width, factor * image.height), Image.Resampling.NEAREST
    )
    pen = ImageDraw.Draw(picture)
    for index in reversed(range(len(objects.labels))):
        label = objects.labels[index]
        colour = tuple(int(value) for value in colours[label])
        x1, y1, x2, y2 = (factor * float(value) for value in objects.boxes[index])
        pen.rectangle((x1, y1, max(x1, x2 - 1), max(y1, y2 - 1)), outline=colour, width=2)
        text = class_names[label - 1]
        if objects.scores is not None:
            text += f" {objects.scores[index]:.0%}"
        _write(pen, text, (x1, y1), colour)
    return picture


def _write(
    pen: ImageDraw.ImageDraw, text: str, place: tuple[float, float], colour: tuple[int, ...]
) -> None:
    """Text on a field of its object's colour, above the box or, at the border, inside it."""
    text = text.encode("ascii", "replace").decode("ascii")  # what the font has
    _, _, width, height = pen.textbbox((0, 0), text)
    left = place[0]
    top = place[1] - height - 2 if place[1] >= height + 2 else place[1]
    pen.rectangle((left, top, left + width + 3, top + height + 2), fill=colour)
    light = sum(colour) > 3 * 128
    pen.text((left + 2, top), text, fill=(0, 0, 0) if light else (255, 255, 255))


def beside(pictures: Sequence[Image.Image]) -> npt.NDArray[np.uint8]:
    """Pictures in one row (H, W, 3), the lower ones filled up with black."""
    height = max(picture.height for picture in pictures)
    row = Image.new("RGB", (sum(picture.width for picture in pictures), height))
    left = 0
    for picture in pictures:
        row.paste(picture, (left, 0))
        left += picture.width
    return np.asarray(row)
