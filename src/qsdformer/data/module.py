"""The one Lightning data module, for every source."""

from __future__ import annotations

import signal
from collections.abc import Callable
from typing import Any

import lightning
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Sampler

from qsdformer.data.base import Batch, DataInfo, ImageDataset, Source
from qsdformer.data.cifar import load_hundred, load_ten
from qsdformer.data.digits import load as load_digits
from qsdformer.data.fashion_mnist import load as load_fashion_mnist
from qsdformer.data.folders import check_images
from qsdformer.data.image_folder import load as load_image_folder
from qsdformer.data.sampling import EvalSampler, TrainSampler
from qsdformer.data.sections import DataSection
from qsdformer.data.segmentation.config import SOURCES as MASK_SOURCES
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


class ResumableLoader(DataLoader[Any]):
    """A loader with the methods by which Lightning knows that it resumes in mid-epoch.

    There is nothing to store: `resume_at` finds the place from Lightning's own counters.
    """

    def state_dict(self) -> dict[str, Any]:
        """Empty."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Does nothing."""


class DataModule(lightning.LightningDataModule):
    """Training and evaluation batches: images (B, C, H, W) float32, labels (B,) int64.

    For segmentation the labels are masks (B, H, W); batches of several sizes are lists.

    Batches and their augmentation depend on (seed, epoch, rank) alone, so that a resumed run
    sees what an uninterrupted one would have. The samplers split the data over the processes of
    torch.distributed themselves: build the Trainer with `use_distributed_sampler=False`.
    With `evaluate_as`, what a trained model wants of its images, they are prepared like that, and
    no training images are read. Raises `UserError` if the data is missing or unusable.
    """

    def __init__(
        self,
        config: DataSection,
        *,
        batch_size: int,
        eval_batch_size: int | None = None,
        seed: int = 0,
        evaluate_as: DataInfo | None = None,
    ) -> None:
        super().__init__()
        eval_batch_size = batch_size if eval_batch_size is None else eval_batch_size
        for name, value in (("batch_size", batch_size), ("eval_batch_size", eval_batch_size)):
            if value < 1:
                raise ValueError(f"{name}={value!r}: must be at least 1")
        self.config = config
        self.batch_size = batch_size
        self.eval_batch_size = eval_batch_size
        self.seed = seed
        source = SOURCES[config.name](config, seed)
        self._train: ImageDataset | None = None
        self._eval = source.test
        if evaluate_as is None or config.evaluate_on == "holdout":
            self._train, self._eval = split(source, config)
        if evaluate_as is not None:
            self._eval = self._eval.prepared_as(evaluate_as)
        self.info: DataInfo = self._eval.info

    @property
    def notes(self) -> tuple[str, ...]:
        """What the user should know of the files, a line each."""
        used = (self._eval,) if self._train is None else (self._train, self._eval)
        return tuple(dict.fromkeys(note for dataset in used for note in dataset.notes))

    @property
    def _training(self) -> ImageDataset:
        if self._train is None:
            raise RuntimeError("this data module is for evaluation and has no training images")
        return self._train

    @property
    def training_set(self) -> ImageDataset:
        """The images trained on."""
        return self._training

    @property
    def train_size(self) -> int:
        """Images trained on, before the last incomplete batch is left out."""
        return len(self._training)

    @property
    def eval_size(self) -> int:
        """Images evaluated on."""
        return len(self._eval)

    def check(self) -> None:
        """`UserError` that counts and names unreadable images; made before training starts.

        A quick look at each file that is not read yet: some damage is found on decoding only.
        """
        check_images([*self._training.unread, *self._eval.unread])

    def train_dataloader(self) -> DataLoader[Batch]:
        """Shuffled, augmented batches; call `loader.sampler.set_epoch` before each epoch."""
        sampler = TrainSampler(self.train_size, batch_size=self.batch_size, seed=self.seed)
        if self.trainer is not None:
            resume_at(sampler, self.trainer)
        return self._loader(self._training, sampler, self.batch_size)

    def val_dataloader(self) -> DataLoader[Batch]:
        """The test set or the held-out training images, in order, each once."""
        return self._loader(self._eval, EvalSampler(self.eval_size), self.eval_batch_size)

    def test_dataloader(self) -> DataLoader[Batch]:
        """The same as `val_dataloader`."""
        return self.val_dataloader()

    def _loader(
        self, dataset: ImageDataset, sampler: Sampler[int], batch_size: int
    ) -> DataLoader[Batch]:
        return batch_loader(dataset, sampler, batch_size, self.config.workers)


def batch_loader(
    dataset: object, sampler: Sampler[int], batch_size: int, workers: int
) -> ResumableLoader:
    """Batches of a dataset that answers for a whole one at once, loaded by `workers` processes."""
    return ResumableLoader(
        dataset,  # type: ignore[arg-type]  # it has __getitems__, which is what is called
        batch_size=batch_size,
        sampler=sampler,
        num_workers=workers,
        collate_fn=_already_a_batch,
        pin_memory=torch.cuda.is_available(),
        # Its own generator: worker seeds must not be drawn from the training's.
        generator=torch.Generator(),
        worker_init_fn=_outlive_sigterm,
    )


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


def resume_at(sampler: TrainSampler, trainer: lightning.Trainer) -> None:
    """Start a sampler where a checkpoint left off.

    Lightning sets the epoch too, but on resuming only after worker processes have begun to
    fetch; and it does not skip the batches of a half-finished epoch.
    """
    epoch: Any = trainer.fit_loop.epoch_progress.current
    batches: Any = trainer.fit_loop.epoch_loop.batch_progress
    in_epoch = epoch.started > epoch.processed
    # After its last batch an epoch's validation runs; a checkpoint made there is of a full epoch.
    finished = in_epoch and batches.is_last_batch
    sampler.set_epoch(epoch.processed + int(finished))
    if in_epoch and not finished:
        # Not `completed`: that still lacks the batch after which a checkpoint was made.
        sampler.skip_batches(batches.current.processed)


def _outlive_sigterm(worker: int) -> None:
    """Leave SIGTERM to the training process, which still needs batches on its way to the end.

    Batch systems signal every process; workers end with the one that they serve.
    """
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def _already_a_batch(batch: Any) -> Any:
    """In place of a collate function; named, because worker processes must pickle it."""
    return batch
