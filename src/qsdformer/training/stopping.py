"""Saving in mid-epoch: at SIGTERM, as batch systems send it, and as often as a recipe wants it."""

from __future__ import annotations

import signal
import threading
import time
from enum import IntEnum
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from rich.console import Console

from qsdformer.data.sampling import rank_and_world
from qsdformer.terminal import say
from qsdformer.training.checkpointing import NonFiniteGuard

STOPPED = 128 + signal.SIGTERM  # the exit status that shells report for SIGTERM


class Wish(IntEnum):
    """What a process wants done after a step, the more urgent the larger."""

    NOTHING = 0
    SAVE = 1
    STOP = 2


class Agreement:
    """The most urgent wish of all processes of the run; all get the same answer.

    Each step's question is answered at the next one, so that no step waits for the answer. It
    goes through CPU memory (gloo), so that no process waits for its GPU either.
    """

    def __init__(self) -> None:
        self._group: Any = None
        self._pending: tuple[Any, torch.Tensor] | None = None
        if rank_and_world()[1] > 1:
            self._group = dist.new_group(backend="gloo")

    def ask(self, wish: Wish) -> Wish:
        """The most urgent wish at the previous call (in a single process: at this one)."""
        if self._group is None:
            return wish
        answer, mine = self._answer(), torch.tensor([int(wish)])
        work = dist.all_reduce(mine, dist.ReduceOp.MAX, group=self._group, async_op=True)
        self._pending = work, mine
        return answer

    def ask_now(self, wish: Wish) -> Wish:
        """The most urgent wish at this call and the previous one."""
        before = self.ask(wish)
        return max(self._answer() if self._group is not None else wish, before)

    def _answer(self) -> Wish:
        if self._pending is None:
            return Wish.NOTHING
        work, tensor = self._pending
        work.wait()
        self._pending = None
        return Wish(int(tensor.item()))


class StopOnSigterm(Checkpoint):
    """Saves last.ckpt and leaves with status 143 once any process of the run gets SIGTERM.

    With `minutes` it also saves within epochs, so long after it did so last or an epoch began. A
    signal during validation waits for its end, and one in the last epoch's validation changes
    nothing: the run is finished then. Before training begins SIGTERM does what it always does.
    Use it as a context manager around the fit. Lightning calls it, a `Checkpoint`, after all
    other callbacks, so that the checkpoint holds their state of the same moment.
    """

    def __init__(
        self,
        last_path: Path,
        console: Console,
        guard: NonFiniteGuard,
        minutes: float | None = None,
    ) -> None:
        self.last_path = last_path
        self.console = console
        self.guard = guard
        self.minutes = minutes
        self._since = 0.0
        self._received = False
        self._before: Any = None

    def __enter__(self) -> StopOnSigterm:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)
            self._before = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Listen from now on."""
        self._agreement = Agreement()
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGTERM, self._receive)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save in mid-epoch; after an epoch's last step its validation comes first."""
        wish = self._agreement.ask(Wish.STOP if self._received else self._due(trainer))
        self._received |= wish is Wish.STOP
        if trainer.is_last_batch:
            return
        if wish is Wish.STOP:
            self._leave(trainer, pl_module, f"in epoch {trainer.current_epoch + 1}")
        if wish is Wish.SAVE:
            self._save(trainer, pl_module)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave after an epoch, unless it was the last."""
        wish = self._agreement.ask_now(Wish.STOP if self._received else Wish.NOTHING)
        if wish is Wish.STOP and trainer.current_epoch + 1 != trainer.max_epochs:
            self._leave(trainer, pl_module, f"after epoch {trainer.current_epoch + 1}")

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """What an epoch's end has saved need not be saved again soon."""
        self._since = time.monotonic()

    def _due(self, trainer: Trainer) -> Wish:
        """Whether it is time to save, by the clock of process 0."""
        now = time.monotonic()
        if (
            self.minutes is None
            or not trainer.is_global_zero
            or now - self._since < 60 * self.minutes
        ):
            return Wish.NOTHING
        self._since = now
        return Wish.SAVE

    def _save(self, trainer: Trainer, module: LightningModule) -> None:
        self.guard.check(trainer)
        self.guard.check_weights(trainer, module)
        trainer.save_checkpoint(self.last_path)

    def _receive(self, signum: int, frame: Any) -> None:
        self._received = True

    def _leave(self, trainer: Trainer, module: LightningModule, when: str) -> None:
        self._save(trainer, module)
        if trainer.is_global_zero:
            say(
                self.console,
                f"stopped by SIGTERM {when}, at step {trainer.global_step}: {self.last_path} is "
                "saved; go on with --resume",
            )
        raise SystemExit(STOPPED)
