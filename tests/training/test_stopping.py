"""SIGTERM in mid-epoch: what is saved, how the run goes on, and what the progress bar shows."""

from __future__ import annotations

import csv
import itertools
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from rich.console import Console

from qsdformer.errors import UserError
from qsdformer.models.checkpoint import KEY, load_checkpoint
from qsdformer.recipes.recipe import Recipe, load_recipe
from qsdformer.training import train
from qsdformer.training.progress import Report

SMALL = {
    "dims": "[4, 6, 8, 8]",
    "depth": "2",
    "heads": "2",
    "image_size": "16",
    "train_limit": "80",
    "batch_size": "16",  # 5 steps an epoch
    "activity.target": "0.1",  # an extra loss, averaged over each epoch
    "epochs": "3",
    "drop_path_rate": "0.2",
    "ema": "0.9",
    "log_every": "2",
    "accelerator": "cpu",
}


def small(folder: Path, **overrides: str) -> Recipe:
    return load_recipe("digits", {**SMALL, "output": str(folder), **overrides})


class Terminate(Callback):
    """Sends SIGTERM to this very process in a step, or in the validation after one."""

    def __init__(self, step: int, validating: bool = False) -> None:
        self.step = step
        self.validating = validating

    def on_train_batch_start(self, trainer: Trainer, *args: Any) -> None:
        if not self.validating and trainer.global_step + 1 == self.step:
            os.kill(os.getpid(), signal.SIGTERM)

    def on_validation_start(self, trainer: Trainer, *args: Any) -> None:
        if self.validating and trainer.global_step == self.step:
            os.kill(os.getpid(), signal.SIGTERM)


def stopped(recipe: Recipe, terminate: Terminate, **options: Any) -> str:
    """What a run that ends with status 143 prints."""
    console = Console(record=True, quiet=False, file=open(os.devnull, "w"), width=300)  # noqa: SIM115
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as caught:
        train(recipe, console=console, callbacks=[terminate], **options)
    assert caught.value.code == 143
    assert signal.getsignal(signal.SIGTERM) == before
    return console.export_text()


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open(newline="", encoding="utf-8") as file:
        return [{**row, "images_per_second": ""} for row in csv.DictReader(file)]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    content = torch.load(folder / "last.ckpt", weights_only=True)
    return {**content["state_dict"], **moments(content)}


def moments(content: dict[str, Any]) -> dict[str, torch.Tensor]:
    """The optimiser's state."""
    states = content["optimizer_states"][0]["state"]
    return {f"{i}.{key}": value for i, state in states.items() for key, value in state.items()}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An uninterrupted run."""
    folder = tmp_path_factory.mktemp("whole")
    train(small(folder), console=Console(quiet=True))
    return folder


CASES = {
    "first step": (Terminate(1), 1, 0, "0"),
    "mid-epoch": (Terminate(8), 8, 1, "1"),
    "last step of an epoch": (Terminate(10), 10, 2, "0"),
    "validation": (Terminate(5, validating=True), 5, 1, "0"),
    "last epoch": (Terminate(13), 13, 2, "0"),
}


@pytest.mark.parametrize(("terminate", "saved", "epochs", "workers"), CASES.values(), ids=CASES)
def test_a_run_stopped_by_sigterm_goes_on_as_if_nothing_had_happened(
    tmp_path: Path, whole: Path, terminate: Terminate, saved: int, epochs: int, workers: str
) -> None:
    recipe = small(tmp_path, workers=workers)
    text = stopped(recipe, terminate)
    assert f"at step {saved}: {tmp_path / 'last.ckpt'} is saved; go on with --resume" in text
    content = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert content["global_step"] == saved
    assert content[KEY]["extra"]["epoch"] == epochs
    assert (content[KEY]["extra"]["val_accuracy"] is None) == (saved % 5 != 0)
    result = train(recipe, resume=True, console=Console(quiet=True))
    ours, theirs = weights(tmp_path), weights(whole)
    assert ours.keys() == theirs.keys()
    for key in ours:
        assert torch.equal(ours[key], theirs[key]), key
    assert rows(tmp_path) == rows(whole)
    best = load_checkpoint(whole / "best.ckpt").extra
    assert (result.best_epoch, result.best) == (best["epoch"], best["val_accuracy"])


class Lost(Callback):
    """A machine that is lost in a step, with whatever has been saved before."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_start(self, trainer: Trainer, *args: Any) -> None:
        if trainer.global_step + 1 == self.step:
            raise KeyboardInterrupt


def test_a_run_that_is_lost_goes_on_from_what_was_saved_within_the_epoch(
    tmp_path: Path, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # By the clock of the test two minutes pass between a look at it and the next.
    ticks = itertools.count(0, 120)
    monkeypatch.setattr("qsdformer.training.stopping.time.monotonic", lambda: float(next(ticks)))
    recipe = small(tmp_path, **{"train.save_minutes": "3"})
    with pytest.raises(KeyboardInterrupt):
        train(recipe, console=Console(quiet=True), callbacks=[Lost(10)])
    content = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert (content["global_step"], content[KEY]["extra"]["epoch"]) == (9, 1)
    assert content[KEY]["extra"]["val_accuracy"] is None
    monkeypatch.undo()
    train(small(tmp_path), resume=True, console=Console(quiet=True))
    ours, theirs = weights(tmp_path), weights(whole)
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    assert rows(tmp_path) == rows(whole)


def test_minutes_between_writes_must_be_above_0(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"save_minutes=0.0: must be above 0, or none"):
        small(tmp_path, **{"train.save_minutes": "0"})


def test_sigterm_in_the_last_validation_lets_the_run_finish(tmp_path: Path) -> None:
    recipe = small(tmp_path, epochs="1")
    train(recipe, console=Console(quiet=True), callbacks=[Terminate(5, validating=True)])
    assert (tmp_path / "result.json").exists()


class ReadBar(Callback):
    """What the bar shows after each step: epoch, steps done, steps in all."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, float, float | None]] = []

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        (report,) = [c for c in trainer.callbacks if isinstance(c, Report)]
        assert report._bar is not None
        (task,) = report._bar.tasks
        self.seen.append((task.description, task.completed, task.total))


def test_the_progress_bar_counts_each_epochs_steps_also_after_a_resume(tmp_path: Path) -> None:
    def terminal() -> Console:
        return Console(force_terminal=True, file=open(os.devnull, "w"))

    first, second = ReadBar(), ReadBar()
    recipe = small(tmp_path)
    with pytest.raises(SystemExit):
        train(recipe, console=terminal(), callbacks=[first, Terminate(8)])
    train(recipe, resume=True, console=terminal(), callbacks=[second])
    expected = [(f"epoch {e}/3", n, 5) for e in (1, 2, 3) for n in range(1, 6)]
    assert first.seen == expected[:8]
    assert second.seen == expected[8:]
