"""Tiny sets of images with masks, in the layouts of the published ones."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image


def save(values: np.ndarray, path: Path, **options: object) -> Path:
    """Write an array as an image file, with the folders that it needs."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values).save(path, **options)  # type: ignore[arg-type]
    return path


def write_pair(
    images: Path, masks: Path, name: str, labels: np.ndarray, noise: np.random.Generator
) -> None:
    """A mask of `labels` (H, W), and an image whose grey says which label a pixel has."""
    grey = (20 * labels.astype(np.int64) % 240)[..., None] + noise.integers(0, 10, (1, 1, 3))
    save(np.broadcast_to(grey, (*labels.shape, 3)).astype(np.uint8), images / f"{name}.png")
    save(labels.astype(np.uint8), masks / f"{name}.png")


def blocks(size: tuple[int, int], labels: np.ndarray) -> np.ndarray:
    """Labels (h, w) as blocks that fill an image of `size` (H, W)."""
    rows = np.arange(size[0]) * labels.shape[0] // size[0]
    columns = np.arange(size[1]) * labels.shape[1] // size[1]
    return labels[rows[:, None], columns[None, :]]


def write_camvid(root: Path, *, count: int = 12, size: tuple[int, int] = (36, 48)) -> Path:
    """`count` images for train and val: blocks of the 11 classes and of void, which is 11."""
    noise = np.random.default_rng(0)
    for split in ("train", "val"):
        folder = root / split
        for index in range(count):
            labels = blocks(size, noise.integers(0, 12, (3, 4)))
            write_pair(folder / "images", folder / "masks", f"{index}", labels, noise)
    return root


def write_ade20k(root: Path, *, count: int = 24) -> Path:
    """As ADE20K is laid out: images of several sizes, labels 0 (none) to 150."""
    noise = np.random.default_rng(0)
    base = root / "ADEChallengeData2016"
    for split in ("training", "validation"):
        for index in range(count):
            size = (40, 56) if index % 2 else (50, 40)
            labels = blocks(size, noise.integers(0, 151, (2, 3)))
            places = (base / "images" / split, base / "annotations" / split)
            write_pair(*places, f"ADE_{index:08}", labels, noise)
    return root
