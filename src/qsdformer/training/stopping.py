"""SIGTERM, as batch systems send it: save in mid-epoch, say so, exit with status 143."""

from __future__ import annotations

import signal
import threading
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from rich.console import Console

from qsdformer.data.sampling import rank_and_world
from qsdformer.training.checkpointing import NonFiniteGuard
from qsdformer.training.progress import say

STOPPED = 128 + signal.SIGTERM  # the exit status that shells report for SIGTERM


class Agreement:
    """Whether any process of the run has raised its flag; all get the same answer.

    Each step's question is answered at the next one, so that no step waits for the answer. It
    goes through CPU memory (gloo), so that no process waits for its GPU either.
    """

    def __init__(self) -> None:
        self._group: Any = None
        self._pending: tuple[Any, torch.Tensor] | None = None
        if rank_and_world()[1] > 1:
            self._group = dist.new_group(backend="gloo")

    def ask(self, flag: bool) -> bool:
        """Whether any flag was up at the previous call (in a single process: at this one)."""
        if self._group is None:
            return flag
        answer, mine = self._answer(), torch.tensor([int(flag)])
        work = dist.all_reduce(mine, dist.ReduceOp.MAX, group=self._group, async_op=True)
        self._pending = work, mine
        return answer

    def ask_now(self, flag: bool) -> bool:
        """Whether any flag is up at this call or was at the previous one."""
        before = self.ask(flag)
        return (self._answer() if self._group is not None else flag) or before

    def _answer(self) -> bool:
        if self._pending is None:
            return False
        work, tensor = self._pending
        work.wait()
        self._pending = None
        return bool(tensor.item())


class StopOnSigterm(Checkpoint):
    """Saves last.ckpt and leaves with status 143 once any process of the run gets SIGTERM.

    A signal during validation waits for its end, and one in the last epoch's validation changes
    nothing: the run is finished then. Before training begins SIGTERM does what it always does.
    Use it as a context manager around the fit. Lightning calls it, a `Checkpoint`, after all
    other callbacks, so that the checkpoint holds their state of the same moment.
    """

    def __init__(self, last_path: Path, console: Console, guard: NonFiniteGuard) -> None:
        self.last_path = last_path
        self.console = console
        self.guard = guard
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
        stop = self._agreement.ask(self._received)
        self._received |= stop
        if stop and not trainer.is_last_batch:
            self._leave(trainer, pl_module, f"in epoch {trainer.current_epoch + 1}")

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave after an epoch, unless it was the last."""
        stop = self._agreement.ask_now(self._received)
        if stop and trainer.current_epoch + 1 != trainer.max_epochs:
            self._leave(trainer, pl_module, f"after epoch {trainer.current_epoch + 1}")

    def _receive(self, signum: int, frame: Any) -> None:
        self._received = True

    def _leave(self, trainer: Trainer, module: LightningModule, when: str) -> None:
        self.guard.check(trainer)
        self.guard.check_weights(trainer, module)
        trainer.save_checkpoint(self.last_path)
        if trainer.is_global_zero:
            say(
                self.console,
                f"stopped by SIGTERM {when}, at step {trainer.global_step}: {self.last_path} is "
                "saved; go on with --resume",
            )
        raise SystemExit(STOPPED)
