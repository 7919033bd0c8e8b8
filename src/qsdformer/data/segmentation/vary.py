"""Random variation of an image and its mask, drawn from one generator for each image.

H rows, W columns; images (H, W, 3) uint8, masks (H, W) uint8 of class indices.
"""

from __future__ import annotations

import numpy as np
from PIL import Image

from qsdformer.data.segmentation.labels import IGNORE

Array = np.ndarray
Size = tuple[int, int]  # height, width

CROP_TRIES = 10  # of crops in which one class has too large a share (mmsegmentation's number)

# Photometric distortion as usual for segmentation (SSD, Liu et al., 2016), each with probability .5
BRIGHTNESS = 32  # of 255, up or down
CONTRAST = (0.5, 1.5)
SATURATION = (0.5, 1.5)
HUE = 0.1  # of the colour circle, up or down


def resized(image: Array, mask: Array, size: Size) -> tuple[Array, Array]:
    """Both at `size`: the image bilinear, antialiased when shrinking, the mask by nearest pixel."""
    return resized_image(image, size), resized_mask(mask, size)


def resized_image(image: Array, size: Size) -> Array:
    """(H, W, 3) uint8 at `size`, as Pillow resizes."""
    if image.shape[:2] == size:
        return image
    return np.asarray(Image.fromarray(image).resize(size[::-1], Image.Resampling.BILINEAR))


def resized_mask(mask: Array, size: Size) -> Array:
    """(H, W) uint8 at `size`, by nearest pixel."""
    if mask.shape == size:
        return mask
    return np.asarray(Image.fromarray(mask).resize(size[::-1], Image.Resampling.NEAREST))


def random_crop(
    image: Array,
    mask: Array,
    size: Size,
    rng: np.random.Generator,
    *,
    most: float,
    fill: tuple[int, ...],
) -> tuple[Array, Array]:
    """A random window of `size`; what is smaller is first padded with `fill` and `IGNORE`.

    A window in which one class has more than the share `most` of the labelled pixels is drawn
    again, a few times at most.
    """
    image, mask = _padded(image, mask, size, rng, fill)
    spare = [have - want for have, want in zip(mask.shape, size, strict=True)]
    for _ in range(CROP_TRIES):
        top, left = (int(rng.integers(room + 1)) for room in spare)
        window = np.s_[top : top + size[0], left : left + size[1]]
        if most >= 1 or largest_share(mask[window]) <= most:
            break
    return image[window], mask[window]


def largest_share(mask: Array) -> float:
    """The share of the commonest class among the labelled pixels; 1 where there are none."""
    counts = np.bincount(mask.ravel(), minlength=IGNORE + 1)[:IGNORE]
    total = int(counts.sum())
    return float(counts.max()) / total if total else 1.0


def _padded(
    image: Array, mask: Array, size: Size, rng: np.random.Generator, fill: tuple[int, ...]
) -> tuple[Array, Array]:
    missing = [max(0, want - have) for have, want in zip(mask.shape, size, strict=True)]
    if not any(missing):
        return image, mask
    height, width = (have + more for have, more in zip(mask.shape, missing, strict=True))
    top, left = (int(rng.integers(more + 1)) for more in missing)
    window = np.s_[top : top + mask.shape[0], left : left + mask.shape[1]]
    canvas = np.empty((height, width, 3), np.uint8)
    canvas[...] = fill
    canvas[window] = image
    labels = np.full((height, width), IGNORE, np.uint8)
    labels[window] = mask
    return canvas, labels


def photometric(image: Array, rng: np.random.Generator) -> Array:
    """Brightness, contrast, saturation and hue, each varied for every other image on average.

    Contrast comes before or after the colours, by chance.
    """
    values = image.astype(np.float32)
    if rng.random() < 0.5:
        values += rng.uniform(-BRIGHTNESS, BRIGHTNESS)
    contrast_first = rng.random() < 0.5
    factor = rng.uniform(*CONTRAST) if rng.random() < 0.5 else 1.0
    if contrast_first:
        values *= factor
    values = _colours(np.clip(values, 0, 255), rng)
    if not contrast_first:
        values = values * factor
    return np.clip(values.round(), 0, 255).astype(np.uint8)


def _colours(values: Array, rng: np.random.Generator) -> Array:
    stronger = rng.uniform(*SATURATION) if rng.random() < 0.5 else 1.0
    shift = rng.uniform(-HUE, HUE) if rng.random() < 0.5 else 0.0
    if stronger == 1.0 and shift == 0.0:
        return values
    hsv = np.asarray(Image.fromarray(values.round().astype(np.uint8)).convert("HSV"))
    hsv = hsv.astype(np.float32)
    hsv[..., 0] = (hsv[..., 0] + 256 * shift) % 256
    hsv[..., 1] = np.clip(hsv[..., 1] * stronger, 0, 255)
    varied = Image.fromarray(hsv.astype(np.uint8), mode="HSV").convert("RGB")
    return np.asarray(varied).astype(np.float32)
