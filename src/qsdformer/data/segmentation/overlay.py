"""Masks as pictures: colours laid over the image, and a legend beside it; needs Pillow only."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

from qsdformer.data.segmentation.labels import IGNORE
from qsdformer.errors import one_line

Array = np.ndarray

OPACITY = 0.55  # of colours over an image
ROW = 16  # pixels of a line of the legend
MARGIN = 4
SWATCH = 12
BLACK, WHITE = (0, 0, 0), (255, 255, 255)


def palette(count: int) -> Array:
    """Colours (count, 3) uint8: those that PASCAL VOC numbers from 1 on; its 0 is black.

    The bits of a number are dealt out to red, green and blue, the first ones brightest.
    """
    numbers = np.arange(1, count + 1)
    colours = np.zeros((count, 3), np.int64)
    for bit in range(8):
        for channel in range(3):
            colours[:, channel] |= ((numbers >> (3 * bit + channel)) & 1) << (7 - bit)
    return colours.astype(np.uint8)


def coloured(mask: Array, classes: int) -> Array:
    """A mask (H, W) of class indices as colours (H, W, 3); black where there is none."""
    table = np.zeros((IGNORE + 1, 3), np.uint8)
    table[:classes] = palette(classes)
    return table[mask]


def overlaid(image: Array, mask: Array, classes: int) -> Array:
    """The colours of a mask (H, W) over an image (H, W, 3), both uint8."""
    mixed = OPACITY * coloured(mask, classes) + (1 - OPACITY) * image
    shown = (mask != IGNORE)[..., None]
    return np.where(shown, mixed.round().astype(np.uint8), image)


def with_legend(picture: Array, mask: Array, names: Sequence[str]) -> Image.Image:
    """A picture (H, W, 3) with the names and colours of the classes in `mask` at its right.

    The commonest class comes first, each with its share of the pixels.
    """
    counts = np.bincount(mask.ravel(), minlength=IGNORE + 1)[: len(names)]
    order = [int(index) for index in np.argsort(-counts, kind="stable") if counts[index]]
    total = max(1, int(counts.sum()))
    lines = [f"{one_line(names[index])} {counts[index] / total:.1%}" for index in order]
    drawing = ImageDraw.Draw(Image.new("RGB", (1, 1)))
    width = max([round(drawing.textlength(line)) for line in lines], default=0)
    height = max(picture.shape[0], ROW * len(lines) + MARGIN)
    across = picture.shape[1] + width + SWATCH + 3 * MARGIN
    canvas = Image.new("RGB", (across, height), WHITE)
    canvas.paste(Image.fromarray(np.ascontiguousarray(picture)), (0, 0))
    drawing = ImageDraw.Draw(canvas)
    colours = palette(len(names))
    left = picture.shape[1] + MARGIN
    for row, (index, line) in enumerate(zip(order, lines, strict=True)):
        top = MARGIN + row * ROW
        colour = tuple(int(value) for value in colours[index])
        drawing.rectangle((left, top, left + SWATCH - 1, top + SWATCH - 1), fill=colour)
        drawing.text((left + SWATCH + MARGIN, top), line, fill=BLACK)
    return canvas
