"""Folders of class folders of images: what is in them, and whether it can be read."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from qsdformer.data.base import existing_folder
from qsdformer.data.decoding import DECODE_ERRORS, find_images, open_image, opened, reason_of
from qsdformer.errors import UserError

LAYOUT = "expected ROOT/train/CLASS/*.jpg and ROOT/val/CLASS/*.jpg"
TAIL = 4096  # bytes at the end of a file, among which its format's end mark must be
END_MARKS = {"JPEG": b"\xff\xd9", "PNG": b"IEND"}
PART = 256  # files that one thread looks at in one go
NAMED = 3  # files that a message names


@dataclass(frozen=True, kw_only=True)
class ClassFolders:
    """One split: class names, and image files with the index of their class."""

    root: Path
    classes: tuple[str, ...]
    samples: tuple[tuple[str, int], ...]
    notes: tuple[str, ...] = ()  # what was left out, for the user to read

    def without_bad(self) -> ClassFolders:
        """Only the images that `find_bad` takes for readable, and a note on the others."""
        bad = dict(find_bad([path for path, _ in self.samples]))
        if not bad:
            return self
        kept = tuple(sample for sample in self.samples if sample[0] not in bad)
        total = f"{len(self.samples):,} images in {self.root}"
        note = f"unreadable, left out: {len(bad):,} of {total}: {_some(bad)}"
        filled = ClassFolders(
            root=self.root, classes=self.classes, samples=kept, notes=(*self.notes, note)
        )
        filled.check_filled()
        return filled

    def check_filled(self) -> None:
        """`UserError` for a class without images, or none at all."""
        if not self.samples:
            raise UserError(f"{self.root} holds no images; {LAYOUT}")
        filled = {label for _, label in self.samples}
        for index, name in enumerate(self.classes):
            if index not in filled:
                folder = self.root / name
                raise UserError(f"{folder} holds no images; add some or remove the class")


def scan_split(root: str | None, split: str) -> ClassFolders:
    """The files of `train` or `val`; `UserError` for an empty class and the like."""
    return _scan(_split_folder(root, split))


def check_same_classes(train: ClassFolders, val: ClassFolders) -> None:
    """`UserError` naming a class that only one of the two has."""
    for one, other in ((train, val), (val, train)):
        extra = sorted(set(one.classes) - set(other.classes))
        if extra:
            raise UserError(
                f"class {extra[0]} is in {one.root} but not in {other.root} "
                f"({len(extra)} such); train and val need the same class folders"
            )


def check_images(paths: Sequence[str], *, skippable: bool = True) -> None:
    """`UserError` that counts and names the images that cannot be read, if there are any.

    `skippable` says whether this data has the option that leaves them out.
    """
    bad = dict(find_bad(paths))
    if bad:
        hint = (
            "replace or remove them, or leave them out with --data.skip_bad true"
            if skippable
            else "replace them"
        )
        raise UserError(
            f"{len(bad):,} of {len(paths):,} images cannot be read: {_some(bad)}; {hint}"
        )


def find_bad(paths: Sequence[str]) -> list[tuple[str, str]]:
    """(path, reason) of each image that is damaged as far as a quick look can tell.

    That look is at the header, at the end mark of the format and at a PNG's checksums; an image
    that fails one of these is decoded, which decides.
    """
    parts = [paths[start : start + PART] for start in range(0, len(paths), PART)]
    with ThreadPoolExecutor() as pool:
        return [found for part in pool.map(_bad_among, parts) for found in part]


def _bad_among(paths: Sequence[str]) -> list[tuple[str, str]]:
    return [(path, reason) for path in paths if (reason := _damage(path)) is not None]


def _damage(path: str) -> str | None:
    if os.path.isfile(path) and _looks_whole(path):
        return None
    try:
        open_image(path)
    except UserError as error:
        cause = error.__cause__
        return reason_of(cause) if cause is not None else str(error)
    return None


def _looks_whole(path: str) -> bool:
    try:
        with open(path, "rb") as file:
            with opened(file) as image:
                kind = image.format or ""
                if kind not in END_MARKS:
                    return False
                image.verify()
            file.seek(0, os.SEEK_END)
            file.seek(max(0, file.tell() - TAIL))
            return END_MARKS[kind] in file.read()
    except DECODE_ERRORS:
        return False


def _some(bad: dict[str, str]) -> str:
    named = [f"{path} ({reason})" for path, reason in list(bad.items())[:NAMED]]
    return ", ".join(named) + (", ..." if len(bad) > NAMED else "")


def _split_folder(root: str | None, split: str) -> Path:
    if root is None:
        raise UserError(f"image_folder needs a folder: give --data.root ROOT; {LAYOUT}")
    folder = existing_folder(root, "image folder", LAYOUT)
    if not (folder / split).is_dir():
        raise UserError(f"image folder {folder} has no folder {split}; {LAYOUT}")
    return folder / split


def _scan(folder: Path) -> ClassFolders:
    names = sorted(e.name for e in folder.iterdir() if e.is_dir() and not e.name.startswith("."))
    if not names:
        raise UserError(f"{folder} has no class folders; {LAYOUT}")
    classes = {os.path.realpath(folder / name) for name in names}
    samples: list[tuple[str, int]] = []
    left_out: list[str] = []
    for label, name in enumerate(names):
        images, others = find_images(folder / name, visited=classes)
        samples += [(path, label) for path in images]
        left_out += others
    notes: tuple[str, ...] = ()
    if left_out:
        count = f"left out: {len(left_out):,}, such as {left_out[0]}"
        notes = (f"files in {folder} that are no images, {count}",)
    scanned = ClassFolders(root=folder, classes=tuple(names), samples=tuple(samples), notes=notes)
    if samples and len(names) < 2:
        raise UserError(
            f"{folder} has only one class, {names[0]}; at least two class folders are "
            "needed to learn to tell them apart"
        )
    scanned.check_filled()
    return scanned
