"""Folders of images as ImageNet has them: root/train/CLASS/* and root/val/CLASS/*.

What `val` is called may be chosen: the key `split`.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor

from qsdformer.data.augment import image_keys
from qsdformer.data.base import IMAGENET_MEAN, IMAGENET_STD, Batch, DataError, DataInfo, Source
from qsdformer.data.config import DataConfig
from qsdformer.data.folders import ClassFolders, check_images, check_same_classes, scan_split
from qsdformer.data.images import Transform, eval_transform, load_pixels, read_image
from qsdformer.data.memory import Split, memory_source
from qsdformer.data.policies import create_train_transform
from qsdformer.data.seeding import keep_random_state, seed_everything
from qsdformer.errors import UserError

DEFAULT_SIZE = 224
MEMORY_SIZE = 32
CROP_PCT = 0.875  # 224 of 256 pixels, the custom of ImageNet evaluation


@dataclass(frozen=True, kw_only=True)
class FolderDataset:
    """Image files (N) and labels (N,) int64, decoded when asked for; an `ImageDataset`.

    With `train_transform` set, what it draws depends on (seed, epoch, file index) alone.
    """

    paths: tuple[str, ...]
    labels: Tensor
    info: DataInfo
    notes: tuple[str, ...] = ()
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

    @property
    def unread(self) -> Sequence[str]:
        """All files."""
        return self.paths

    def select(self, indices: Tensor) -> FolderDataset:
        """The same dataset with only the images at `indices` (K,) int64, in that order."""
        paths = tuple(self.paths[index] for index in indices.tolist())
        return dataclasses.replace(self, paths=paths, labels=self.labels[indices])

    def without_augmentation(self) -> FolderDataset:
        """The same images as evaluation sees them."""
        return dataclasses.replace(self, train_transform=None)

    def prepared_as(self, info: DataInfo) -> FolderDataset:
        """The same images, resized, cropped and normalised as `info` says."""
        if info.channels != self.info.channels:
            return self
        own = dataclasses.replace(info, class_names=self.info.class_names)
        return dataclasses.replace(self, info=own)


def load(config: DataConfig, seed: int) -> Source:
    """An image folder with timm's training and evaluation transforms; bad ones: `UserError`.

    Held in memory it is varied as the other sources in memory, and images are not magnified.
    """
    held_out = config.evaluate_on == "holdout"  # of the training images: there need be no others
    val = _scan(config, "train" if held_out else config.split)

    def scan_train() -> ClassFolders:
        return val if held_out else _scan_train(config, val)

    info = DataInfo(
        image_size=config.image_size or (MEMORY_SIZE if config.in_memory else DEFAULT_SIZE),
        channels=3,
        class_names=val.classes,
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        interpolation="bicubic",
        crop_pct=1.0 if config.in_memory else CROP_PCT,
    )
    if config.in_memory:
        read = functools.cache(lambda images: _in_memory(images, info))  # held out: the same
        return memory_source(
            config,
            seed,
            info,
            train=lambda: read(scan_train()),
            test=lambda: read(val),
        )

    def train() -> FolderDataset:
        files, transform = _dataset(scan_train(), info), train_transform(config, info)
        augmented = dataclasses.replace(files, seed=seed, train_transform=transform)
        return augmented.select(_fair_order(len(augmented)))

    # Shuffled as well, so that the first images are of all classes.
    return Source(
        info=info, train=train, test=_dataset(val, info).select(_fair_order(len(val.samples)))
    )


def load_in_memory(config: DataConfig, seed: int, info: DataInfo, native: DataInfo) -> Source:
    """A published data set from class folders, which must be those of `info`.

    Sizes may be mixed: each image becomes what evaluation with `native` would make of it.
    """
    val = _scan(config, config.split)
    if val.classes != info.class_names:
        extra = sorted(set(val.classes) - set(info.class_names))
        missing = [name for name in info.class_names if name not in val.classes]
        wrong = f"a folder {extra[0]} too many" if extra else f"no folder {missing[0]}"
        raise UserError(
            f"{val.root} has {wrong}: the class folders must be the {len(info.class_names)} "
            "published classes; for other data use --data.name image_folder --data.in_memory true"
        )
    return memory_source(
        config,
        seed,
        info,
        train=lambda: _in_memory(_scan_train(config, val), native),
        test=lambda: _in_memory(val, native),
    )


def _scan(config: DataConfig, split: str) -> ClassFolders:
    scanned = scan_split(config.root, split)
    return scanned.without_bad() if config.skip_bad else scanned


def _scan_train(config: DataConfig, val: ClassFolders) -> ClassFolders:
    train = _scan(config, "train")
    check_same_classes(train, val)
    return train


def train_transform(config: DataConfig, info: DataInfo) -> Transform:
    """timm's training transform: random resized crop, flip, automatic augmentation, erasing."""
    transform: Transform = create_train_transform(
        config,
        info,
        hflip=0.5 if config.hflip else 0.0,
        color_jitter=None,  # timm's default is no key of a recipe
        mean=info.mean,
        std=info.std,
        re_prob=config.random_erasing,
        re_mode="pixel",
    )
    return transform


def _dataset(images: ClassFolders, info: DataInfo) -> FolderDataset:
    paths = tuple(path for path, _ in images.samples)
    return FolderDataset(paths=paths, labels=_labels(images), info=info, notes=images.notes)


def _labels(images: ClassFolders) -> Tensor:
    return torch.tensor([label for _, label in images.samples])


def _in_memory(images: ClassFolders, info: DataInfo) -> Split:
    """All images read, in the order that files get too."""
    order = _fair_order(len(images.samples))
    paths = [images.samples[index][0] for index in order.tolist()]
    try:
        pixels = load_pixels(paths, info)
    except DataError:
        check_images(paths)  # names and counts all that are like it
        raise
    return Split(pixels, _labels(images)[order], images.notes)


def _fair_order(count: int) -> Tensor:
    """Files come sorted by class: with a fixed shuffle the first, or last, are a fair sample."""
    return torch.randperm(count, generator=torch.Generator().manual_seed(0))
