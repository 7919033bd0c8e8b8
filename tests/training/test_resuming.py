"""Going on elsewhere, with other batches or optimiser keys: nothing is lost or mixed."""

from __future__ import annotations

import csv
import io
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from rich.console import Console

from qsdformer.errors import UserError
from qsdformer.models import checkpoint as files
from qsdformer.models.checkpoint import read
from qsdformer.recipes.recipe import Recipe, load_recipe
from qsdformer.training import TrainResult, progress, train
from qsdformer.training.checkpointing import NonFiniteGuard
from qsdformer.training.folder import Point, going_on
from qsdformer.training.progress import MetricsFile
from qsdformer.training.stopping import StopOnSigterm
from qsdformer.training.teaching import teacher_recipe

TINY = {
    "dims": "[4, 6, 8, 8]",
    "depth": "2",
    "heads": "2",
    "stem_kernel": "3",
    "train_limit": "64",
    "batch_size": "16",  # 4 steps an epoch
    "epochs": "4",
    "warmup": "0",
    "log_every": "1",
    "accelerator": "cpu",
}


class Leave(Callback):
    """Ends the run as Ctrl-C would, before the epoch after so many."""

    def __init__(self, epochs: int) -> None:
        self.epochs = epochs

    def on_train_epoch_start(self, trainer: Any, module: Any) -> None:
        if trainer.current_epoch == self.epochs:
            raise KeyboardInterrupt


class Terminate(Callback):
    """Sends SIGTERM in a step."""

    def on_train_batch_start(self, trainer: Any, *args: Any) -> None:
        if trainer.global_step == 5:
            os.kill(os.getpid(), signal.SIGTERM)


def tiny(path: Path, **overrides: str) -> Recipe:
    return load_recipe("digits", {**TINY, "output": str(path), **overrides})


def run(recipe: Recipe, **options: Any) -> TrainResult:
    return train(recipe, console=Console(quiet=True), **options)


def left(folder: Path, **overrides: str) -> Path:
    """The last checkpoint of a run that was left after two of four epochs."""
    with pytest.raises(KeyboardInterrupt):
        run(tiny(folder, **overrides), callbacks=[Leave(2)])
    return folder / "last.ckpt"


def rates(folder: Path) -> list[float]:
    """The learning rate of each step."""
    with (folder / "metrics.csv").open(newline="", encoding="utf-8") as file:
        return [float(row["lr"]) for row in csv.DictReader(file) if not row["val_accuracy"]]


def test_going_on_in_the_folder_of_another_run_is_refused(tmp_path: Path) -> None:
    last = left(tmp_path / "a")
    run(tiny(tmp_path / "b", epochs="1"))
    before = {p.name: p.read_bytes() for p in (tmp_path / "b").iterdir() if p.is_file()}
    with pytest.raises(UserError, match="is not empty"):
        run(tiny(tmp_path / "b"), resume=last)
    assert {p.name: p.read_bytes() for p in (tmp_path / "b").iterdir() if p.is_file()} == before
    run(tiny(tmp_path / "b"), resume=last, overwrite=True)
    assert len(rates(tmp_path / "b")) == 8  # of the two epochs that it trained, no others


def test_the_best_of_a_run_that_went_on_elsewhere_is_there(tmp_path: Path) -> None:
    last = left(tmp_path / "a")
    content = torch.load(last, weights_only=True)
    content["callbacks"]["RunCheckpoints"]["best_accuracy"] = 2.0  # never reached again
    torch.save(content, last)
    result = run(tiny(tmp_path / "b"), resume=last)
    assert result.best_path == tmp_path / "b" / "best.ckpt"
    assert result.best_path.exists()
    assert result.best <= 1
    assert result.best_epoch in (3, 4)


def test_a_student_that_went_on_elsewhere_keeps_its_teacher(tmp_path: Path) -> None:
    distilled = {"distill.fgd_weight": "1", "teacher_epochs": "1"}
    last = left(tmp_path / "a", **distilled)
    with pytest.raises(KeyboardInterrupt):
        run(tiny(tmp_path / "b", **distilled), resume=last, callbacks=[Leave(3)])
    kept = read(tmp_path / "b" / "teacher" / "last.ckpt")["state_dict"]
    first = read(tmp_path / "a" / "teacher" / "last.ckpt")["state_dict"]
    assert all(torch.equal(kept[name], value) for name, value in first.items())
    run(tiny(tmp_path / "b", **distilled), resume=True)
    again = read(tmp_path / "b" / "teacher" / "last.ckpt")["state_dict"]
    assert all(torch.equal(again[name], value) for name, value in first.items())


@pytest.mark.parametrize(("batch", "steps"), [("32", 2), ("8", 8)])
def test_with_other_batches_the_schedule_ends_with_the_last_epoch(
    tmp_path: Path, batch: str, steps: int
) -> None:
    left(tmp_path / "run")
    run(tiny(tmp_path / "run", batch_size=batch), resume=True)
    run(tiny(tmp_path / "whole", batch_size=batch))
    assert rates(tmp_path / "run")[8:] == rates(tmp_path / "whole")[2 * steps :]


@pytest.mark.parametrize("change", [{"batch_size": "32"}, {"train_limit": "48"}])
def test_within_an_epoch_other_batches_are_one_line(tmp_path: Path, change: dict[str, str]) -> None:
    with pytest.raises(SystemExit):
        run(tiny(tmp_path), callbacks=[Terminate()])
    (key,) = change
    with pytest.raises(UserError, match=rf"left within an epoch.*{key}.*as it was there"):
        run(tiny(tmp_path, **change), resume=True)
    run(tiny(tmp_path), resume=True)


def test_a_run_left_beyond_its_epochs_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(SystemExit):
        run(tiny(tmp_path), callbacks=[Terminate()])
    with pytest.raises(UserError, match=r"left in epoch 2, beyond train\.epochs=1; raise that"):
        run(tiny(tmp_path, epochs="1"), resume=True)


def test_a_decay_given_on_resuming_holds(tmp_path: Path) -> None:
    left(tmp_path)
    run(tiny(tmp_path, weight_decay="0.5", betas="[0.5, 0.9]"), resume=True)
    groups = read(tmp_path / "last.ckpt")["optimizer_states"][0]["param_groups"]
    assert [group["weight_decay"] for group in groups] == [0.5, 0.0]
    assert [tuple(group["betas"]) for group in groups] == [(0.5, 0.9)] * 2


def test_the_tensors_of_a_checkpoint_are_not_held_while_training_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left(tmp_path)
    points = []

    def noted(folder: Path, resume: Any) -> Point | None:
        points.append(going_on(folder, resume))
        return points[-1]

    monkeypatch.setattr("qsdformer.training.once.going_on", noted)
    run(tiny(tmp_path), resume=True)
    (point,) = points
    assert point is not None
    held = [value for value in flat(point.content) if isinstance(value, torch.Tensor)]
    assert sum(tensor.numel() for tensor in held) < 10  # what callbacks have counted
    assert point.epochs == 2


def flat(value: Any) -> Iterator[Any]:
    """All values inside dictionaries and lists."""
    if isinstance(value, (dict, list, tuple)):
        for one in value.values() if isinstance(value, dict) else value:
            yield from flat(one)
    else:
        yield value


def test_a_momentum_given_on_resuming_holds(tmp_path: Path) -> None:
    left(tmp_path, optimizer="sgd")
    run(tiny(tmp_path, optimizer="sgd", betas="[0.5, 0.9]"), resume=True)
    groups = read(tmp_path / "last.ckpt")["optimizer_states"][0]["param_groups"]
    assert [group["momentum"] for group in groups] == [0.5, 0.5]


@pytest.mark.parametrize("key", ["layer_decay", "step_size_lr"])
def test_other_groups_of_rates_are_one_line(key: str, tmp_path: Path) -> None:
    left(tmp_path)
    before = (tmp_path / "last.ckpt").read_bytes()
    said = r"set train\.layer_decay, head_lr and step_size_lr as they were"
    with pytest.raises(UserError, match=said):
        run(tiny(tmp_path, **{key: "0.8"}), resume=True)
    assert (tmp_path / "last.ckpt").read_bytes() == before


def test_sigterm_saves_no_weights_after_a_loss_that_is_not_finite(tmp_path: Path) -> None:
    class Trainer:
        saved = False

        def save_checkpoint(self, path: Path) -> None:
            self.saved = True

    class Broken(NonFiniteGuard):
        def check(self, trainer: Any) -> None:
            raise UserError("the loss is not finite")

    Module: Any = object
    trainer: Any = Trainer()
    guard = Broken(tmp_path / "last.ckpt", every=50)
    stop = StopOnSigterm(tmp_path / "last.ckpt", Console(quiet=True), guard)
    with pytest.raises(UserError, match="not finite"):
        stop._leave(trainer, Module(), "now")
    assert not trainer.saved


def test_metrics_are_not_lost_where_a_disk_is_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = MetricsFile(tmp_path / "metrics.csv", ["step", "lr"])
    file.start(0)
    file.append({"step": 1, "lr": 0.5})
    before = file.path.read_bytes()

    def full(*_: Any) -> None:
        raise UserError("cannot write: no space left on device")

    monkeypatch.setattr(progress, "write_text", full)
    with pytest.raises(UserError, match="no space left"):
        MetricsFile(file.path, ["step", "lr"]).start(1)
    assert file.path.read_bytes() == before


def terminated(folder: Path, **overrides: str) -> Path:
    """The last checkpoint of a run that SIGTERM stopped within its second epoch."""
    with pytest.raises(SystemExit):
        run(tiny(folder, **overrides), callbacks=[Terminate()])
    return folder / "last.ckpt"


def test_within_an_epoch_the_other_images_must_be_those_that_are_left(tmp_path: Path) -> None:
    terminated(tmp_path)
    with pytest.raises(UserError, match="within an epoch, whose other images seed decides"):
        run(tiny(tmp_path, seed="7"), resume=True)
    assert run(tiny(tmp_path), resume=True).best_epoch


def test_times_are_those_of_all_sessions_and_an_old_result_goes(tmp_path: Path) -> None:
    first = run(tiny(tmp_path, epochs="1"))
    stored = files.read(tmp_path / "last.ckpt")
    stored["callbacks"]["Clock"] = {"seconds": 1000.0, "cpu_seconds": 2000.0}
    files.write(stored, tmp_path / "last.ckpt")
    with pytest.raises(KeyboardInterrupt):
        run(tiny(tmp_path), resume=True, callbacks=[Leave(2)])
    assert not (tmp_path / "result.json").exists()  # it was of one epoch
    result = run(tiny(tmp_path), resume=True)
    assert first.seconds < 1000 < result.seconds
    assert result.cpu_seconds > 2000
    (tmp_path / "result.json").unlink()
    again = run(tiny(tmp_path), resume=True)  # finished: says so, with the checkpoint's times
    assert 1000 < again.seconds <= result.seconds


def test_a_teacher_left_within_an_epoch_that_is_now_beyond_its_last_is_one_line(
    tmp_path: Path,
) -> None:
    taught: dict[str, str] = {"distill.fgd_weight": "1"}
    wanted = teacher_recipe(tiny(tmp_path, **taught), tmp_path / "teacher")
    assert wanted is not None
    with pytest.raises(SystemExit):
        run(wanted, callbacks=[Terminate()])
    with pytest.raises(UserError, match=r"left in epoch 2, beyond train.epochs=1; raise that"):
        run(tiny(tmp_path, **taught, **{"distill.teacher_epochs": "1"}), resume=True)


def test_ctrl_c_is_heard_again_after_a_run(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGINT)
    left(tmp_path)
    assert signal.getsignal(signal.SIGINT) is before


def test_brackets_in_a_folders_name_are_no_markup(tmp_path: Path) -> None:
    console = Console(record=True, quiet=False, file=io.StringIO(), width=300)
    folder = tmp_path / "run[lr=1][/best]"
    train(tiny(folder, epochs="1"), console=console)
    assert f"{folder}/best.ckpt" in console.export_text().replace("\n", "")
