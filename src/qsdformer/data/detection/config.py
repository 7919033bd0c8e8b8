"""The recipe's section on images with boxes; read without PyTorch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from qsdformer.data.base import EvaluateOn, as_image_size, is_image_size
from qsdformer.errors import require
from qsdformer.parsing import option


@dataclass(frozen=True, kw_only=True)
class DetectionData:
    """Which images with boxes to train and evaluate on, and how training images are varied."""

    name: Literal["coco", "voc"] = option("coco", "layout of the files: coco (JSON) or voc (XML)")
    root: str | None = option(None, "the folder with images and annotations")
    train_split: str = option("train", "the split trained on, such as train2017")
    split: str = option("val", "the split evaluated on, such as val2017")
    image_size: int | tuple[int, int] = option(
        128, "pixels of a side, or [height, width], to which images are resized"
    )
    keep_aspect: bool = option(
        False,
        "resize by one factor: the shorter side to image_size, the longer one to at most"
        " the larger of its numbers (default: stretched to exactly image_size)",
    )
    train_sizes: tuple[int, ...] | None = option(
        None,
        "shorter sides of which one is drawn for each training image; none: image_size",
        training=True,
    )
    channels: int = option(3, "1: grey, 3: colour")
    hflip: bool = option(False, "mirror every other training image", training=True)
    vflip: bool = option(False, "turn every other training image upside down", training=True)
    random_crop: bool = option(
        False,
        "the published crop of every other training image, of 384 to 600 pixels a side",
        training=True,
    )
    skip_empty: bool = option(False, "do not train on images without objects", training=True)
    min_size: int = option(
        1, "do not train on images with a shorter side, in pixels", training=True
    )
    train_limit: int | None = option(None, "train on the first so many images", training=True)
    workers: int = option(0, "loader processes; 0 loads in the training process")

    def __post_init__(self) -> None:
        object.__setattr__(self, "image_size", as_image_size(self.image_size))
        require(self, "image_size", is_image_size(self.image_size), "pixels, or [height, width]")
        if self.train_sizes is not None:
            object.__setattr__(self, "train_sizes", tuple(self.train_sizes))
            ok = bool(self.train_sizes) and all(is_image_size(size) for size in self.train_sizes)
            require(self, "train_sizes", ok, "a list of pixels, or none")
        require(self, "channels", self.channels in (1, 3), "1 (grey) or 3 (colour)")
        for name in ("split", "train_split"):
            value = getattr(self, name)
            ok = value not in ("", ".", "..") and not {"/", "\0"} & set(value)
            require(self, name, ok, "the name of a split, such as val or test")
        require(self, "workers", self.workers >= 0, "0 or more")
        require(self, "min_size", self.min_size >= 1, "at least 1")
        ok = self.train_limit is None or self.train_limit >= 1
        require(self, "train_limit", ok, "at least 1, or none")

    @property
    def evaluate_on(self) -> EvaluateOn:
        """Always the split evaluated on."""
        return "test"
