"""Object annotations in COCO's JSON: images, categories, and boxes with outlines.

Lin et al., "Microsoft COCO: Common Objects in Context", 2014; cocodataset.org/#format-data. The
layout is ROOT/annotations/instances_SPLIT.json with the images in ROOT/SPLIT, ROOT/SPLIT/images or
ROOT/images/SPLIT. Category ids may have gaps: classes are numbered in the order of their ids.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from qsdformer.data.base import as_text, existing_folder
from qsdformer.data.detection.records import (
    DetectionSet,
    Objects,
    Record,
    check_files,
    notes_of,
)
from qsdformer.data.detection.segments import Segment, parse_segment
from qsdformer.errors import UserError, one_line

LAYOUT = "expected ROOT/annotations/instances_SPLIT.json and the images in ROOT/SPLIT"
MOST_PIXELS = 2**31  # of an area or a side


def read_coco(root: str | Path, split: str, *, segments: bool) -> DetectionSet:
    """The split of a folder in COCO's layout; with `segments`, every object needs an outline.

    Objects of zero area, and those outside the image, are left out and counted, whatever outline
    they have. Raises `UserError` for a missing or damaged file, naming the annotation.
    """
    folder = existing_folder(root, "folder", LAYOUT)
    file = folder / "annotations" / f"instances_{split}.json"
    content = _load(file)
    names, ids = _categories(content, file)
    labels = {category: index + 1 for index, category in enumerate(ids)}
    images = _images(content, file)
    by_image = _by_image(content, set(images), file)
    place = _image_folder(folder, split, images, file)
    left_out: Counter[str] = Counter()
    records: list[Record] = []
    for image_id, entry in images.items():
        objects = _objects(entry, by_image.get(image_id, []), labels, file, segments)
        left_out += objects.left_out
        records.append(objects.record(str(place / str(entry["file_name"])), image_id))
    check_files(records, file)
    return DetectionSet(
        records=tuple(records),
        class_names=names,
        category_ids=ids,
        notes=notes_of(left_out, file),
    )


def _load(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_bytes())
    except FileNotFoundError as error:
        found = sorted(path.name for path in file.parent.glob("instances_*.json"))
        hint = f"; there is {', '.join(found)}: give its SPLIT" if found else f"; {LAYOUT}"
        raise UserError(f"no annotation file {file}{hint}") from error
    except OSError as error:
        raise UserError(f"cannot read {file}: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{file} is not JSON, or cut short: {one_line(error)}") from error
    for name in ("images", "annotations", "categories"):
        listed = content.get(name) if isinstance(content, dict) else None
        if not isinstance(listed, list) or not all(isinstance(item, dict) for item in listed):
            raise UserError(
                f"{file} is no file of COCO's object annotations: it has no list {name}"
            )
    assert isinstance(content, dict)
    if not content["images"]:
        raise UserError(f"{file} lists no images")
    if not content["categories"]:
        raise UserError(f"{file} lists no categories")
    return content


def _categories(content: Mapping[str, Any], file: Path) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Names and ids of the classes, in the order of their ids."""
    found: dict[int, str] = {}
    for entry in content["categories"]:
        number, name = entry.get("id"), entry.get("name")
        if not _is_whole(number) or not isinstance(name, str):
            raise UserError(f"{file}: a category without a whole id and a name: {one_line(entry)}")
        if number in found:
            raise UserError(f"{file}: category id {number} is {found[number]!r} and {name!r}")
        found[number] = as_text(name)
    ids = tuple(sorted(found))
    names = tuple(found[number] for number in ids)
    double = [name for name, count in Counter(names).items() if count > 1]
    if double:
        raise UserError(f"{file}: two categories are called {double[0]!r}")
    return names, ids


def _images(content: Mapping[str, Any], file: Path) -> dict[int, Mapping[str, Any]]:
    images: dict[int, Mapping[str, Any]] = {}
    for entry in content["images"]:
        number = entry.get("id")
        if not _is_whole(number) or not isinstance(entry.get("file_name"), str):
            raise UserError(
                f"{file}: an image without a whole id and a file_name: {one_line(entry)}"
            )
        if not -(2**63) <= number < 2**63:
            raise UserError(
                f"{file}: image id {one_line(number)} has more than 64 bits: number the images anew"
            )
        for side in ("height", "width"):
            if not _is_whole(entry.get(side)) or not 1 <= entry[side] < MOST_PIXELS:
                raise UserError(f"{file}: image {number} has {side} {one_line(entry.get(side))}")
        if number in images:
            raise UserError(f"{file}: two images have the id {number}")
        images[number] = entry
    return images


def _by_image(
    content: Mapping[str, Any], images: set[int], file: Path
) -> dict[int, list[Mapping[str, Any]]]:
    found: dict[int, list[Mapping[str, Any]]] = defaultdict(list)
    for entry in content["annotations"]:
        image = entry.get("image_id")
        if not _is_whole(image) or image not in images:
            raise UserError(
                f"{file}: annotation {entry.get('id')} is of image {image}, which is not listed"
            )
        found[image].append(entry)
    return found


def _objects(
    image: Mapping[str, Any],
    entries: list[Mapping[str, Any]],
    labels: Mapping[int, int],
    file: Path,
    segments: bool,
) -> Objects:
    size = image["height"], image["width"]
    objects = Objects(height=size[0], width=size[1])
    for entry in entries:
        which = f"{file}: annotation {entry.get('id')}"
        category: Any = entry.get("category_id")
        if not _is_whole(category) or category not in labels:
            raise UserError(f"{which} has category {category!r}, which is not listed")
        x, y, width, height = _box(entry.get("bbox"), which)
        objects.add(
            (x, y, x + width, y + height),
            labels[category],
            crowd=_is_crowd(entry.get("iscrowd", 0), which),
            area=_area(entry.get("area"), which),
            segment=partial(_segment, entry, size, which) if segments else None,
        )
    return objects


def _box(value: Any, which: str) -> tuple[float, float, float, float]:
    numbers = isinstance(value, list) and len(value) == 4
    if not numbers or not all(isinstance(v, (int, float)) and abs(v) < 2**31 for v in value):
        shown = one_line(repr(value))
        raise UserError(f"{which} has the box {shown}: it must be x, y, width, height")
    x, y, width, height = map(float, value)
    return x, y, width, height


def _is_crowd(value: Any, which: str) -> bool:
    if not isinstance(value, int) or value not in (0, 1):
        raise UserError(f"{which} has iscrowd {one_line(repr(value))}: it must be 0 or 1")
    return bool(value)


def _area(value: Any, which: str) -> float | None:
    """In pixels; None where the file does not say, so that it is the box's."""
    if value is None:
        return None
    if not isinstance(value, (int, float)) or not 0 <= value < MOST_PIXELS:
        shown = one_line(repr(value))
        raise UserError(f"{which} has the area {shown}: it must be a number of pixels, 0 or more")
    return float(value)


def _segment(entry: Mapping[str, Any], size: tuple[int, int], which: str) -> Segment:
    value = entry.get("segmentation")
    if not value:
        raise UserError(
            f"{which} has no segmentation: masks cannot be learned from this file, choose "
            "detection.detector faster_rcnn or retinanet"
        )
    try:
        return parse_segment(value, size)
    except ValueError as error:
        raise UserError(f"{which}: {error}") from error


def _image_folder(
    root: Path, split: str, images: Mapping[int, Mapping[str, Any]], file: Path
) -> Path:
    """Where the images are: the first usual place that has one of them."""
    first = str(next(iter(images.values()))["file_name"])
    places = (root / split, root / split / "images", root / "images" / split, root)
    for place in places:
        if (place / first).is_file():
            return place
    looked = ", ".join(str(place) for place in places)
    raise UserError(f"{file} lists {first}, which is in none of {looked}")


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
