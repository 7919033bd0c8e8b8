"""The recipe's section on labelled images; read without PyTorch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

from qsdformer.data.base import (
    LARGEST_IMAGE,
    EvaluateOn,
    as_image_size,
    is_image_size,
)
from qsdformer.errors import require
from qsdformer.parsing import option

SourceName = Literal["digits", "fashion_mnist", "cifar10", "cifar100", "image_folder"]


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Which images to train and evaluate on, and how training images are varied.

    All sources but `image_folder` are held in memory, and it is with `in_memory`: their training
    images are varied by `crop_padding`. Images decoded from a folder when they are needed always
    go through timm's random resized crop. `hflip`, `auto_augment`, `random_erasing`, `mixup` and
    `cutmix` are for both.
    """

    name: SourceName = option(..., "the source")
    root: str | None = option(None, "the source's folder or archive; digits need none")
    download: bool = option(
        False, "fashion_mnist, cifar: torchvision's download, if no folder has it"
    )
    image_size: int | tuple[int, int] | None = option(
        None,
        "pixels: a side, or height and width; none: digits 32, fashion_mnist 28, cifar 32, "
        "image_folder 224, or 32 in memory",
    )
    in_memory: bool = option(False, "image_folder: hold all images in memory, resized once")
    skip_bad: bool = option(
        False, "leave unreadable files of a folder out instead of refusing to train"
    )
    split: str = option("val", "the split evaluated on, of folders the one beside train")
    train_limit: int | None = option(
        None, "train on this many images of a fixed permutation", training=True
    )
    evaluate_on: EvaluateOn = option(
        "test", "holdout: training images that are left out of training"
    )
    hflip: bool = option(False, "mirror every other training image", training=True)
    crop_padding: int = option(
        0, "pixels of black border before a random crop of the same size", training=True
    )
    auto_augment: str | None = option(
        None, "a timm policy, for example rand-m9-mstd0.5-inc1", training=True
    )
    random_erasing: float = option(
        0.0, "probability that a box of the image becomes noise", training=True
    )
    mixup: float = option(
        0.0, "alpha of the share of a second image added to each; 0: none", training=True
    )
    cutmix: float = option(
        0.0, "alpha of the share of a second image pasted into each; 0: none", training=True
    )
    mixup_off_epoch: int | None = option(
        None, "neither mixup nor cutmix after so many epochs", training=True
    )
    workers: int = option(0, "loader processes; 0 loads in the program's own process")

    def __post_init__(self) -> None:
        for name, literal in (("name", SourceName), ("evaluate_on", EvaluateOn)):
            allowed = get_args(literal)
            require(self, name, getattr(self, name) in allowed, f"one of {', '.join(allowed)}")
        for name in ("train_limit", "mixup_off_epoch"):
            value = getattr(self, name)
            require(self, name, value is None or value >= 1, "at least 1, or none")
        object.__setattr__(self, "image_size", as_image_size(self.image_size))
        ok = self.image_size is None or is_image_size(self.image_size)
        size = f"1 to {LARGEST_IMAGE} pixels, two such numbers (height, width), or none"
        require(self, "image_size", ok, size)
        for name in ("crop_padding", "workers"):
            require(self, name, getattr(self, name) >= 0, "0 or more")
        ok = self.split not in ("", ".", "..") and not {"/", "\0"} & set(self.split)
        require(self, "split", ok, "the name of a folder, such as val or test")
        ok = self.split == "val" or self.evaluate_on == "test"
        require(self, "split", ok, "left out, or evaluate_on test: holdout has its own images")
        require(self, "random_erasing", 0 <= self.random_erasing <= 1, "in [0, 1]")
        for name in ("mixup", "cutmix"):
            value = getattr(self, name)
            require(self, name, math.isfinite(value) and value >= 0, "0 (off) or more")
        self._check_source_options()

    @property
    def held_in_memory(self) -> bool:
        """Whether all images are decoded once, before training."""
        return self.name != "image_folder" or self.in_memory

    def _check_source_options(self) -> None:
        downloads = self.name in ("fashion_mnist", "cifar10", "cifar100")
        folders = self.name in ("image_folder", "cifar10", "cifar100")
        in_memory = "0: image_folder trains on random resized crops unless in_memory is true"
        rules = {
            "root": (None, self.name != "digits", "none: digits come with scikit-learn"),
            "download": (False, downloads, "false: only fashion_mnist and cifar have one"),
            "skip_bad": (False, folders, "false: only folders of images may have bad ones"),
            "in_memory": (False, self.name == "image_folder", "false: this source always is"),
            "split": ("val", folders, "val: only folders of images have others"),
            "crop_padding": (0, self.held_in_memory, in_memory),
        }
        for name, (unused, usable, allowed) in rules.items():
            ok = usable or getattr(self, name) == unused
            require(self, name, ok, f"{allowed} (the data is {self.name})")
