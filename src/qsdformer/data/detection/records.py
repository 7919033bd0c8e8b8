"""What an image of a detection set is, whatever file format it came in.

K objects of an image, H rows, W columns. A box is x1, y1, x2, y2 in pixels of the image's left and
top edge, so that a box around the whole image is 0, 0, W, H.
"""

from __future__ import annotations

import contextlib
import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from qsdformer.data.base import DataError
from qsdformer.data.decoding import EXIF_ERRORS, in_channels, open_image, opened
from qsdformer.data.detection.segments import Segment, segment_masks
from qsdformer.errors import UserError

Floats = npt.NDArray[np.float32]
Integers = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]


def numbered_categories(class_names: Sequence[str]) -> tuple[int, ...]:
    """The category ids of classes to which no file gives any: 1, 2, ..."""
    return tuple(range(1, len(class_names) + 1))


@dataclass(frozen=True, kw_only=True)
class Record:
    """One image and its objects; the pixels and masks are made when they are asked for.

    `boxes` (K, 4) float32; `labels` (K,) int64, 1 for the first class; `iscrowd` (K,) bool, also of
    objects that are too difficult to count; `area` (K,) float32 in pixels; `segments` is one
    outline an object, or empty where the format has none. `size` is the height and width that the
    annotations are for, or None where they do not say.
    """

    image: str | Image.Image
    image_id: int
    boxes: Floats
    labels: Integers
    iscrowd: Flags
    area: Floats
    segments: tuple[Segment, ...] = ()
    size: tuple[int, int] | None = None

    def pixels(self, channels: int) -> Image.Image:
        """The decoded image, grey (1) or RGB (3), turned the way its annotations are for."""
        if isinstance(self.image, Image.Image):
            return in_channels(self.image, channels)
        try:
            return in_channels(_open_as_annotated(self.image, self.size), channels)
        except UserError as error:
            raise DataError(str(error)) from error

    def masks(self, size: tuple[int, int]) -> Flags:
        """(K, H, W) bool, of an image of `size` (H, W)."""
        return segment_masks(self.segments, size)

    def without_crowds(self) -> Record:
        """Only the objects that are to be learned."""
        if not self.iscrowd.any():
            return self
        return self.select(~self.iscrowd)

    def select(self, kept: Flags) -> Record:
        """Only the objects where `kept` (K,) is true."""
        segments = tuple(s for s, keep in zip(self.segments, kept, strict=False) if keep)
        return Record(
            image=self.image,
            image_id=self.image_id,
            boxes=self.boxes[kept],
            labels=self.labels[kept],
            iscrowd=self.iscrowd[kept],
            area=self.area[kept],
            segments=segments,
            size=self.size,
        )


@dataclass(frozen=True, kw_only=True)
class DetectionSet:
    """The records of one split. `category_ids` are what the file calls the classes, in order."""

    records: tuple[Record, ...]
    class_names: tuple[str, ...]
    category_ids: tuple[int, ...]
    notes: tuple[str, ...] = ()


@dataclass(kw_only=True)
class Objects:
    """Collects the objects of one image, and counts those that cannot be used."""

    height: int | None
    width: int | None
    left_out: Counter[str] = field(default_factory=Counter)
    _boxes: list[tuple[float, float, float, float]] = field(default_factory=list)
    _labels: list[int] = field(default_factory=list)
    _crowds: list[bool] = field(default_factory=list)
    _areas: list[float] = field(default_factory=list)
    _segments: list[Segment] = field(default_factory=list)

    def add(
        self,
        box: tuple[float, float, float, float],
        label: int,
        *,
        crowd: bool = False,
        area: float | None = None,
        segment: Callable[[], Segment] | None = None,
    ) -> None:
        """Take an object; cut it at the image's border; leave it out if nothing remains.

        `segment` makes the outline, and is asked only for an object that stays.
        """
        x1, y1, x2, y2 = box
        if x2 <= x1 or y2 <= y1:
            self.left_out["boxes of zero area"] += 1
            return
        if self.height is not None and self.width is not None:
            cut = (max(0.0, x1), max(0.0, y1), min(float(self.width), x2), min(self.height, y2))
            if cut[2] <= cut[0] or cut[3] <= cut[1]:
                self.left_out["boxes outside the image"] += 1
                return
            # Files round: half a pixel too far is no mistake.
            if max(abs(a - b) for a, b in zip(cut, box, strict=True)) > 0.5:
                self.left_out[CUT] += 1
            box = cut
        self._boxes.append(box)
        self._labels.append(label)
        self._crowds.append(crowd)
        self._areas.append((box[2] - box[0]) * (box[3] - box[1]) if area is None else area)
        if segment is not None:
            self._segments.append(segment())

    def record(self, image: str, image_id: int) -> Record:
        """The image with what was collected."""
        size = None
        if self.height is not None and self.width is not None:
            size = (self.height, self.width)
        return Record(
            image=image,
            image_id=image_id,
            boxes=np.array(self._boxes, np.float32).reshape(-1, 4),
            labels=np.array(self._labels, np.int64),
            iscrowd=np.array(self._crowds, bool),
            area=np.array(self._areas, np.float32),
            segments=tuple(self._segments),
            size=size,
        )


CUT = "boxes beyond the image's border"


def notes_of(left_out: Counter[str], where: str | os.PathLike[str]) -> tuple[str, ...]:
    """A line for each kind of object that was left out or changed."""
    return tuple(
        f"{kind} in {os.fspath(where)}, {'cut at it' if kind == CUT else 'left out'}: {count:,}"
        for kind, count in sorted(left_out.items())
        if count
    )


def check_files(records: Sequence[Record], annotations: Path) -> None:
    """`UserError` that counts and names image files that are not there."""
    missing = [r.image for r in records if isinstance(r.image, str) and not os.path.exists(r.image)]
    if missing:
        more = f" and {len(missing) - 1:,} more" if len(missing) > 1 else ""
        raise UserError(
            f"{annotations} lists {missing[0]}{more}, which does not exist: "
            "is data.root the folder of these images?"
        )


def check_sizes(records: Sequence[Record]) -> None:
    """`UserError` that counts images of another size than their annotations say, and names one."""
    bad = [str(error) for record in records if (error := _size_error(record)) is not None]
    if bad:
        more = f", and {len(bad) - 1:,} more like it" if len(bad) > 1 else ""
        raise UserError(f"{bad[0]}{more}")


def _size_error(record: Record) -> UserError | None:
    """Pixels are decoded only where the header leaves a doubt."""
    path, size = record.image, record.size
    if not isinstance(path, str) or size is None:
        return None
    with contextlib.suppress(*EXIF_ERRORS), opened(path) as image:
        if size == (image.height, image.width):
            return None
    try:
        _open_as_annotated(path, size)
    except UserError as error:
        return error
    return None


def _open_as_annotated(path: str, size: tuple[int, int] | None) -> Image.Image:
    """The image upright, or as it is stored where its annotations were made on that.

    Most tools that draw boxes turn an image as its EXIF data say; COCO's own do not. The height and
    width beside the annotations tell which it was.
    """
    image = open_image(path)
    if size is None or (image.height, image.width) == size:
        return image
    stored = open_image(path, upright=False)
    if (stored.height, stored.width) == size:
        return stored
    raise UserError(
        f"{path} is {image.width}x{image.height} pixels, but its annotations are for "
        f"{size[1]}x{size[0]}"
    )
