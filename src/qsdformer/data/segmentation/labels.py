"""From the labels in mask files to those that a network learns."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from qsdformer.data.base import DataError
from qsdformer.data.decoding import DECODE_ERRORS, opened, reason_of, upright_image
from qsdformer.errors import UserError

IGNORE = 255  # in batches: neither learned nor counted
MOST_CLASSES = IGNORE
LARGEST = 255  # label of an 8-bit mask
DEEPEST = 2**16 - 1  # label of a 16-bit mask
Array = np.ndarray


@dataclass(frozen=True, kw_only=True)
class Labels:
    """What the labels of the files mean: names of the classes, and which label is none of them."""

    classes: tuple[str, ...]
    ignored: int
    reduces_zero: bool = False

    def __post_init__(self) -> None:
        if len(self.classes) > MOST_CLASSES:
            raise UserError(f"{len(self.classes)} classes: at most {MOST_CLASSES} in 8-bit masks")

    @property
    def notes(self) -> tuple[str, ...]:
        """What is unusual about them."""
        index = self.ignored - self.reduces_zero
        if 0 <= index < len(self.classes):
            name = self.classes[index]
            return (f"label {self.ignored} is class {name} and ignored: it is not learned",)
        return ()

    def read(self, path: str) -> Array:
        """The mask in a file as class indices (H, W) uint8, `IGNORE` where there is none.

        Raises `DataError` for a file that is no mask or has labels of no class.
        """
        found = read_labels(path)
        table = self._table(int(found.max(initial=0)))
        mapped = table[found]
        if (mapped < 0).any():
            label = int(found[mapped < 0][0])
            first = int(self.reduces_zero)
            last = first + len(self.classes) - 1
            raise DataError(
                f"mask {path} has label {label}, but the {len(self.classes)} classes are labels "
                f"{first} to {last}: give --data.classes of all, or the --data.ignore_label"
            )
        return mapped.astype(np.uint8)

    def _table(self, largest: int) -> Array:
        """For each label of a file its class, or `IGNORE`; -1 for those that may not be."""
        first = int(self.reduces_zero)
        table = np.full(max(largest, LARGEST) + 1, -1, np.int16)
        table[first : first + len(self.classes)] = np.arange(len(self.classes))
        if self.reduces_zero:
            table[0] = IGNORE
        table[self.ignored] = IGNORE
        return table


def read_labels(path: str) -> Array:
    """The labels (H, W) in a mask file: grey or palette, 8 or 16 bits; `DataError` for others.

    A mask is turned as its EXIF orientation says, as images are.
    """
    try:
        with opened(path) as image:
            image.load()
            mode, values = image.mode, np.asarray(upright_image(image))
    except DECODE_ERRORS as error:
        raise DataError(f"cannot read mask {path}: {reason_of(error)}") from error
    if values.ndim == 3 and (values[..., :3] == values[..., :1]).all():
        values = values[..., 0]  # grey, saved as colours
    if values.ndim != 2 or values.dtype.kind not in "bui":
        raise DataError(f"mask {path} is of mode {mode}: a mask has one label for each pixel")
    for label in (int(values.min(initial=0)), int(values.max(initial=0))):
        if not 0 <= label <= DEEPEST:
            where = "below 0" if label < 0 else f"above {DEEPEST}"
            raise DataError(
                f"mask {path} has label {label}, {where}: a mask has one class's number for each "
                "pixel"
            )
    return values.astype(np.uint16) if values.dtype.itemsize > 1 else values.astype(np.uint8)
