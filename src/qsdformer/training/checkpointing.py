"""When checkpoints are written, how, and what stops a run before it writes a bad one."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, NoReturn

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.plugins.io import TorchCheckpointIO
from torch import Tensor

from qsdformer.errors import UserError
from qsdformer.models import checkpoint as files
from qsdformer.recipes.tasks import Measures
from qsdformer.tasks.optimisation import rate_of

BEST, LAST = "best.ckpt", "last.ckpt"


class SafeCheckpointIO(TorchCheckpointIO):
    """Writes whole files or none, and reads tensors and plain values only."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None
    ) -> None:
        """Write to a temporary name first; `UserError` if the file cannot be written."""
        files.write(checkpoint, path)

    def load_checkpoint(
        self, path: Any, map_location: Any = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Read with the checks of `qsdformer.models.checkpoint.read`."""
        return files.read(path)


class RunCheckpoints(Checkpoint):
    """Keeps best.ckpt, by what the task monitors, and last.ckpt in the run folder.

    Both are written after an epoch's validation. Lightning calls this callback after all others,
    so they hold every other callback's state of the same moment.
    """

    def __init__(self, folder: Path, measures: Measures, *, save_every: int) -> None:
        self.best_path = folder / BEST
        self.last_path = folder / LAST
        self.measures = measures
        self.save_every = save_every
        self.best = -math.inf
        self.best_epoch = 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin anew where the best so far lies in the folder of another run."""
        if not trainer.strategy.broadcast(self.best_path.exists()):
            self.best, self.best_epoch = -math.inf, 0

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write what is due after this epoch."""
        epoch = trainer.current_epoch + 1
        value = float(trainer.callback_metrics[self.measures.monitored])
        if value > self.best:
            self.best, self.best_epoch = value, epoch
            trainer.save_checkpoint(self.best_path)
        ending = epoch == trainer.max_epochs or trainer.should_stop
        if epoch % self.save_every == 0 or ending:
            trainer.save_checkpoint(self.last_path)

    def state_dict(self) -> dict[str, Any]:
        """The best value so far."""
        return {f"best_{self.measures.name}": self.best, "best_epoch": self.best_epoch}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from the best value so far."""
        self.best = state_dict[f"best_{self.measures.name}"]
        self.best_epoch = state_dict["best_epoch"]


class NonFiniteGuard(Callback):
    """Stops a run whose losses or weights are not finite, before a checkpoint is overwritten.

    Weights are looked at when they are about to be saved: a step whose loss was finite can still
    have broken them. Losses are looked at in every step on the CPU; elsewhere every `every` steps,
    since looking waits for the device. The step that is reported is the first bad one either way.
    """

    def __init__(self, last_path: Path, *, every: int) -> None:
        self.last_path = last_path
        self.every = every
        self._first_bad: Tensor | None = None
        self._rates: dict[int, float] = {}

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Note whether this step's loss was finite; look at the notes when it is time."""
        loss = outputs["loss"].detach()
        step = trainer.global_step
        self._rates[step] = rate_of(trainer.optimizers[0])
        if self._first_bad is None:
            self._first_bad = torch.full((), -1, dtype=torch.int64, device=loss.device)
        newly_bad = ~torch.isfinite(loss) & (self._first_bad < 0)
        self._first_bad = torch.where(newly_bad, step, self._first_bad)
        if loss.device.type == "cpu" or step % self.every == 0:
            self.check(trainer)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look before the epoch's validation, and so before its checkpoints."""
        self.check(trainer)

    def check(self, trainer: Trainer) -> None:
        """`UserError` if a loss so far was not finite; all processes call it together."""
        if self._first_bad is None:
            return
        # The worst of all processes, so that all of them stop here together.
        step = int(trainer.strategy.reduce(self._first_bad.clone(), reduce_op="max"))
        if step < 0:
            self._rates.clear()
            return
        self._stop(
            trainer,
            f"the loss is not finite at step {step} (learning rate {self._rates[step]:.3g})",
        )

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look before the epoch's checkpoints, at what the last step has made, too."""
        self.check_weights(trainer, pl_module)
        measured = trainer.callback_metrics.get("val_loss", torch.zeros(()))  # of detectors: none
        bad = (~torch.isfinite(measured)).to(pl_module.device, torch.int64)  # NCCL takes no others
        if int(trainer.strategy.reduce(bad, reduce_op="max")):
            step = trainer.global_step
            self._stop(trainer, f"the evaluation loss is not finite after step {step}")

    def check_weights(self, trainer: Trainer, module: LightningModule) -> None:
        """`UserError` if what would be saved is not finite; all processes call it together."""
        tensors = (t for t in module.state_dict().values() if t.is_floating_point())
        bad = torch.stack([~torch.isfinite(t).all() for t in tensors]).any().to(torch.int64)
        if int(trainer.strategy.reduce(bad, reduce_op="max")):
            self._stop(trainer, f"the weights are not finite after step {trainer.global_step}")

    def _stop(self, trainer: Trainer, what: str) -> NoReturn:
        if not trainer.is_global_zero:
            raise SystemExit(2)  # process 0 says why
        remedy = "lower --lr or set --clip_grad 1"
        if "16" in str(trainer.precision):
            remedy += f", or leave half precision ({trainer.precision}) with --precision 32-true"
        kept = f"the last good checkpoint is {self.last_path}"
        if not self.last_path.exists():
            kept = "no checkpoint had been written yet"
        raise UserError(
            f"{what}, most likely because the learning rate is too high: {remedy}; {kept}"
        )
