"""What every data source shares: its configuration, what a model must know of it, its datasets.

PyTorch is not imported here, so that recipes can be read without it.
"""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeAlias, get_args

from qsdformer.errors import UserError, require
from qsdformer.files import at_home

if TYPE_CHECKING:
    from torch import Tensor

EvaluateOn = Literal["test", "holdout"]
Fit = Literal["crop", "stretch", "pad"]
ImageSize: TypeAlias = "int | tuple[int, int]"  # pixels: a square's side, or (height, width)
LARGEST_IMAGE = 8192  # pixels of a side
LARGEST_CHANNELS = 1024
INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "box", "hamming", "lanczos")
# Mean and standard deviation of ImageNet's pixels in [0, 1]; timm has them too, but takes seconds.
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SMALLEST_CROP = 0.01  # share of a resized image, in both directions

Batch: TypeAlias = (
    "tuple[Tensor, Tensor]"  # images (B, C, H, W) float32, normalised; labels (B,) int64
)


def sides(size: ImageSize) -> tuple[int, int]:
    """Height and width in pixels of an image size."""
    return (size, size) if isinstance(size, int) else size


def size_text(size: ImageSize) -> str:
    """An image size as a message shows it: 32, or width x height as in 240x180."""
    height, width = sides(size)
    return str(height) if height == width else f"{width}x{height}"


def as_image_size(value: Any) -> Any:
    """Two equal sides as one number and a list as a tuple; anything else as it is."""
    if isinstance(value, (list, tuple)) and len(value) == 2:
        return value[0] if value[0] == value[1] else tuple(value)
    return value


def is_image_size(value: Any) -> bool:
    """Whether a value is one or two whole numbers of pixels that an image may have."""
    numbers = value if isinstance(value, tuple) and len(value) == 2 else (value,)
    whole = all(isinstance(n, int) and not isinstance(n, bool) for n in numbers)
    return whole and all(1 <= n <= LARGEST_IMAGE for n in numbers)


def as_text(name: str) -> str:
    r"""A folder's name as text that can be written: UTF-8 in any locale, other bytes as \xff."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def existing_folder(root: str | os.PathLike[str], what: str, layout: str) -> Path:
    """`root` as a folder that is there; the `UserError` for none says what is expected in it."""
    folder = at_home(root)
    if not folder.is_dir():
        advice = "give another as --data.root FOLDER"
        raise UserError(f"{what} {folder} does not exist: {advice}; {layout}")
    return folder


def numbered_classes(count: int) -> tuple[str, ...]:
    """What classes are called that nobody has named: by their numbers."""
    return tuple(map(str, range(count)))


@dataclass(frozen=True, kw_only=True)
class Preparation:
    """How an image is prepared for a network.

    `image_size` is what the network sees: a square's side in pixels, or (height, width); `mean`
    and `std` are per channel, of pixels in [0, 1]. With `fit` crop an image is resized until it
    covers that size and cropped at its centre, `crop_pct` being the share of the resized image
    that is kept; with stretch the whole image is resized to exactly that size, and with pad by one
    factor to the largest that fits in it, the rest being filled on the right and below.
    """

    image_size: ImageSize
    channels: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str = "bilinear"
    crop_pct: float = 1.0
    fit: Fit = "crop"

    @property
    def sides(self) -> tuple[int, int]:
        """Height and width in pixels of what the network sees."""
        return sides(self.image_size)

    def require_possible(self) -> None:
        """ValueError that names the field by which no image can be prepared."""
        allowed = f"a whole number of pixels, 1 to {LARGEST_IMAGE}, or two: height and width"
        require(self, "image_size", is_image_size(self.image_size), allowed)
        require(self, "fit", self.fit in get_args(Fit), "crop, stretch or pad")
        known = self.interpolation in INTERPOLATIONS
        require(self, "interpolation", known, f"one of {', '.join(INTERPOLATIONS)}")
        ok = isinstance(self.channels, int) and 1 <= self.channels <= LARGEST_CHANNELS
        allowed = f"1 (grey), 3 (RGB), or of other data up to {LARGEST_CHANNELS}"
        require(self, "channels", ok, allowed)
        for field in ("mean", "std"):
            values = getattr(self, field)
            require(self, field, all(map(math.isfinite, values)), "finite numbers")
            one_each = len(values) == self.channels
            require(self, field, one_each, f"one value for each of {self.channels} channels")
        require(self, "std", min(self.std) > 0, "above 0")
        require(self, "crop_pct", SMALLEST_CROP <= self.crop_pct <= 1, f"{SMALLEST_CROP} to 1")


@dataclass(frozen=True, kw_only=True)
class DataInfo(Preparation):
    """What a model needs to know about its inputs; stored in checkpoints as plain values."""

    class_names: tuple[str, ...]

    def __post_init__(self) -> None:
        for name in ("mean", "std"):
            values = tuple(float(value) for value in getattr(self, name))
            object.__setattr__(self, name, values)
        object.__setattr__(self, "class_names", tuple(map(as_text, self.class_names)))
        object.__setattr__(self, "image_size", as_image_size(self.image_size))
        self.require_possible()

    def to_dict(self) -> dict[str, Any]:
        """Plain values only, as stored in checkpoints; `fit` only where it is not crop."""
        values = dataclasses.asdict(self)
        if self.fit == "crop":
            del values["fit"]
        return {name: list(v) if isinstance(v, tuple) else v for name, v in values.items()}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> DataInfo:
        """The inverse of `to_dict`; unknown fields are an error that names them."""
        unknown = sorted(set(values) - {f.name for f in dataclasses.fields(cls)})
        if unknown:
            raise ValueError(f"unknown data information fields: {', '.join(unknown)}")
        return cls(**values)


class ImageDataset(Protocol):
    """Labelled images that answer for a whole batch at once.

    An entry of a batch request is `index + epoch * len(dataset)`, so that what is random about
    an image follows from the request alone, in whatever process it is served.
    """

    @property
    def info(self) -> DataInfo:
        """What the images are like."""
        ...

    @property
    def notes(self) -> tuple[str, ...]:
        """What the user should know of the files, a line each."""
        ...

    @property
    def labels(self) -> Tensor | None:
        """(N,) int64; None where images have no labels as a whole."""
        ...

    def __len__(self) -> int: ...

    def __getitems__(self, requests: Sequence[int]) -> Batch: ...

    @property
    def unread(self) -> Sequence[str]:
        """The image files that are decoded only when asked for; none of a set in memory."""
        ...

    def select(self, indices: Tensor) -> ImageDataset:
        """The same dataset with only the images at `indices` (K,) int64, in that order."""
        ...

    def without_augmentation(self) -> ImageDataset:
        """The same images as evaluation sees them."""
        ...

    def prepared_as(self, info: DataInfo) -> ImageDataset:
        """The same images, prepared for a model that wants them as `info` says, if they can be.

        Images in memory keep their size; class names and channels stay those of the data.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class Source:
    """What a source provides: `train` reads and augments training images, `test` does not.

    Training images are read only when they are asked for: evaluation does not need them.
    """

    info: DataInfo
    train: Callable[[], ImageDataset]
    test: ImageDataset


def bad_file(path: str | os.PathLike[str], reason: str) -> UserError:
    """The error about a damaged file of a published data set."""
    return UserError(f"cannot read {os.fspath(path)}: {reason}; get the file again")


class DataError(UserError):
    """A `UserError` about one file of a dataset that stays one line across loader processes.

    A DataLoader rebuilds a worker's exception from its type and the text of its whole traceback;
    the last line of that text is the message this error began with.
    """

    def __init__(self, message: str) -> None:
        if message.startswith("Caught ") and "\n" in message:
            message = message.strip().splitlines()[-1].partition(": ")[2]
        super().__init__(message)
