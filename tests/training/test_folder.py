"""A run folder has one run at a time; however that ended, the same command goes on or starts."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from rich.console import Console

from qsdformer.cli import run as command
from qsdformer.errors import UserError
from qsdformer.files import atomic_path
from qsdformer.models.checkpoint import KEY, load_checkpoint
from qsdformer.recipes.recipe import Recipe, load_recipe
from qsdformer.training import TrainResult, folder, train
from qsdformer.training.folder import LOCK, going_on, locked
from qsdformer.training.once import train_once

TINY = {
    "dims": "[4, 6, 8, 8]",
    "depth": "2",
    "heads": "2",
    "stem_kernel": "3",
    "train_limit": "32",
    "batch_size": "16",
    "epochs": "2",
    "accelerator": "cpu",
}


class Stop(Callback):
    """Fails in training at a step, as a bad image would, or before an epoch begins."""

    def __init__(self, step: int, error: BaseException) -> None:
        self.step, self.error = step, error

    def on_train_batch_start(self, trainer: Any, module: Any, *args: Any) -> None:
        if trainer.global_step == self.step:
            raise self.error


def tiny(path: Path, **overrides: str) -> Recipe:
    return load_recipe("digits", {**TINY, "output": str(path), **overrides})


def run(recipe: Recipe, **options: Any) -> tuple[TrainResult, str]:
    text = io.StringIO()
    result = train(recipe, console=Console(file=text, width=200), **options)
    return result, text.getvalue()


def names(path: Path) -> set[str]:
    return {item.name for item in path.iterdir()}


def test_a_second_run_in_the_same_folder_is_refused_until_the_first_has_died(
    tmp_path: Path,
) -> None:
    code = "import fcntl, sys, time; f = open(sys.argv[1], 'w'); fcntl.flock(f, fcntl.LOCK_EX)"
    code += "; print('held', flush=True); time.sleep(60)"
    words = [sys.executable, "-c", code, str(tmp_path / LOCK)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        for options in ({}, {"overwrite": True}, {"resume": True}):
            with pytest.raises(UserError, match="another run is at work in") as error:
                run(tiny(tmp_path), **options)
            assert "\n" not in str(error.value)
        assert names(tmp_path) == {LOCK}
        process.kill()
    with locked(tmp_path):
        pass
    assert names(tmp_path) == set()


def test_a_run_holds_its_folder_while_it_trains(tmp_path: Path) -> None:
    class TrainHere(Callback):
        def on_train_start(self, trainer: Any, module: Any) -> None:
            with pytest.raises(UserError, match="another run"):
                run(tiny(tmp_path), overwrite=True)

    run(tiny(tmp_path, epochs="1"), callbacks=[TrainHere()])
    assert LOCK not in names(tmp_path)


def test_a_forked_process_does_not_hold_the_lock(tmp_path: Path) -> None:
    with locked(tmp_path):
        assert len(folder._held) == 1
        child = os.fork()
        if child == 0:
            os._exit(len(folder._held))
        assert os.waitpid(child, 0)[1] == 0
    assert not folder._held


def test_files_of_killed_writes_are_removed_at_the_next_start(tmp_path: Path) -> None:
    (tmp_path / ".mine").write_text("not ours")
    with atomic_path(tmp_path / "last.ckpt") as temporary:
        temporary.write_text("half")
        (tmp_path / "half").hardlink_to(temporary)
    (tmp_path / "half").rename(temporary)  # as a killed process leaves it
    with locked(tmp_path):
        assert names(tmp_path) == {".mine", "last.ckpt", LOCK}


def test_killed_before_the_first_checkpoint_any_command_starts(tmp_path: Path) -> None:
    run(tiny(tmp_path, epochs="1"))
    for options in ({"resume": True}, {}):
        for name in ("best.ckpt", "last.ckpt", "result.json"):
            (tmp_path / name).unlink()
        _, text = run(tiny(tmp_path, epochs="1"), **options)
        said = f"no checkpoint to go on from in {tmp_path}: from the start"
        assert (said in text) == bool(options)
        assert load_checkpoint(tmp_path / "last.ckpt").extra["epoch"] == 1


def test_killed_before_the_first_last_checkpoint_goes_on_from_the_best(tmp_path: Path) -> None:
    whole, _ = run(tiny(tmp_path / "whole"))
    recipe = tiny(tmp_path / "killed", save_every="2")
    with pytest.raises(KeyboardInterrupt):
        run(recipe, callbacks=[Stop(3, KeyboardInterrupt())])
    assert not (tmp_path / "killed" / "last.ckpt").exists()
    result, text = run(recipe, resume=True)
    assert "no last.ckpt yet" in text
    assert "epoch   1/2" not in text
    assert result.best == whole.best
    assert result.last == whole.last


def test_an_interrupted_command_says_what_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(recipe: Recipe, **options: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("qsdformer.training.train", interrupted)
    words = ["train", "digits", "--output", str(tmp_path)]
    assert command(words) == 130
    assert capsys.readouterr().err == "qsd: interrupted\n"
    (tmp_path / "last.ckpt").touch()
    assert command(words) == 130
    assert capsys.readouterr().err == (
        f"{tmp_path / 'last.ckpt'} is that of the last whole epoch; go on with --resume\n"
        "qsd: interrupted\n"
    )


def test_a_finished_run_says_so_and_is_left_as_it_is(tmp_path: Path) -> None:
    first, _ = run(tiny(tmp_path))
    before = (tmp_path / "last.ckpt").read_bytes()
    (tmp_path / "result.json").unlink()  # killed between the last checkpoint and this
    again, text = run(tiny(tmp_path, workers="1"), resume=True)
    assert "finished: " in text
    assert "for all 2 epochs" in text
    assert (tmp_path / "last.ckpt").read_bytes() == before
    assert json.loads((tmp_path / "result.json").read_text())["parameters"] == first.parameters
    for name in ("best", "best_epoch", "last", "best_path", "last_path"):
        assert getattr(again, name) == getattr(first, name)
    with pytest.raises(UserError, match="its model has levels=4"):
        run(tiny(tmp_path, levels="2"), resume=True)


def test_a_finished_run_goes_on_for_more_epochs(tmp_path: Path) -> None:
    run(tiny(tmp_path, epochs="1"))
    _, text = run(tiny(tmp_path, epochs="2"), resume=True)
    assert "epoch   2/2" in text
    assert going_on(tmp_path, True).epochs == 2  # type: ignore[union-attr]


def test_a_run_of_before_a_key_was_refused_that_decides_nothing_goes_on(tmp_path: Path) -> None:
    keys = {"width": "16", "depth": "1", "heads": "2", "accelerator": "cpu", "train_limit": "32"}

    def recipe(epochs: str) -> Recipe:
        own = {**keys, "epochs": epochs, "batch_size": "16", "output": str(tmp_path)}
        return load_recipe("digits-spikformer", own)

    run(recipe("1"))
    for file in tmp_path.glob("*.ckpt"):
        content = torch.load(file, weights_only=True)
        head = content[KEY]
        head["model_config"]["residual_gain"] = 0.02
        head["extra"]["recipe"]["model"]["residual_gain"] = 0.02
        torch.save(content, file)
    _, text = run(recipe("2"), resume=True)
    assert "epoch   2/2" in text
    assert train_once(recipe("2")).path == tmp_path / "last.ckpt"  # which is finished


@pytest.mark.parametrize("error", [UserError("a bad image"), RuntimeError("a bug")])
def test_a_start_that_fails_leaves_nothing(tmp_path: Path, error: Exception) -> None:
    with pytest.raises(type(error), match=str(error)):
        run(tiny(tmp_path / "a" / "run"), callbacks=[Stop(0, error)])
    assert names(tmp_path) == set()


def test_going_on_that_fails_before_its_first_step_leaves_the_checkpoint(tmp_path: Path) -> None:
    class Broken(Callback):
        def setup(self, *_: Any, **__: Any) -> None:  # before Lightning restores the step
            raise RuntimeError("machines that never met")

    run(tiny(tmp_path, epochs="1"))
    before = (tmp_path / "last.ckpt").read_bytes()
    with pytest.raises(RuntimeError, match="never met"):
        run(tiny(tmp_path, epochs="2"), resume=True, callbacks=[Broken()])
    assert (tmp_path / "last.ckpt").read_bytes() == before


def test_a_failure_in_the_first_epoch_keeps_its_metrics_and_blocks_nothing(tmp_path: Path) -> None:
    recipe = tiny(tmp_path, epochs="1", log_every="1")
    with pytest.raises(UserError, match="a bad image"):
        run(recipe, callbacks=[Stop(1, UserError("a bad image"))])
    assert len((tmp_path / "metrics.csv").read_text().splitlines()) == 2
    run(recipe)
    assert (tmp_path / "last.ckpt").exists()


def test_an_accelerator_that_is_not_there_leaves_an_old_run_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    run(tiny(tmp_path, epochs="1"))
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(UserError, match=r"(?i)no.* gpu|gpu.* not"):
        run(tiny(tmp_path, accelerator="gpu"), overwrite=True)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_a_folder_of_other_things_is_not_begun_in(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("")
    for resume in (False, True):
        with pytest.raises(UserError, match="is not empty: start over with --overwrite"):
            run(tiny(tmp_path), resume=resume)
    assert names(tmp_path) == {"thesis.tex"}
