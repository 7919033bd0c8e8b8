"""Batches of a training and an evaluation set for Lightning, whatever is learned."""

from __future__ import annotations

import signal
from collections.abc import Sequence
from typing import Any, Generic, Protocol, TypeVar

import lightning
import torch
from torch.utils.data import DataLoader, Sampler

from qsdformer.data.folders import check_images
from qsdformer.data.sampling import EvalSampler, TrainSampler


class BatchDataset(Protocol):
    """What a loader needs of a dataset: it answers for a whole batch at once."""

    def __len__(self) -> int: ...

    def __getitems__(self, requests: Sequence[int]) -> Any: ...

    @property
    def unread(self) -> Sequence[str]:
        """The image files that are decoded only when asked for."""
        ...


Dataset = TypeVar("Dataset", bound=BatchDataset)


class ResumableLoader(DataLoader[Any]):
    """A loader with the methods by which Lightning knows that it resumes in mid-epoch.

    There is nothing to store: `resume_at` finds the place from Lightning's own counters.
    """

    def state_dict(self) -> dict[str, Any]:
        """Empty."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Does nothing."""


class SplitModule(lightning.LightningDataModule, Generic[Dataset]):
    """A training set, if there is one, and an evaluation set in batches.

    Batches depend on (seed, epoch, rank) alone, so that a resumed run sees what an uninterrupted
    one would have. The samplers split the data over the processes of torch.distributed themselves:
    build the Trainer with `use_distributed_sampler=False`. Subclasses set `_train` and `_eval`.
    """

    _train: Dataset | None
    _eval: Dataset
    can_skip_bad = True  # whether data.skip_bad leaves unreadable images out

    def __init__(
        self, *, batch_size: int, eval_batch_size: int | None, seed: int, workers: int
    ) -> None:
        super().__init__()
        eval_batch_size = batch_size if eval_batch_size is None else eval_batch_size
        for name, value in (("batch_size", batch_size), ("eval_batch_size", eval_batch_size)):
            if value < 1:
                raise ValueError(f"{name}={value!r}: must be at least 1")
        self.batch_size = batch_size
        self.eval_batch_size = eval_batch_size
        self.seed = seed
        self.workers = workers

    @property
    def training_set(self) -> Dataset:
        """The images trained on."""
        if self._train is None:
            raise RuntimeError("this data module is for evaluation and has no training images")
        return self._train

    @property
    def train_size(self) -> int:
        """Images trained on, before the last incomplete batch is left out."""
        return len(self.training_set)

    @property
    def eval_size(self) -> int:
        """Images evaluated on."""
        return len(self._eval)

    def check(self) -> None:
        """`UserError` that counts and names unreadable images; made before training starts.

        A quick look at each file that is not read yet: some damage is found on decoding only.
        """
        paths = [*self.training_set.unread, *self._eval.unread]
        check_images(paths, skippable=self.can_skip_bad)

    def train_dataloader(self) -> DataLoader[Any]:
        """Shuffled, augmented batches; call `loader.sampler.set_epoch` before each epoch."""
        sampler = TrainSampler(self.train_size, batch_size=self.batch_size, seed=self.seed)
        if self.trainer is not None:
            resume_at(sampler, self.trainer)
        return self._loader(self.training_set, sampler, self.batch_size)

    def val_dataloader(self) -> DataLoader[Any]:
        """The images evaluated on, in order, each once."""
        sampler = EvalSampler(self.eval_size)
        return self._loader(self._eval, sampler, self.eval_batch_size)

    def test_dataloader(self) -> DataLoader[Any]:
        """The same as `val_dataloader`."""
        return self.val_dataloader()

    def _loader(
        self, dataset: BatchDataset, sampler: Sampler[int], batch_size: int
    ) -> ResumableLoader:
        """Batches of a dataset that answers for a whole one at once."""
        device = None if self.trainer is None else self.trainer.strategy.root_device
        return ResumableLoader(
            dataset,  # type: ignore[arg-type]  # it has __getitems__, which is what is called
            batch_size=batch_size,
            sampler=sampler,
            num_workers=self.workers,
            collate_fn=_already_a_batch,
            pin_memory=device is not None and device.type == "cuda",
            # Its own generator: worker seeds must not be drawn from the training's.
            generator=torch.Generator(),
            worker_init_fn=_outlive_sigterm,
        )


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
