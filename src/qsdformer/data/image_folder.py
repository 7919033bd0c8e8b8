"""Folders of images as ImageNet has them: root/train/CLASS/* and root/val/CLASS/*."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor
from torchvision.datasets import ImageFolder

from qsdformer.data.augment import image_keys
from qsdformer.data.base import Batch, DataConfig, DataInfo, Source
from qsdformer.data.images import Transform, eval_transform, load_pixels, read_image
from qsdformer.data.memory import memory_source
from qsdformer.data.policies import create_train_transform
from qsdformer.data.seeding import keep_random_state, seed_everything
from qsdformer.errors import UserError

DEFAULT_SIZE = 224
MEMORY_SIZE = 32
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
            with keep_random_state():
                for index, key in zip(indices.tolist(), keys.tolist(), strict=True):
                    seed_everything(key)
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
    """An image folder with timm's training and evaluation transforms; bad ones: `UserError`.

    Held in memory it is varied as the other sources in memory, and images are not magnified.
    """
    train, val = scan_splits(config.root)
    info = DataInfo(
        image_size=config.image_size or (MEMORY_SIZE if config.in_memory else DEFAULT_SIZE),
        channels=3,
        class_names=tuple(train.classes),
        mean=IMAGENET_DEFAULT_MEAN,
        std=IMAGENET_DEFAULT_STD,
        interpolation="bicubic",
        crop_pct=1.0 if config.in_memory else CROP_PCT,
    )
    if config.in_memory:
        return memory_source(
            config, seed, info, train=_in_memory(train, info), test=_in_memory(val, info)
        )
    test = _dataset(val, info)
    augmented = dataclasses.replace(
        _dataset(train, info), seed=seed, train_transform=train_transform(config, info)
    )
    order = _fair_order(len(augmented))
    return Source(info=info, train=augmented.select(order), test=test)


def load_in_memory(root: Path, info: DataInfo) -> dict[str, tuple[Tensor, Tensor]]:
    """Images (N, C, size, size) uint8 and labels (N,) of `train` and, as `test`, of `val`.

    The class folders must be those of `info`. Sizes may be mixed: each image becomes what
    evaluation would make of it. Raises `UserError`, also where memory would not suffice.
    """
    train, val = scan_splits(str(root))
    if tuple(train.classes) != info.class_names:
        extra = sorted(set(train.classes) - set(info.class_names))
        missing = [name for name in info.class_names if name not in train.classes]
        wrong = f"a folder {extra[0]} too many" if extra else f"no folder {missing[0]}"
        raise UserError(
            f"{train.root} has {wrong}: the class folders must be the {len(info.class_names)} "
            "published classes; for other data use --data.name image_folder --data.in_memory true"
        )
    return {"train": _in_memory(train, info), "test": _in_memory(val, info)}


def train_transform(config: DataConfig, info: DataInfo) -> Transform:
    """timm's training transform: random resized crop, flip, automatic augmentation, erasing."""
    transform: Transform = create_train_transform(
        config,
        info,
        hflip=0.5,
        mean=info.mean,
        std=info.std,
        re_prob=config.random_erasing,
        re_mode="pixel",
    )
    return transform


def _split_folder(root: str | None, split: str) -> Path:
    if root is None:
        raise UserError(f"image_folder needs a folder: give --data.root ROOT; {LAYOUT}")
    folder = Path(root).expanduser()
    if not folder.is_dir():
        raise UserError(f"image folder {folder} does not exist; {LAYOUT}")
    if not (folder / split).is_dir():
        raise UserError(f"image folder {folder} has no folder {split}; {LAYOUT}")
    return folder / split


def scan_splits(root: str | None) -> tuple[ImageFolder, ImageFolder]:
    """The files of `train` and `val`, whose class folders must be the same."""
    train, val = (_scan(_split_folder(root, split)) for split in ("train", "val"))
    _check_same_classes(train, val)
    return train, val


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


def _in_memory(images: ImageFolder, info: DataInfo) -> tuple[Tensor, Tensor]:
    """Pixels (N, C, size, size) uint8 and labels (N,); a fixed shuffle as for files."""
    order = _fair_order(len(images.samples))
    paths = [images.samples[index][0] for index in order.tolist()]
    return load_pixels(paths, info), torch.tensor(images.targets)[order]


def _fair_order(count: int) -> Tensor:
    """Files come sorted by class: a fixed shuffle makes "the last 10 %" a fair sample."""
    return torch.randperm(count, generator=torch.Generator().manual_seed(0))
