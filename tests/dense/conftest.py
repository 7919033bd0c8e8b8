"""Runs of dense networks with weights of no training, and images for them."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data.detection_files import CATEGORIES, annotation, write_coco
from data.segmentation.mask_files import blocks, write_pair

from dense.networks import (
    CLASSES,
    backbone,
    detection_config,
    info_of,
    segmentation_config,
    settled,
)
from qsdformer.cli import run
from qsdformer.models.checkpoint import save_checkpoint

SIZE = (32, 48)
DETECTORS = ("retinanet", "mask_rcnn")
METRICS = "epoch,train_loss,{0}\n1,2.0,0.1\n2,1.0,0.2\n"


@pytest.fixture(scope="session")
def dense_runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run folders: "segmenter", "float_heads", "retinanet", "mask_rcnn", and the ANN "ann"."""
    folder = tmp_path_factory.mktemp("dense_runs")
    root = folder / "data"
    write_masks(root / "masks")
    for name, bits in (("segmenter", 4), ("float_heads", None)):
        # Larger images than SIZE, in windows.
        data = {"name": "mask_folder", "root": str(root / "masks"), "shorter_side": 40}
        recipe = {"segmentation": {"inference": "slide"}, "data": data}
        save(folder / name, segmentation_config(bits=bits), CLASSES, recipe)
        (folder / name / "metrics.csv").write_text(METRICS.format("val_miou"))
    write_coco(root / "coco", annotations=[])
    for name in DETECTORS:
        save_detector(folder / name, root / "coco", detection_config(detector=name))
        (folder / name / "metrics.csv").write_text(METRICS.format("val_map50"))
    ann = dataclasses.replace(detection_config(), backbone=backbone().ann(), bits=None)
    save_detector(folder / "ann", root / "coco", ann)
    # What each detector finds first is what there is to find, so that none scores 0.
    objects = [entry for name in DETECTORS for entry in first_found(folder / name, root / "coco")]
    write_coco(root / "coco", annotations=objects)
    return folder


def write_masks(root: Path) -> None:
    """Two images of blocks of three classes."""
    noise = np.random.default_rng(0)
    for name in ("0", "1"):
        labels = blocks((48, 72), noise.integers(0, 3, (3, 4)))
        write_pair(root / "val" / "images", root / "val" / "masks", name, labels, noise)


def save_detector(folder: Path, coco: Path, config: Any) -> None:
    """A run folder of a detector of the classes in `coco`."""
    names = tuple(str(category["name"]) for category in CATEGORIES)
    data = {"name": "coco", "root": str(coco)}
    recipe = {"detection": {"detector": config.detector}, "data": data}
    save(folder, config, names, recipe)


def save(folder: Path, config: Any, names: tuple[str, ...], recipe: dict[str, Any]) -> None:
    info = dataclasses.replace(info_of(SIZE), class_names=names)
    recipe = {"task": config.task, **recipe}
    recipe["data"]["image_size"] = list(SIZE)
    extra = {"recipe": recipe, "category_ids": [category["id"] for category in CATEGORIES]}
    save_checkpoint(folder / "last.ckpt", settled(config, SIZE), info, extra)


def first_found(folder: Path, coco: Path) -> list[dict[str, Any]]:
    """The likeliest object in each image, as an annotation."""
    images = [str(path) for path in sorted((coco / "val").iterdir())]
    words = ["--output", str(folder / "found")]
    assert run(["predict", str(folder / "last.ckpt"), *images, *words]) == 0
    found: dict[int, dict[str, Any]] = {}
    for entry in json.loads((folder / "found" / "results.json").read_text()):
        found.setdefault(entry["image_id"], entry)
    number = 100 * DETECTORS.index(folder.name)
    return [as_object(number + image, image, entry) for image, entry in found.items()]


def as_object(number: int, image: int, found: dict[str, Any]) -> dict[str, Any]:
    x, y, width, height = found["bbox"]
    corners = [x, y, x + width, y, x + width, y + height, x, y + height]
    return annotation(
        number,
        image,
        category_id=found["category_id"],
        bbox=found["bbox"],
        area=width * height,
        segmentation=[corners],
    )
