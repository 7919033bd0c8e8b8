"""Fashion scenes: Fashion-MNIST's items put together to small images with boxes and masks.

A scene is a grey image of 128 x 128 pixels with 1 to 6 items of 28 to 56 pixels on a background of
a slanted grey and noise. A later item hides what is below it; one of which less than half would be
seen is put elsewhere or left out. Training scenes are made of training items, those of val of test
items. Everything follows from the seed, the split and the scene's number.

Written are OUT/SPLIT/images/NUMBER.png, OUT/SPLIT/masks/NUMBER.png (0 background, 1 to 10 the
classes, whose names OUT/classes.txt has) and OUT/annotations/instances_SPLIT.json in COCO's format:
polygons for an item in one piece and without holes, run lengths for others.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image
from scipy import ndimage  # type: ignore[import-untyped]
from torch import Tensor

from qsdformer.data.detection.outlines import outlines
from qsdformer.data.detection.segments import run_lengths
from qsdformer.data.fashion_mnist import CLASS_NAMES, SPLITS, find_folder, read_split
from qsdformer.errors import UserError
from qsdformer.files import write_text

SIZE = 128  # pixels of a scene's side
ITEMS = (1, 6)
ITEM_SIZE = (28, 56)  # pixels of an item's side
TRIES = 20  # places tried for an item
LEAST_SEEN = 0.5  # of an item's pixels
FAINT = 24  # a pixel of an item below this, of 255, is background
BRIGHTNESS = (0.6, 1.0)
BACKGROUND = (0, 70)  # grey values between which the background runs
NOISE = 6.0  # standard deviation of its noise, in grey values

Pixels = npt.NDArray[np.uint8]
Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True)
class Item:
    """One item of a scene: its class, 0 to 9, and the pixels (H, W) of it that are seen.

    `whole` is how many pixels it would have if nothing hid some.
    """

    label: int
    mask: Mask
    whole: int

    def under(self, mask: Mask) -> Item:
        """The item with the pixels of `mask` hidden."""
        return Item(label=self.label, mask=self.mask & ~mask, whole=self.whole)


@dataclass(frozen=True, kw_only=True)
class Scene:
    """Grey values (H, W) and the items, the topmost last."""

    pixels: Pixels
    items: tuple[Item, ...]

    @property
    def classes(self) -> Pixels:
        """(H, W): 0 for background, the class + 1 for an item."""
        drawn = np.zeros_like(self.pixels)
        for item in self.items:
            drawn[item.mask] = item.label + 1
        return drawn


def make_scene(images: Pixels, labels: npt.NDArray[np.int64], rng: np.random.Generator) -> Scene:
    """A scene of some of the items `images` (N, 28, 28) with `labels` (N,)."""
    canvas = _background(rng)
    placed: list[Item] = []
    for _ in range(int(rng.integers(ITEMS[0], ITEMS[1] + 1))):
        index = int(rng.integers(len(images)))
        grey = _scaled(images[index], int(rng.integers(ITEM_SIZE[0], ITEM_SIZE[1] + 1)), rng)
        solid = ndimage.binary_fill_holes(grey >= FAINT)
        if not solid.any():
            continue
        for _ in range(TRIES):
            top, left = (int(rng.integers(0, SIZE - len(grey) + 1)) for _ in range(2))
            mask = np.zeros((SIZE, SIZE), bool)
            mask[top : top + len(grey), left : left + len(grey)] = solid
            hidden = [item.under(mask) for item in placed]
            if all(item.mask.sum() >= LEAST_SEEN * item.whole for item in hidden):
                whole = int(mask.sum())
                placed = [*hidden, Item(label=int(labels[index]), mask=mask, whole=whole)]
                canvas[mask] = grey[solid]
                break
    return Scene(pixels=canvas, items=tuple(placed))


def write_scenes(
    out: str | Path,
    *,
    train: int = 5000,
    val: int = 500,
    seed: int = 0,
    root: str | None = None,
    download: bool = False,
    done: Callable[[], object] = lambda: None,
) -> dict[str, int]:
    """Write both splits below `out` and return how many items each has.

    `root` and `download` are where Fashion-MNIST is and whether to get it; `done` is called after
    each scene. Raises `UserError` where `out` holds other files or cannot be written.
    """
    folder = Path(out)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} is there already: remove it or choose another folder")
    items = find_folder(root, download)
    counts = {}
    for split, source, count in (("train", SPLITS[0], train), ("val", SPLITS[1], val)):
        read = read_split(items, source)
        scenes = _scenes(read.images, read.labels, count, seed, split)
        counts[split] = _write_split(folder, split, scenes, seed, done)
    write_text(folder / "README.txt", _about(seed, counts))
    return counts


def _scenes(images: Tensor, labels: Tensor, count: int, seed: int, split: str) -> Iterator[Scene]:
    pixels, classes = images[:, 0].numpy(), labels.numpy()
    for number in range(count):
        yield make_scene(pixels, classes, np.random.default_rng([seed, split == "train", number]))


def _write_split(
    folder: Path, split: str, scenes: Iterator[Scene], seed: int, done: Callable[[], object]
) -> int:
    try:
        for kind in ("images", "masks"):
            (folder / split / kind).mkdir(parents=True)
        images: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        for number, scene in enumerate(scenes, start=1):
            name = f"{number:05}.png"
            Image.fromarray(scene.pixels).save(folder / split / "images" / name)
            Image.fromarray(scene.classes).save(folder / split / "masks" / name)
            images.append({"id": number, "file_name": name, "width": SIZE, "height": SIZE})
            for item in scene.items:
                annotations.append(annotation(item, len(annotations) + 1, number))
            done()
    except OSError as error:
        raise UserError(f"cannot write {folder}: {error.strerror or error}") from error
    content = {
        "info": {"description": f"Fashion scenes, {split}, seed {seed}", "version": "1"},
        "images": images,
        "annotations": annotations,
        "categories": [
            {"id": number, "name": name} for number, name in enumerate(CLASS_NAMES, start=1)
        ],
    }
    write_text(folder / "annotations" / f"instances_{split}.json", json.dumps(content) + "\n")
    write_text(folder / "classes.txt", "\n".join(("background", *CLASS_NAMES)) + "\n")
    return len(annotations)


def annotation(item: Item, number: int, image: int) -> dict[str, Any]:
    """An item in COCO's format."""
    rows, columns = (np.flatnonzero(item.mask.any(axis=axis)) for axis in (1, 0))
    left, top = int(columns[0]), int(rows[0])
    polygons = outlines(item.mask)
    filled = bool((ndimage.binary_fill_holes(item.mask) == item.mask).all())
    segmentation: Any = polygons
    if len(polygons) > 1 or not filled:
        segmentation = {"size": list(item.mask.shape), "counts": run_lengths(item.mask)}
    return {
        "id": number,
        "image_id": image,
        "category_id": item.label + 1,
        "bbox": [left, top, int(columns[-1]) + 1 - left, int(rows[-1]) + 1 - top],
        "area": int(item.mask.sum()),
        "segmentation": segmentation,
        "iscrowd": 0,
    }


def _background(rng: np.random.Generator) -> Pixels:
    corners = rng.uniform(*BACKGROUND, size=(2, 2))
    share = np.linspace(0, 1, SIZE)
    rows = np.outer(1 - share, corners[0]) + np.outer(share, corners[1])  # (H, 2)
    grey = rows[:, :1] * (1 - share) + rows[:, 1:] * share
    return np.clip(grey + rng.normal(0, NOISE, grey.shape), 0, 255).astype(np.uint8)


def _scaled(item: Pixels, side: int, rng: np.random.Generator) -> Pixels:
    """An item in another size, mirrored or not, and darker."""
    if rng.random() < 0.5:
        item = item[:, ::-1]
    resized = Image.fromarray(np.ascontiguousarray(item)).resize(
        (side, side), Image.Resampling.BILINEAR
    )
    grey = np.asarray(resized, np.float32) * rng.uniform(*BRIGHTNESS)
    scaled: Pixels = np.clip(np.rint(grey), 0, 255).astype(np.uint8)
    return scaled


def _about(seed: int, counts: dict[str, int]) -> str:
    items = ", ".join(f"{count:,} items in {split}" for split, count in counts.items())
    return (
        f"Fashion scenes, seed {seed}: {items}. Made by qsd scenes of Fashion-MNIST (MIT licence, "
        "Zalando SE). annotations/ is in COCO's format; masks/ has 0 for background and 1 to 10 "
        "for the classes, in the order of classes.txt.\n"
    )
