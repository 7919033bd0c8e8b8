"""Our data modules as Lightning takes them.

No other file of data needs Lightning, which takes seconds to import.
"""

from __future__ import annotations

from typing import Any

import lightning
from torch.utils.data import DataLoader

from qsdformer.data.loading import Batches
from qsdformer.data.sampling import TrainSampler


class LightningData(lightning.LightningDataModule):
    """The batches of a data module, for a Trainer with `use_distributed_sampler=False`.

    A resumed run goes on where its checkpoint left off, within an epoch too.
    """

    def __init__(self, data: Batches) -> None:
        super().__init__()
        self.data = data

    def train_dataloader(self) -> DataLoader[Any]:
        """Shuffled, augmented batches from where the Trainer is."""
        loader = self.data.train_dataloader(pin_memory=self._on_cuda)
        assert self.trainer is not None
        assert isinstance(loader.sampler, TrainSampler)
        resume_at(loader.sampler, self.trainer)
        return loader

    def val_dataloader(self) -> DataLoader[Any]:
        """The images evaluated on, in order, each once."""
        return self.data.val_dataloader(pin_memory=self._on_cuda)

    @property
    def _on_cuda(self) -> bool:
        return self.trainer is not None and self.trainer.strategy.root_device.type == "cuda"


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
