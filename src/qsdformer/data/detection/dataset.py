"""Records as batches of tensors: images of many sizes, and what is in them.

A batch is a pair of lists: images (C, H, W) float32 in [0, 1], and as many targets.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from qsdformer.data.augment import image_keys
from qsdformer.data.base import DataInfo, sides
from qsdformer.data.detection.config import DetectionData
from qsdformer.data.detection.records import Record
from qsdformer.data.detection.vary import (
    Sample,
    Variation,
    fitted_size,
    resized,
    resized_image,
    to_tensor,
    without_vanished,
)
from qsdformer.data.preprocessing import size_within

# boxes (K, 4) float32, labels (K,) int64, iscrowd (K,) int64, area (K,) float32, masks (K, H, W)
# uint8 where they are wanted, image_id () int64, size (2,) int64: height and width of the file.
Target: TypeAlias = "dict[str, Tensor]"
DetectionBatch: TypeAlias = "tuple[list[Tensor], list[Target]]"


@dataclass(frozen=True, kw_only=True)
class Preparation:
    """How an image is resized for the network: to exactly `size`, or by one factor.

    With `keep_aspect` the shorter side becomes the smaller of `size`, unless the longer one would
    exceed the larger; with `fits`, for an exported network, the image fits into `size` as it lies.
    """

    size: tuple[int, int]  # height and width
    keep_aspect: bool
    channels: int
    fits: bool = False

    @classmethod
    def of(cls, config: DetectionData, info: DataInfo | None = None) -> Preparation:
        """As evaluation on this data resizes; with the channels of a model's images, if given."""
        return cls(
            size=sides(config.image_size),
            keep_aspect=config.keep_aspect,
            channels=config.channels if info is None else info.channels,
            fits=info is not None and info.fit == "pad",
        )

    def target_size(self, size: tuple[int, int], shorter: int | None = None) -> tuple[int, int]:
        """What an image of `size` (height, width) becomes; with another shorter side if given."""
        own = min(self.size)
        shorter = own if shorter is None else shorter
        if self.keep_aspect:
            return fitted_size(size, shorter, max(self.size))
        if self.fits:
            return size_within(size, self.size)
        height, width = (round(side * shorter / own) for side in self.size)
        return height, width

    def __call__(self, image: Image.Image) -> Tensor:
        """(C, H, W) float32 in [0, 1] of a decoded image in the right mode."""
        return to_tensor(resized_image(image, self.target_size((image.height, image.width))))


@dataclass(frozen=True, kw_only=True)
class DetectionDataset:
    """Records (N), decoded when asked for.

    For training, with `seed`, a request is `index + epoch * N`, from which follows what is random
    about it; crowds are left out, boxes and masks are those of the varied image. Without `seed`,
    boxes and masks are those of the file, at its own size, while the image is resized.
    """

    records: tuple[Record, ...]
    preparation: Preparation
    masks: bool
    seed: int | None = None
    variation: Variation | None = None

    def __len__(self) -> int:
        return len(self.records)

    def __getitems__(self, requests: Sequence[int]) -> DetectionBatch:
        wanted = torch.as_tensor(requests, dtype=torch.int64)
        indices = wanted % len(self)
        if self.seed is None:
            pairs = [self._evaluated(self.records[index]) for index in indices.tolist()]
        else:
            keys = image_keys(self.seed, wanted // len(self), indices)
            pairs = [
                self._varied(self.records[index], np.random.default_rng(key))
                for index, key in zip(indices.tolist(), keys, strict=True)
            ]
        return [image for image, _ in pairs], [target for _, target in pairs]

    @property
    def unread(self) -> tuple[str, ...]:
        """The image files that are decoded only when asked for."""
        return tuple(r.image for r in self.records if isinstance(r.image, str))

    def _evaluated(self, record: Record) -> tuple[Tensor, Target]:
        image = record.pixels(self.preparation.channels)
        size = image.height, image.width
        masks = record.masks(size) if self.masks else None
        sample = Sample(
            image=image, boxes=record.boxes, masks=masks, kept=np.ones(len(record.boxes), bool)
        )
        return self.preparation(image), _target(record, sample, size)

    def _varied(self, record: Record, rng: np.random.Generator) -> tuple[Tensor, Target]:
        record = record.without_crowds()
        image = record.pixels(self.preparation.channels)
        size = image.height, image.width
        sample = Sample(
            image=image,
            boxes=record.boxes,
            masks=record.masks(size) if self.masks else None,
            kept=np.ones(len(record.boxes), bool),
        )
        shorter = None
        if self.variation is not None:
            sample, shorter = self.variation(sample, rng)
        now = sample.image.height, sample.image.width
        sample = without_vanished(resized(sample, self.preparation.target_size(now, shorter)))
        return to_tensor(sample.image), _target(record.select(sample.kept), sample, size)


def _target(record: Record, sample: Sample, size: tuple[int, int]) -> Target:
    values: dict[str, Any] = {
        "boxes": torch.from_numpy(np.ascontiguousarray(sample.boxes, np.float32)).view(-1, 4),
        "labels": torch.from_numpy(record.labels.copy()),
        "iscrowd": torch.from_numpy(record.iscrowd.astype(np.int64)),
        "area": torch.from_numpy(record.area.copy()),
        "image_id": torch.tensor(record.image_id),
        "size": torch.tensor(size),
    }
    if sample.masks is not None:
        values["masks"] = torch.from_numpy(np.ascontiguousarray(sample.masks).astype(np.uint8))
    return values
