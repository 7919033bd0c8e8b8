"""Small detection sets in exactly the published formats."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

CATEGORIES = ({"id": 3, "name": "cat"}, {"id": 17, "name": "dog"}, {"id": 90, "name": "bird"})


def write_image(path: Path, size: tuple[int, int] = (40, 48), mode: str = "RGB") -> None:
    """An image of noise of `size` (height, width)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    depth = {"L": (), "RGB": (3,), "RGBA": (4,)}[mode]
    noise = np.random.default_rng(len(path.name)).integers(0, 256, (*size, *depth), dtype=np.uint8)
    Image.fromarray(noise).save(path)


def annotation(number: int, image: int, **values: Any) -> dict[str, Any]:
    """A cat at 4, 6 of 20 x 10 pixels, with a polygon, unless `values` say otherwise."""
    return {
        "id": number,
        "image_id": image,
        "category_id": 3,
        "bbox": [4, 6, 20, 10],
        "area": 200,
        "iscrowd": 0,
        "segmentation": [[4, 6, 24, 6, 24, 16, 4, 16]],
        **values,
    }


def write_coco(
    root: Path,
    split: str = "val",
    *,
    annotations: Sequence[Mapping[str, Any]] | None = None,
    images: int = 2,
    size: tuple[int, int] = (40, 48),
    changes: Mapping[str, Any] | None = None,
) -> Path:
    """A split of `images` files in COCO's layout; returns its JSON, with `changes` in it."""
    listed = []
    for number in range(1, images + 1):
        name = f"{number:012}.png"
        write_image(root / split / name, size)
        listed.append({"id": number, "file_name": name, "height": size[0], "width": size[1]})
    if annotations is None:
        annotations = [annotation(number, number) for number in range(1, images + 1)]
    content = {
        "images": listed,
        "annotations": list(annotations),
        "categories": list(CATEGORIES),
        **(changes or {}),
    }
    file = root / "annotations" / f"instances_{split}.json"
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps(content))
    return file


def voc_object(
    name: str = "RBC", box: Sequence[float | str] = (5, 7, 24, 16), difficult: int = 0
) -> str:
    """An object in VOC's XML; `box` is xmin, ymin, xmax, ymax."""
    corners = "".join(
        f"<{key}>{value}</{key}>"
        for key, value in zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True)
    )
    return (
        f"<object><name>{name}</name><difficult>{difficult}</difficult>"
        f"<bndbox>{corners}</bndbox></object>"
    )


def write_voc(
    root: Path,
    split: str = "val",
    objects: Mapping[str, Sequence[str]] | None = None,
    size: tuple[int, int] = (40, 48),
) -> None:
    """A split in VOC's layout: the objects of each image by its name."""
    if objects is None:
        objects = {f"{split}_1": [voc_object()], f"{split}_2": [voc_object("WBC")]}
    for name, inner in objects.items():
        write_image(root / "JPEGImages" / f"{name}.jpg", size)
        file = root / "Annotations" / f"{name}.xml"
        file.parent.mkdir(exist_ok=True)
        file.write_text(
            f"<annotation><filename>{name}.jpg</filename><size><width>{size[1]}</width>"
            f"<height>{size[0]}</height><depth>3</depth></size>{''.join(inner)}</annotation>"
        )
    lists = root / "ImageSets" / "Main"
    lists.mkdir(parents=True, exist_ok=True)
    (lists / f"{split}.txt").write_text("".join(f"{name}\n" for name in objects))
