"""Folders of images as ImageNet has them: root/train/CLASS/* and root/val/CLASS/*."""

from __future__ import annotations

import contextlib
import dataclasses
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, create_transform
from torch import Tensor
from torchvision.datasets import ImageFolder

from qsdformer.data.augment import image_keys
from qsdformer.data.base import Batch, DataConfig, DataInfo, Source
from qsdformer.data.images import Transform, eval_transform, read_image
from qsdformer.errors import UserError

DEFAULT_SIZE = 224
CROP_PCT = 0.875  # 224 of 256 pixels, the custom of ImageNet evaluation
LAYOUT = "expected ROOT/train/CLASS/*.jpg and ROOT/val/CLASS/*.jpg"


@dataclass(frozen=True, kw_only=True)
class FolderDataset:
    """Image files (N) and labels (N,) int64, decoded when asked for; an `ImageDataset`.

    With `train_transform` set, what it draws depends on (seed, epoch, file index) alone.
    """

    paths: tuple[str, ...]
    labels: Tensor
    info: DataInfo
    seed: int = 0
    train_transform: Transform | None = None

    def __len__(self) -> int:
        return len(self.paths)

    def __getitems__(self, requests: Sequence[int]) -> Batch:
        wanted = torch.as_tensor(requests, dtype=torch.int64)
        indices = wanted % len(self)
        if self.train_transform is None:
            transform = eval_transform(self.info)
            images = [transform(self._read(index)) for index in indices.tolist()]
        else:
            keys = image_keys(self.seed, wanted // len(self), indices)
            images = []
            with _keep_random_state():
                for index, key in zip(indices.tolist(), keys.tolist(), strict=True):
                    _seed_everything(key)
                    images.append(self.train_transform(self._read(index)))
        return torch.stack(images), self.labels[indices]

    def _read(self, index: int) -> Image.Image:
        return read_image(self.paths[index], self.info.channels)

    def select(self, indices: Tensor) -> FolderDataset:
        """The same dataset with only the images at `indices` (K,) int64, in that order."""
        paths = tuple(self.paths[index] for index in indices.tolist())
        return dataclasses.replace(self, paths=paths, labels=self.labels[indices])

    def without_augmentation(self) -> FolderDataset:
        """The same images as evaluation sees them."""
        return dataclasses.replace(self, train_transform=None)


def load(config: DataConfig, seed: int) -> Source:
    """An image folder with timm's training and evaluation transforms; bad ones: `UserError`."""
    train, val = (_scan(_split_folder(config.root, split)) for split in ("train", "val"))
    _check_same_classes(train, val)
    info = DataInfo(
        image_size=config.image_size or DEFAULT_SIZE,
        channels=3,
        class_names=tuple(train.classes),
        mean=IMAGENET_DEFAULT_MEAN,
        std=IMAGENET_DEFAULT_STD,
        interpolation="bicubic",
        crop_pct=CROP_PCT,
    )
    test = _dataset(val, info)
    augmented = dataclasses.replace(
        _dataset(train, info), seed=seed, train_transform=train_transform(config, info)
    )
    # Files come sorted by class: a fixed shuffle makes "the last 10 %" a fair sample.
    order = torch.randperm(len(augmented), generator=torch.Generator().manual_seed(0))
    return Source(info=info, train=augmented.select(order), test=test)


def train_transform(config: DataConfig, info: DataInfo) -> Transform:
    """timm's training transform: random resized crop, flip, automatic augmentation, erasing."""
    try:
        return create_transform(
            input_size=(info.channels, info.image_size, info.image_size),
            is_training=True,
            hflip=0.5,
            auto_augment=config.auto_augment,
            interpolation=info.interpolation,
            mean=info.mean,
            std=info.std,
            re_prob=config.random_erasing,
            re_mode="pixel",
        )
    except (AssertionError, ValueError, KeyError, IndexError) as error:
        raise UserError(
            f"auto_augment={config.auto_augment!r} is not a policy timm knows; "
            "use for example rand-m9-mstd0.5-inc1, augmix-m3-w3, original or 3a, or none"
        ) from error


def _split_folder(root: str | None, split: str) -> Path:
    if root is None:
        raise UserError(f"image_folder needs a folder: give --data.root ROOT; {LAYOUT}")
    folder = Path(root).expanduser()
    if not folder.is_dir():
        raise UserError(f"image folder {folder} does not exist; {LAYOUT}")
    if not (folder / split).is_dir():
        raise UserError(f"image folder {folder} has no folder {split}; {LAYOUT}")
    return folder / split


def _scan(folder: Path) -> ImageFolder:
    if not any(entry.is_dir() for entry in folder.iterdir()):
        raise UserError(f"{folder} has no class folders; {LAYOUT}")
    images = ImageFolder(str(folder), allow_empty=True)
    if not images.samples:
        raise UserError(f"{folder} holds no images; {LAYOUT}")
    if len(images.classes) < 2:
        raise UserError(
            f"{folder} has only one class, {images.classes[0]}; at least two class folders are "
            "needed to learn to tell them apart"
        )
    filled = set(images.targets)
    empty = [name for index, name in enumerate(images.classes) if index not in filled]
    if empty:
        raise UserError(f"{folder / empty[0]} holds no images; add some or remove the class")
    return images


def _check_same_classes(train: ImageFolder, val: ImageFolder) -> None:
    for one, other in ((train, val), (val, train)):
        extra = sorted(set(one.classes) - set(other.classes))
        if extra:
            raise UserError(
                f"class {extra[0]} is in {one.root} but not in {other.root} "
                f"({len(extra)} such); train and val need the same class folders"
            )


def _dataset(images: ImageFolder, info: DataInfo) -> FolderDataset:
    paths = tuple(path for path, _ in images.samples)
    return FolderDataset(paths=paths, labels=torch.tensor(images.targets), info=info)


@contextlib.contextmanager
def _keep_random_state() -> Iterator[None]:
    """Put back the state of the three global generators that timm's transforms draw from."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])  # noqa: NPY002
        torch.set_rng_state(states[2])


def _seed_everything(key: int) -> None:
    random.seed(key)
    np.random.seed(key % 2**32)  # noqa: NPY002
    # Not torch.manual_seed: that would also reset the generators of GPUs.
    torch.default_generator.manual_seed(key % 2**63)
