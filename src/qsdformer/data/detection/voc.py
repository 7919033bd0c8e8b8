"""Object annotations in Pascal VOC's XML: one file an image, and lists of images by split.

Everingham et al., "The Pascal Visual Object Classes (VOC) Challenge", 2010. The layout is
ROOT/ImageSets/Main/SPLIT.txt, ROOT/Annotations/NAME.xml and ROOT/JPEGImages/NAME.jpg. Pixels are
counted from 1 and a box includes its last ones, so that xmin = 1 is the image's left edge.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree

from qsdformer.data.base import as_text, existing_folder
from qsdformer.data.decoding import EXTENSIONS, upright_size
from qsdformer.data.detection.records import (
    DetectionSet,
    Objects,
    Record,
    notes_of,
    numbered_categories,
)
from qsdformer.errors import UserError, one_line
from qsdformer.files import at_home

LAYOUT = (
    "expected ROOT/ImageSets/Main/SPLIT.txt, ROOT/Annotations/NAME.xml and ROOT/JPEGImages/NAME.jpg"
)
LARGEST_XML = 2**24  # bytes; entities in a forged file could become gigabytes


def read_voc(
    root: str | Path, split: str, *, class_names: Sequence[str] | None = None
) -> DetectionSet:
    """The split of a folder in VOC's layout.

    The classes are `class_names`, or else those found in the split, sorted. Difficult objects count
    as crowds: they are not learned, and neither finding nor missing one is a mistake. Objects
    without extent or outside the image are left out, those beyond its border cut, and both
    counted; an annotation without the image's size is for that of its file. Raises `UserError` for
    what is missing or damaged.
    """
    folder = existing_folder(root, "folder", LAYOUT)
    trees = {name: _parse(_annotation(folder, name)) for name in _names(folder, split)}
    found = sorted({_name(item, name) for name, tree in trees.items() for item in _items(tree)})
    classes = tuple(found if class_names is None else class_names)
    if not classes:
        raise UserError(f"no object in the split {split} of {folder}: it needs at least one")
    unknown = [name for name in found if name not in classes]
    if unknown:
        raise UserError(
            f"{folder} has objects of the class {unknown[0]!r}, which is none of "
            f"{', '.join(classes)}"
        )
    left_out: Counter[str] = Counter()
    records: list[Record] = []
    for index, (name, tree) in enumerate(trees.items()):
        image = _image(folder, name, tree)
        objects = _objects(tree, classes, _annotation(folder, name), image)
        left_out += objects.left_out
        records.append(objects.record(image, index + 1))
    return DetectionSet(
        records=tuple(records),
        class_names=classes,
        category_ids=numbered_categories(classes),
        notes=notes_of(left_out, _list(folder, split)),
    )


def is_voc(root: str | Path) -> bool:
    """Whether a folder has VOC's lists of images."""
    return (at_home(root) / "ImageSets" / "Main").is_dir()


def class_names_of(root: str | Path, splits: Sequence[str]) -> tuple[str, ...]:
    """The classes of all objects in some splits, sorted."""
    folder = at_home(root)
    found = {
        _name(item, name)
        for split in splits
        for name in _names(folder, split)
        for item in _items(_parse(_annotation(folder, name)))
    }
    return tuple(sorted(found))


def _names(folder: Path, split: str) -> list[str]:
    """Names of the images in a split: the first word of each line, as in lists of one class."""
    file = _list(folder, split)
    try:
        text = file.read_text(encoding="utf-8-sig", errors="surrogateescape")
    except OSError as error:
        others = sorted(path.stem for path in file.parent.glob("*.txt"))
        hint = f"{LAYOUT}; give the folder as --data.root FOLDER"
        if others:
            hint = f"there is {', '.join(others[:5])}"
        raise UserError(f"cannot read the list {file}: {error.strerror}; {hint}") from error
    if "\0" in text:
        raise UserError(f"the list {file} is not text in UTF-8")
    names = [words[0] for line in text.splitlines() if (words := line.split())]
    if not names:
        raise UserError(f"the list {file} names no images")
    double = [name for name, count in Counter(names).items() if count > 1]
    if double:
        raise UserError(f"the list {file} names {double[0]} more than once")
    return names


def _list(folder: Path, split: str) -> Path:
    return folder / "ImageSets" / "Main" / f"{split}.txt"


def _annotation(folder: Path, name: str) -> Path:
    return folder / "Annotations" / f"{name}.xml"


def _parse(file: Path) -> ElementTree.Element:
    try:
        if file.stat().st_size > LARGEST_XML:
            raise UserError(f"{file} is too large for the annotations of one image")
        content = file.read_bytes()
    except FileNotFoundError as error:
        raise UserError(f"no annotation file {file}, but its image is listed; {LAYOUT}") from error
    except OSError as error:
        raise UserError(f"cannot read {file}: {error.strerror or error}") from error
    if b"<!ENTITY" in content:
        raise UserError(f"{file} defines entities, which annotations have no use for")
    try:
        return ElementTree.fromstring(content)
    except (ElementTree.ParseError, LookupError, ValueError) as error:  # the last two: its encoding
        raise UserError(f"{file} is not XML, or cut short: {one_line(error)}") from error


def _items(tree: ElementTree.Element) -> list[ElementTree.Element]:
    return tree.findall("object")


def _name(item: ElementTree.Element, where: str | Path) -> str:
    name = (item.findtext("name") or "").strip()
    if not name:
        raise UserError(f"an object of {where} has no name")
    return as_text(name)


def _objects(tree: ElementTree.Element, classes: Sequence[str], file: Path, image: str) -> Objects:
    height, width = (_side(tree, side, file) for side in ("height", "width"))
    if height is None or width is None:
        height, width = upright_size(image) or (None, None)
    objects = Objects(height=height, width=width)
    for item in _items(tree):
        x1, y1, x2, y2 = (
            _number(item, f"bndbox/{key}", file) for key in ("xmin", "ymin", "xmax", "ymax")
        )
        if x2 < x1 or y2 < y1:  # the last pixel is part of it
            objects.left_out["boxes of zero area"] += 1
            continue
        difficult = (item.findtext("difficult") or "0").strip() == "1"
        label = classes.index(_name(item, file)) + 1
        objects.add((x1 - 1, y1 - 1, x2, y2), label, crowd=difficult)
    return objects


def _number(item: ElementTree.Element, key: str, file: Path) -> float:
    try:
        value = float(item.findtext(key) or "")
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise UserError(f"{file}: an object's {key} is {item.findtext(key)!r}, not a number")
    return value


def _side(tree: ElementTree.Element, side: str, file: Path) -> int | None:
    """The image's height or width in pixels; None where the file does not say, or says 0."""
    text = (tree.findtext(f"size/{side}") or "0").strip()
    if not text.isdecimal():
        raise UserError(f"{file}: the image's {side} is {text!r}, not a whole number")
    return int(text) or None


def _image(folder: Path, name: str, tree: ElementTree.Element) -> str:
    """The image's file: that of the list's name, or the one that its annotation names."""
    stored = (tree.findtext("filename") or "").strip()
    candidates = [f"{name}{ending}" for ending in (".jpg", ".png", *EXTENSIONS)]
    if stored and "/" not in stored:
        candidates.append(stored)
    for candidate in candidates:
        if (folder / "JPEGImages" / candidate).is_file():
            return str(folder / "JPEGImages" / candidate)
    file = _annotation(folder, name)
    raise UserError(f"no image of {file}: no {name}.jpg in {folder / 'JPEGImages'}; {LAYOUT}")
