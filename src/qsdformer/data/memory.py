"""Datasets that fit in memory, served a batch at a time by tensor operations."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from qsdformer.data.augment import BatchAugment, crop_and_flip, erase, image_keys
from qsdformer.data.base import Batch, DataInfo, Fit, ImageSize, Source
from qsdformer.data.config import DataConfig
from qsdformer.data.images import normalise
from qsdformer.data.policies import Policy, apply_policy, image_policy

RESIZE_CHUNK = 4096  # images converted to float at a time, to bound memory


class Split(NamedTuple):
    """Images (N, C, h, w) uint8, labels (N,) int64 and notes for the user."""

    images: Tensor
    labels: Tensor
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class MemoryDataset:
    """Images (N, C, H, W) uint8 and labels (N,) int64 in memory; an `ImageDataset`."""

    images: Tensor
    labels: Tensor
    info: DataInfo
    notes: tuple[str, ...] = ()
    augment: BatchAugment | None = None
    policy: Policy | None = None  # comes between crops and erasing; only with `augment`

    def __len__(self) -> int:
        return len(self.labels)

    def __getitems__(self, requests: Sequence[int]) -> Batch:
        wanted = torch.as_tensor(requests, dtype=torch.int64)
        indices = wanted % len(self)
        images = self.images[indices]
        if self.augment is None:
            return normalise(images, self.info), self.labels[indices]
        epochs = wanted // len(self)
        keys = image_keys(self.augment.seed, epochs, indices)
        images = crop_and_flip(images, keys, self.augment)
        if self.policy is not None:
            images = apply_policy(images, keys, self.policy)
        batch = normalise(images, self.info)
        if self.augment.random_erasing:
            batch = erase(batch, keys, self.augment.random_erasing)
        return batch, self.labels[indices]

    @property
    def unread(self) -> Sequence[str]:
        """None: every image has been read."""
        return ()

    def select(self, indices: Tensor) -> MemoryDataset:
        """The same dataset with only the images at `indices` (K,) int64, in that order."""
        return dataclasses.replace(self, images=self.images[indices], labels=self.labels[indices])

    def without_augmentation(self) -> MemoryDataset:
        """The same images as evaluation sees them."""
        return dataclasses.replace(self, augment=None, policy=None)

    def prepared_as(self, info: DataInfo) -> MemoryDataset:
        """The same images, normalised as `info` says if it has as many channels."""
        if info.channels != self.info.channels:
            return self
        own = dataclasses.replace(self.info, mean=info.mean, std=info.std)
        return dataclasses.replace(self, info=own)


def memory_source(
    config: DataConfig,
    seed: int,
    info: DataInfo,
    *,
    train: Callable[[], Split],
    test: Callable[[], Split],
) -> Source:
    """A source from what reads each split's images (N, C, h, w) uint8, which are resized."""
    augment = BatchAugment(
        seed=seed,
        hflip=config.hflip,
        crop_padding=config.crop_padding,
        random_erasing=config.random_erasing,
    )
    policy = image_policy(config, info)

    def read(split: Callable[[], Split]) -> MemoryDataset:
        found = split()
        images = resize(found.images, info.sides)
        return MemoryDataset(images=images, labels=found.labels, info=info, notes=found.notes)

    def read_train() -> MemoryDataset:
        return dataclasses.replace(read(train), augment=augment, policy=policy)

    return Source(info=info, train=read_train, test=read(test))


def fit_of_square(size: ImageSize | None) -> Fit:
    """How square images in memory become ones of `size`: they are stretched where that is not."""
    return "crop" if size is None or isinstance(size, int) else "stretch"


def resize(images: Tensor, size: tuple[int, int]) -> Tensor:
    """uint8 images (N, C, h, w) as (N, C, *size), bilinear, antialiased when shrinking."""
    if images.shape[-2:] == size:
        return images
    chunks = [
        F.interpolate(chunk.float(), size=size, mode="bilinear", antialias=True)
        for chunk in images.split(RESIZE_CHUNK)
    ]
    return torch.cat([chunk.round().clamp(0, 255).to(torch.uint8) for chunk in chunks])
