"""The recipe's section on images with masks; read without PyTorch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from qsdformer.data.base import EvaluateOn, ImageSize, as_image_size, is_image_size
from qsdformer.data.segmentation.names import ADE20K, CAMVID
from qsdformer.errors import require
from qsdformer.parsing import option

FOLDER = "mask_folder"  # of any classes
SOURCES = (FOLDER, "camvid", "ade20k")
LARGEST_LABEL = 255  # of an 8-bit mask
# What the published sets call their classes, and the label that stands for none of them.
PUBLISHED: dict[str, tuple[tuple[str, ...], int]] = {
    "camvid": (CAMVID, 11),
    "ade20k": (ADE20K, 255),
}


@dataclass(frozen=True, kw_only=True)
class SegmentationData:
    """Which images and masks to train and evaluate on, and how training images are varied.

    Without `shorter_side` whole images are brought to `image_size`, and so are their masks. With
    it images keep their proportions, the shorter side becoming that long (the longer one at most
    `longest_side`): training then crops `image_size`, evaluation looks at all of the image.
    """

    name: Literal["mask_folder", "camvid", "ade20k"] = option(
        "mask_folder", "a published set, or any folder with masks"
    )
    root: str | None = option(None, "the folder with images and masks")
    image_size: int | tuple[int, int] = option(
        224, "pixels that the network is trained on: a square's side, or [height, width]"
    )
    shorter_side: int | None = option(None, "pixels; none: whole images become image_size")
    longest_side: int | None = option(None, "pixels that shorter_side may not lead beyond")
    train_split: str = option("train", "the split trained on")
    split: str = option("val", "the split evaluated on")
    classes: tuple[str, ...] | None = option(
        None, "names of labels 0, 1, ...; none: the published ones, or those of ROOT/classes.txt"
    )
    ignore_label: int | None = option(
        None, "label that is neither learned nor counted; none: 255, or that of the published set"
    )
    reduce_zero_label: bool | None = option(
        None, "label 0 is ignored and 1 is the first class; none: true for ade20k"
    )
    skip_bad: bool = option(False, "leave unreadable files out instead of refusing to train")
    in_memory: bool = option(False, "keep decoded images and masks in memory")
    train_limit: int | None = option(
        None, "train on this many images of a fixed permutation", training=True
    )
    scale: tuple[float, float] = option(
        (1.0, 1.0), "range of random factors on the size", training=True
    )
    max_class_share: float = option(
        1.0,
        "crops in which one class has more than this share are drawn anew, ten times at most",
        training=True,
    )
    hflip: bool = option(False, "mirror every other image", training=True)
    photometric: bool = option(
        False,
        "random brightness, contrast, saturation and hue, as is usual for segmentation",
        training=True,
    )
    full_size: bool = option(
        False, "evaluate at the size of the mask files, to which logits are resized"
    )
    workers: int = option(0, "loader processes; 0 loads in the training process")

    def __post_init__(self) -> None:
        object.__setattr__(self, "image_size", as_image_size(self.image_size))
        object.__setattr__(self, "scale", tuple(self.scale))
        if self.classes is not None:
            object.__setattr__(self, "classes", tuple(self.classes))
            named = len(self.classes) >= 2 and len(set(self.classes)) == len(self.classes)
            require(self, "classes", named, "two or more names, all different")
        allowed = SOURCES
        require(self, "name", self.name in allowed, f"one of {', '.join(allowed)}")
        require(self, "image_size", is_image_size(self.image_size), "pixels, or [height, width]")
        for name in ("shorter_side", "longest_side", "train_limit"):
            value = getattr(self, name)
            require(self, name, value is None or value >= 1, "at least 1, or none")
        ok = self.longest_side is None or (
            self.shorter_side is not None and self.longest_side >= self.shorter_side
        )
        require(self, "longest_side", ok, "given with shorter_side, and not below it")
        for name in ("train_split", "split"):
            value = getattr(self, name)
            ok = value not in ("", ".", "..") and not {"/", "\0"} & set(value)
            require(self, name, ok, "the name of a split, such as val or test")
        ok = self.ignore_label is None or 0 <= self.ignore_label <= LARGEST_LABEL
        require(self, "ignore_label", ok, f"0 to {LARGEST_LABEL}, or none")
        ok = not (self.reduces_zero and self.ignore_label == 0)
        require(self, "ignore_label", ok, "left out: reduce_zero_label ignores label 0 already")
        ok = all(map(math.isfinite, self.scale)) and 0 < self.scale[0] <= self.scale[1]
        require(self, "scale", ok, "two rising factors above 0")
        require(self, "max_class_share", 0 < self.max_class_share <= 1, "in (0, 1]")
        require(self, "workers", self.workers >= 0, "0 or more")

    @property
    def reduces_zero(self) -> bool:
        """Whether label 0 of the files means none of the classes."""
        return self.name == "ade20k" if self.reduce_zero_label is None else self.reduce_zero_label

    @property
    def ignored(self) -> int:
        """The label of the files that stands for none of the classes."""
        if self.ignore_label is not None:
            return self.ignore_label
        return PUBLISHED[self.name][1] if self.name in PUBLISHED else LARGEST_LABEL

    @property
    def evaluate_on(self) -> EvaluateOn:
        """Always the split evaluated on."""
        return "test"

    @property
    def size(self) -> ImageSize:
        """`image_size`."""
        return self.image_size
