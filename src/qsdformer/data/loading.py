"""Batches of a training and an evaluation set, whatever is learned."""

from __future__ import annotations

import signal
from collections.abc import Sequence
from typing import Any, Generic, Protocol, TypeVar

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


class Batches(Protocol):
    """Batches to train and to evaluate on."""

    def train_dataloader(self, *, pin_memory: bool = False) -> DataLoader[Any]: ...

    def val_dataloader(self, *, pin_memory: bool = False) -> DataLoader[Any]: ...


class ResumableLoader(DataLoader[Any]):
    """A loader with the methods by which Lightning knows that it resumes in mid-epoch.

    There is nothing to store: `LightningData` finds the place from Lightning's own counters.
    """

    def state_dict(self) -> dict[str, Any]:
        """Empty."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Does nothing."""


class SplitModule(Generic[Dataset]):
    """A training set, if there is one, and an evaluation set in batches.

    Batches depend on (seed, epoch, rank) alone, so that a resumed run sees what an uninterrupted
    one would have. The samplers split the data over the processes of torch.distributed themselves.
    Subclasses set `_train` and `_eval`. For Lightning there is `LightningData` around it.
    """

    _train: Dataset | None
    _eval: Dataset
    can_skip_bad = True  # whether data.skip_bad leaves unreadable images out

    def __init__(
        self, *, batch_size: int, eval_batch_size: int | None, seed: int, workers: int
    ) -> None:
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

    def train_dataloader(self, *, pin_memory: bool = False) -> DataLoader[Any]:
        """Shuffled, augmented batches; call `loader.sampler.set_epoch` before each epoch."""
        sampler = TrainSampler(self.train_size, batch_size=self.batch_size, seed=self.seed)
        return self._loader(self.training_set, sampler, self.batch_size, pin_memory)

    def val_dataloader(self, *, pin_memory: bool = False) -> DataLoader[Any]:
        """The images evaluated on, in order, each once."""
        sampler = EvalSampler(self.eval_size)
        return self._loader(self._eval, sampler, self.eval_batch_size, pin_memory)

    def _loader(
        self, dataset: BatchDataset, sampler: Sampler[int], batch_size: int, pin_memory: bool
    ) -> ResumableLoader:
        """Batches of a dataset that answers for a whole one at once."""
        return ResumableLoader(
            dataset,  # type: ignore[arg-type]  # it has __getitems__, which is what is called
            batch_size=batch_size,
            sampler=sampler,
            num_workers=self.workers,
            collate_fn=_already_a_batch,
            pin_memory=pin_memory,
            # Its own generator: worker seeds must not be drawn from the training's.
            generator=torch.Generator(),
            worker_init_fn=_outlive_sigterm,
        )


def _outlive_sigterm(worker: int) -> None:
    """Leave SIGTERM to the training process, which still needs batches on its way to the end.

    Batch systems signal every process; workers end with the one that they serve.
    """
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def _already_a_batch(batch: Any) -> Any:
    """In place of a collate function; named, because worker processes must pickle it."""
    return batch
