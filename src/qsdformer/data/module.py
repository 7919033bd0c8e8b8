"""The one data module of classification and segmentation, for every source."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from qsdformer.data.base import DataInfo, ImageDataset, Source
from qsdformer.data.cifar import load_hundred, load_ten
from qsdformer.data.digits import load as load_digits
from qsdformer.data.fashion_mnist import load as load_fashion_mnist
from qsdformer.data.image_folder import load as load_image_folder
from qsdformer.data.loading import SplitModule
from qsdformer.data.sections import DataSection
from qsdformer.data.segmentation.config import SOURCES as MASK_SOURCES
from qsdformer.data.segmentation.dataset import MaskDataset
from qsdformer.data.segmentation.dataset import load as load_masks
from qsdformer.errors import UserError

SOURCES: dict[str, Callable[[Any, int], Source]] = {
    "digits": load_digits,
    "fashion_mnist": load_fashion_mnist,
    "cifar10": load_ten,
    "cifar100": load_hundred,
    "image_folder": load_image_folder,
    **dict.fromkeys(MASK_SOURCES, load_masks),
}
HOLDOUT_LIMIT = 5000  # images
HOLDOUT_SHARE = 10  # at most one in so many training images


class DataModule(SplitModule[ImageDataset]):
    """Training and evaluation batches: images (B, C, H, W) float32, labels (B,) int64.

    For segmentation the labels are masks (B, H, W); batches of several sizes are lists.

    With `evaluate_as`, what a trained model wants of its images, they are prepared like that, and
    no training images are read, nor are they unless `training`. Raises `UserError` if the data is
    missing or unusable.
    """

    def __init__(
        self,
        config: DataSection,
        *,
        batch_size: int,
        eval_batch_size: int | None = None,
        seed: int = 0,
        evaluate_as: DataInfo | None = None,
        training: bool = True,
    ) -> None:
        super().__init__(
            batch_size=batch_size,
            eval_batch_size=eval_batch_size,
            seed=seed,
            workers=config.workers,
        )
        self.config = config
        source = SOURCES[config.name](config, seed)
        self._train = None
        self._eval = source.test
        if (training and evaluate_as is None) or config.evaluate_on == "holdout":
            self._train, self._eval = split(source, config)
        if evaluate_as is not None:
            self._eval = self._eval.prepared_as(evaluate_as)
        self.info: DataInfo = self._eval.info

    def check(self) -> None:
        """As for other data, and `DataError` for a mask to evaluate on that cannot be used.

        Those trained on are met in the first epoch, these only after it.
        """
        super().check()
        if isinstance(self._eval, MaskDataset):
            self._eval.check_masks()

    @property
    def notes(self) -> tuple[str, ...]:
        """What the user should know of the files, a line each."""
        used = (self._eval,) if self._train is None else (self._train, self._eval)
        return tuple(dict.fromkeys(note for dataset in used for note in dataset.notes))


def split(source: Source, config: DataSection) -> tuple[ImageDataset, ImageDataset]:
    """The images to train and to evaluate on, after holding out and limiting."""
    train, evaluated = source.train(), source.test
    if train.labels is not None:
        _check_classes(train.labels, source.info)
    if config.evaluate_on == "holdout":
        kept = len(train) - max(1, min(HOLDOUT_LIMIT, len(train) // HOLDOUT_SHARE))
        evaluated = train.select(torch.arange(kept, len(train))).without_augmentation()
        train = train.select(torch.arange(kept))
    if config.train_limit is not None:
        if config.train_limit > len(train):
            raise UserError(
                f"train_limit={config.train_limit}: there are only {len(train)} training images; "
                "lower it or leave it out"
            )
        # Not the run's seed: runs that differ in their seed alone train on the same images.
        order = torch.randperm(len(train), generator=torch.Generator().manual_seed(0))
        train = train.select(order[: config.train_limit])
    return train, evaluated


def _check_classes(labels: Tensor, info: DataInfo) -> None:
    classes = labels.unique()
    if len(classes) < 2:
        only = info.class_names[int(classes[0])]
        raise UserError(f"all training images are of one class, {only}; at least two are needed")
