"""Which image and mask files belong together, in the layouts that segmentation sets come in."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from qsdformer.data.base import existing_folder
from qsdformer.data.decoding import find_images
from qsdformer.data.folders import find_bad
from qsdformer.errors import UserError
from qsdformer.files import at_home

# Folders of images and of masks below the root, for a split.
LAYOUTS = (
    ("{split}/images", "{split}/masks"),
    ("images/{split}", "masks/{split}"),
    ("images/{split}", "annotations/{split}"),  # ADE20K
    ("{split}", "{split}annot"),  # CamVid as SegNet's authors gave it out
)
OTHER_NAMES = {"train": "training", "val": "validation"}  # what ADE20K calls its splits
ADE20K_FOLDER = "ADEChallengeData2016"
EXPECTED = "expected ROOT/SPLIT/images and ROOT/SPLIT/masks with files of equal names"
CLASSES_FILE = "classes.txt"


@dataclass(frozen=True)
class Pair:
    """An image file and its mask's."""

    image: str
    mask: str


@dataclass(frozen=True, kw_only=True)
class Pairs:
    """The files of a split, sorted by name, and what the user should know of them."""

    pairs: tuple[Pair, ...]
    notes: tuple[str, ...] = ()


def find_pairs(root: str | None, split: str, *, skip_bad: bool) -> Pairs:
    """The images of a split, each with the mask of the same name.

    Raises `UserError` where there are none, and for images without a mask unless `skip_bad` leaves
    them out, as it does with files that cannot be read.
    """
    images_folder, masks_folder = _folders(root, split)
    images, masks = _by_name(images_folder), _by_name(masks_folder)
    if not images:
        raise UserError(f"{images_folder} holds no images; {EXPECTED}")
    notes = []
    alone = [name for name in images if name not in masks]
    if alone:
        what = f"{len(alone):,} of {len(images):,} images have no mask in {masks_folder}, such as "
        what += images[alone[0]]
        if not skip_bad or len(alone) == len(images):
            hint = "a mask has the name of its image; --data.skip_bad true leaves them out"
            raise UserError(f"{what}; {hint}")
        notes.append(f"left out: {what}")
    spare = [name for name in masks if name not in images]
    if spare:
        notes.append(f"masks without an image, left out: {len(spare):,}, such as {masks[spare[0]]}")
    pairs = [Pair(images[name], masks[name]) for name in images if name in masks]
    if skip_bad:
        bad = dict(find_bad([path for pair in pairs for path in (pair.image, pair.mask)]))
        kept = [p for p in pairs if p.image not in bad and p.mask not in bad]
        if bad:
            first, reason = next(iter(bad.items()))
            notes.append(f"unreadable, left out: {len(bad):,} files, such as {first} ({reason})")
        if not kept:
            raise UserError(f"none of the images and masks in {images_folder} can be read")
        pairs = kept
    return Pairs(pairs=tuple(pairs), notes=tuple(notes))


def class_names_in(root: str | None) -> tuple[str, ...] | None:
    """The lines of ROOT/classes.txt, if there is one; `UserError` for one of fewer than two."""
    file = at_home(root or "") / CLASSES_FILE
    if root is None or not file.is_file():
        return None
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {file}: {error}") from error
    names = tuple(line.strip() for line in lines if line.strip())
    if len(names) < 2 or len(set(names)) < len(names):
        raise UserError(f"{file}: two or more different class names are needed, one a line")
    return names


def _folders(root: str | None, split: str) -> tuple[Path, Path]:
    if root is None:
        raise UserError(f"images with masks need a folder: give --data.root ROOT; {EXPECTED}")
    folder = existing_folder(root, "the folder", EXPECTED)
    for base in (folder, folder / ADE20K_FOLDER):
        for name in (split, OTHER_NAMES.get(split, split)):
            for layout in LAYOUTS:
                images, masks = (base / part.format(split=name) for part in layout)
                if images.is_dir() and masks.is_dir():
                    return images, masks
    raise UserError(f"{folder} has no images and masks of a split {split}; {EXPECTED}")


def _by_name(folder: Path) -> dict[str, str]:
    """The image files below a folder by their path in it without ending, sorted."""
    found, _ = find_images(folder)
    names: dict[str, str] = {}
    for path in found:
        name = os.path.splitext(os.path.relpath(path, folder))[0]
        if name in names:
            raise UserError(f"{names[name]} and {path} have the same name: keep one of the two")
        names[name] = path
    return dict(sorted(names.items()))
