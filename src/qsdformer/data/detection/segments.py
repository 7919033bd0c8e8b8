"""Outlines of objects as COCO writes them, and the masks that they mean.

A segment is a list of polygons, each x1, y1, x2, y2, ... in pixels, or run lengths of a mask read
column by column, that of zeros first (Lin et al., "Microsoft COCO", 2014, and its mask API).
H rows, W columns, K objects.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from qsdformer.errors import one_line

Polygons = tuple[npt.NDArray[np.float64], ...]
Runs = npt.NDArray[np.int64]  # run lengths, which sum to H * W
Segment = Polygons | Runs

LEAST_POINTS = 3  # of a polygon
FARTHEST = 10  # sides of the image beyond its border, where polygons are still cut exactly


def parse_segment(value: Any, size: tuple[int, int]) -> Segment:
    """A segment from COCO's JSON for an image of `size` (H, W); ValueError says what is wrong."""
    if isinstance(value, Mapping):
        return _parse_runs(value, size)
    if not isinstance(value, Sequence) or isinstance(value, str) or not value:
        raise ValueError("its segmentation is neither polygons nor run lengths")
    return tuple(_polygon(points, size) for points in value)


def segment_masks(segments: Sequence[Segment], size: tuple[int, int]) -> npt.NDArray[np.bool_]:
    """Masks (K, H, W) bool of an image of `size` (H, W)."""
    masks = np.zeros((len(segments), *size), bool)
    for mask, segment in zip(masks, segments, strict=True):
        if isinstance(segment, tuple):
            mask[...] = _filled(segment, size)
        else:
            values = np.arange(len(segment)) % 2 == 1
            mask[...] = np.repeat(values, segment).reshape(size, order="F")
    return masks


def encode_mask(mask: npt.NDArray[np.bool_]) -> dict[str, Any]:
    """COCO's compressed run lengths of a mask (H, W), as its result files have them."""
    from faster_coco_eval.core import mask as coco_masks

    encoded = coco_masks.encode(np.asfortranarray(mask, np.uint8))
    counts = encoded["counts"]
    return {
        "size": [int(side) for side in encoded["size"]],
        "counts": counts.decode("ascii") if isinstance(counts, bytes) else counts,
    }


def run_lengths(mask: npt.NDArray[np.bool_]) -> list[int]:
    """Uncompressed run lengths of a mask (H, W)."""
    flat = mask.ravel(order="F")
    changes = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    starts = np.concatenate(([0], changes, [len(flat)]))
    runs = np.diff(starts).tolist()
    return [0, *runs] if flat[0] else runs


def _polygon(points: Any, size: tuple[int, int]) -> npt.NDArray[np.float64]:
    try:
        values = np.asarray(points, np.float64)
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError("its polygon has something else than numbers") from error
    if values.ndim != 1 or len(values) % 2 or len(values) < 2 * LEAST_POINTS:
        raise ValueError("its polygon is no list of x and y of at least three points")
    if not np.isfinite(values).all():
        raise ValueError("its polygon has a number that is not finite")
    # What fills it cuts it at the border, but takes memory for every pixel of an edge.
    sides = np.array([size[1], size[0]], np.float64)
    far = FARTHEST * sides.max()
    return np.clip(values.reshape(-1, 2), -far, sides + far).ravel()


def _parse_runs(value: Mapping[str, Any], size: tuple[int, int]) -> Runs:
    own = value.get("size")
    if not isinstance(own, Sequence) or list(own) != list(size):
        raise ValueError(f"its run lengths are for size {one_line(own)}, not {list(size)}")
    counts = value.get("counts")
    if isinstance(counts, str):
        counts = _decompressed(counts)
    try:
        runs = np.asarray(counts, np.int64)
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError("its run lengths are not whole numbers") from error
    if runs.ndim != 1 or (runs < 0).any() or int(runs.sum()) != size[0] * size[1]:
        raise ValueError(f"its run lengths do not add up to {size[0]} x {size[1]} pixels")
    return runs


def _decompressed(text: str) -> list[int]:
    """Run lengths from COCO's text: 5 bits a character from the lowest on, bit 6 says more follow.

    From the fourth on they are differences to the last but one.
    """
    runs: list[int] = []
    value = shift = 0
    for character in text:
        bits = ord(character) - 48
        if not 0 <= bits < 64 or shift > 60:
            raise ValueError("its run lengths are damaged")
        value |= (bits & 31) << shift
        shift += 5
        if bits & 32:
            continue
        if bits & 16:
            value -= 1 << shift
        runs.append(value + runs[-2] if len(runs) > 2 else value)
        value = shift = 0
    if shift:
        raise ValueError("its run lengths are cut short")
    return runs


def _filled(polygons: Polygons, size: tuple[int, int]) -> npt.NDArray[np.bool_]:
    from faster_coco_eval.core import mask as coco_masks

    parts = coco_masks.frPyObjects([points.tolist() for points in polygons], *size)
    return coco_masks.decode(coco_masks.merge(parts)).astype(bool)
