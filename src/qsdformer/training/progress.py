"""What a run tells while it goes on: metrics.csv, TensorBoard, a progress bar, a line an epoch."""

from __future__ import annotations

import csv
import io
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from torch import Tensor

from qsdformer.errors import UserError
from qsdformer.files import write_text
from qsdformer.recipes.tasks import Measures
from qsdformer.tasks.optimisation import rate_of
from qsdformer.terminal import say


class MetricsFile:
    """A CSV file with a row every few steps and a row, with val_* filled, every epoch."""

    def __init__(self, path: Path, columns: Sequence[str]) -> None:
        self.path = path
        self.columns = columns

    def start(self, step: int) -> None:
        """Begin the file, or go on with the rows up to `step` of an interrupted run."""
        rows = []
        if step and self.path.exists():
            with self.path.open(newline="", encoding="utf-8") as file:
                rows = [row for row in csv.DictReader(file) if _step(row) <= step]
        text = io.StringIO()
        writer = self._writer(text)
        writer.writeheader()
        writer.writerows(rows)
        write_text(self.path, text.getvalue())

    def append(self, row: dict[str, Any]) -> None:
        """Add one row."""
        try:
            with self.path.open("a", newline="", encoding="utf-8") as file:
                self._writer(file).writerow(row)
        except OSError as error:
            raise UserError(f"cannot write {self.path}: {error.strerror or error}") from error

    def _writer(self, file: TextIO) -> csv.DictWriter[str]:
        return csv.DictWriter(file, self.columns, extrasaction="ignore", lineterminator="\n")


class Clock(Callback):
    """The time of a run: of all its sessions, up to where the next goes on."""

    def __init__(self) -> None:
        self._begin = time.perf_counter(), time.process_time()
        self._before = 0.0, 0.0

    def times(self) -> dict[str, float]:
        """Seconds by the clock, and of this process's threads together."""
        now = time.perf_counter(), time.process_time()
        spent = (b + n - s for b, n, s in zip(self._before, now, self._begin, strict=True))
        return dict(zip(("seconds", "cpu_seconds"), spent, strict=True))

    def state_dict(self) -> dict[str, Any]:
        """The time so far."""
        return self.times()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from the time so far."""
        self._before = state_dict["seconds"], state_dict["cpu_seconds"]

    @classmethod
    def stored(cls, content: Mapping[str, Any]) -> dict[str, float]:
        """The times in a checkpoint; none in those from before there was a clock."""
        found: dict[str, float] = content["callbacks"].get(cls.__qualname__, {})
        return found


class Sums:
    """Sums over steps of what a training step returns, name by name, each with its own count."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}  # (2,): sum, count

    def add(self, outputs: Mapping[str, Tensor]) -> None:
        """Add a step's scalars, without waiting for their device."""
        for name, value in outputs.items():
            one = torch.stack((value.detach().float(), torch.ones_like(value, dtype=torch.float)))
            before = self._sums.get(name)
            self._sums[name] = one if before is None else before + one

    def means(self, trainer: Trainer | None = None) -> dict[str, float]:
        """The mean of each as train_NAME; over all processes of `trainer`, if it is given."""
        names = sorted(self._sums)
        if not names:
            return {}
        table = torch.stack([self._sums[name] for name in names])  # (names, 2)
        if trainer is not None:
            table = trainer.strategy.reduce(table, reduce_op="sum")
        values = (table[:, 0] / table[:, 1]).tolist()
        return {f"train_{name}": value for name, value in zip(names, values, strict=True)}

    def state_dict(self) -> dict[str, Tensor]:
        """The sums, on the CPU."""
        return {name: value.cpu() for name, value in self._sums.items()}

    def load(self, state: Mapping[str, Tensor], device: torch.device) -> None:
        """Go on from saved sums."""
        self._sums = {name: value.to(device) for name, value in state.items()}


class Metrics(Callback):
    """Averages training metrics and writes them, with the validation's, to CSV and TensorBoard.

    Step rows are those of process 0 since the last such row; epoch rows are over all processes
    (after a resume in mid-epoch, the steps before it count with process 0's values).
    `latest` is the last epoch's row.
    """

    def __init__(self, path: Path, measures: Measures, *, every: int) -> None:
        self.file = MetricsFile(path, measures.columns)
        self.measures = measures
        self.every = every
        self.latest: dict[str, Any] = {}
        self._epoch, self._recent = Sums(), Sums()
        self._saved: dict[str, dict[str, Tensor]] = {}

    def state_dict(self) -> dict[str, Any]:
        """The averages of a half-finished epoch."""
        return {"epoch": self._epoch.state_dict(), "recent": self._recent.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from them when training starts."""
        self._saved = state_dict

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Open the file; in mid-epoch, where no epoch starts, take up its averages."""
        if trainer.is_global_zero:
            self.file.start(trainer.global_step)
        self._begin_epoch()
        for name, sums in (("epoch", self._epoch), ("recent", self._recent)):
            sums.load(self._saved.get(name, {}), pl_module.device)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start this epoch's averages."""
        self._begin_epoch()

    def _begin_epoch(self) -> None:
        self._epoch, self._recent = Sums(), Sums()
        self._images = 0
        self._begin = time.perf_counter()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Add a step; write a row if one is due."""
        self._epoch.add(outputs)
        shown = {"loss", self.measures.trained}
        self._recent.add({name: value for name, value in outputs.items() if name in shown})
        self._images += len(batch[1]) * trainer.world_size
        if trainer.global_step % self.every == 0:
            self._record(trainer, self._recent.means())
            self._recent = Sums()

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop the epoch's clock: images per second are those of training."""
        if pl_module.device.type == "cuda":
            torch.cuda.synchronize()
        self._seconds = time.perf_counter() - self._begin

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the epoch's row."""
        row = self._epoch.means(trainer)
        row |= {name: float(value) for name, value in trainer.callback_metrics.items()}
        row["images_per_second"] = self._images / self._seconds
        self.latest = self._record(trainer, row)

    def _record(self, trainer: Trainer, values: dict[str, Any]) -> dict[str, Any]:
        lr = rate_of(trainer.optimizers[0])
        row = {"epoch": trainer.current_epoch + 1, "step": trainer.global_step, "lr": lr, **values}
        if trainer.is_global_zero:
            self.file.append({k: _short(v) for k, v in row.items()})
            names = {k: v for k, v in row.items() if k not in ("epoch", "step")}
            kind = "epoch" if self.measures.monitored in values else "step"
            scalars = {f"{k}/{kind}" if k.startswith("train") else k: v for k, v in names.items()}
            for logger in trainer.loggers:
                logger.log_metrics(scalars, step=trainer.global_step)
        return row


BAR_EVERY = 0.5  # seconds between new numbers on a terminal
LINE_EVERY = 60.0  # seconds between lines within an epoch where there is no terminal


class Report(Callback):
    """One line an epoch; within it a progress bar or, without a terminal, a line a minute."""

    def __init__(self, console: Console, metrics: Metrics) -> None:
        self.console = console
        self.metrics = metrics
        self._bar: Progress | None = None
        self._in_epoch = False
        self._task = TaskID(0)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """A new bar for the epoch, before its first batch is loaded."""
        self._open(trainer, done=0)

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """A bar for the rest of an epoch that is resumed, and so does not start."""
        if not self._in_epoch:
            self._open(trainer, done=batch_idx)

    def _open(self, trainer: Trainer, done: int) -> None:
        self._in_epoch = True
        self._images, self._since = 0, time.perf_counter()
        if not (self.console.is_terminal and trainer.is_global_zero):
            return
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[numbers]}"),
            console=self.console,
            transient=True,
        )
        self._bar.start()
        self._task = self._bar.add_task(
            _epoch(trainer),
            total=int(trainer.num_training_batches),
            completed=done,
            numbers="",
        )

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Move the bar; now and then new numbers, on it or on a line."""
        if not trainer.is_global_zero:
            return
        self._images += len(batch[1]) * trainer.world_size
        if self._bar is not None:
            self._bar.advance(self._task)
        elapsed = time.perf_counter() - self._since
        if elapsed <= (LINE_EVERY if self._bar is None else BAR_EVERY):
            return
        trained = self.metrics.measures.trained
        numbers = f"{_speed(self._images / elapsed)}  loss {float(outputs['loss']):.3f}"
        if trained is not None:
            numbers += f"  acc {float(outputs[trained]):.1%}"
        if self._bar is not None:
            self._bar.update(self._task, numbers=numbers)
        else:
            steps = f"step {batch_idx + 1:,}/{int(trainer.num_training_batches):,}"
            line = f"{_epoch(trainer)}  {steps}  {numbers}"
            say(self.console, line)
        self._images, self._since = 0, time.perf_counter()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The epoch's line."""
        self._close()
        row = self.metrics.latest
        if trainer.is_global_zero and row:
            line = epoch_line(row, self.metrics.measures, int(trainer.max_epochs or 0))
            say(self.console, line)

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Leave the terminal as it was."""
        self._close()

    def _close(self) -> None:
        self._in_epoch = False
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


def epoch_line(row: Mapping[str, Any], measures: Measures, epochs: int) -> str:
    """What an epoch's row of metrics.csv says, on one line."""
    parts = [f"epoch {row['epoch']:>3}/{epochs}", f"loss {row['train_loss']:.3f}"]
    if measures.trained is not None:
        parts.append(f"train {row[f'train_{measures.trained}']:.2%}")
    word = "" if measures.name == "accuracy" else f"{measures.word} "
    parts.append(f"val {word}{row[measures.monitored]:.2%}")
    if "val_loss" in row:
        parts.append(f"val loss {row['val_loss']:.3f}")
    return "  ".join([*parts, _speed(row["images_per_second"])])


def _speed(images_per_second: float) -> str:
    """Few images a second, as dense tasks have on a CPU, with one decimal."""
    digits = 1 if images_per_second < 10 else 0
    return f"{images_per_second:,.{digits}f} img/s"


def _epoch(trainer: Trainer) -> str:
    return f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}"


def _step(row: dict[str, Any]) -> int:
    # A line cut off by a crash has no readable step, and is dropped.
    value = str(row.get("step") or "")
    return int(value) if value.isdigit() and row.get("lr") else 2**62


def _short(value: Any) -> Any:
    return float(f"{value:.7g}") if isinstance(value, float) else value
