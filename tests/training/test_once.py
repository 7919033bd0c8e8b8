"""A teacher is trained before its student, once, and stays the one the student began with."""

from __future__ import annotations

import dataclasses
import io
import shutil
from pathlib import Path
from typing import Any

import pytest
from data.cifar_files import write_class_folders
from lightning.pytorch import Callback
from rich.console import Console

from qsdformer.errors import UserError
from qsdformer.models.checkpoint import load_checkpoint, save_checkpoint
from qsdformer.models.networks import build_network
from qsdformer.recipes.recipe import Recipe, load_recipe, parse_recipe
from qsdformer.tasks.choice import training_data
from qsdformer.tasks.optimisation import schedule_notes
from qsdformer.training import train
from qsdformer.training.once import train_once
from qsdformer.training.teaching import teacher_recipe

TINY = {
    "model.dims": "[4, 6, 8, 8]",
    "depth": "2",
    "heads": "2",
    "stem_kernel": "3",
    "train_limit": "32",
    "batch_size": "16",
    "epochs": "2",
    "accelerator": "cpu",
    "distill.fgd_weight": "0.5",
}


class Stop(Callback):
    """Ctrl-C in the second epoch."""

    def on_train_epoch_start(self, trainer: Any, module: Any) -> None:
        if trainer.current_epoch == 1:
            raise KeyboardInterrupt


def tiny(path: Path, **overrides: str) -> Recipe:
    return load_recipe("digits", {**TINY, "output": str(path), **overrides})


def run(recipe: Recipe, **options: Any) -> str:
    text = io.StringIO()
    train(recipe, console=Console(file=text, width=200), **options)
    return text.getvalue()


@pytest.fixture
def begun(tmp_path: Path) -> Path:
    """The folder of a student interrupted after one of two epochs; its teacher had one."""
    folder = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        run(tiny(folder, teacher_epochs="1"), callbacks=[Stop()])
    return folder


def teacher_of(folder: Path) -> bytes:
    return (folder / "teacher" / "last.ckpt").read_bytes()


def test_that_the_teacher_comes_first_is_said_and_its_epochs_are_shown(tmp_path: Path) -> None:
    text = run(tiny(tmp_path / "run", teacher_epochs="1"))
    lines = [line.partition("  loss")[0] for line in text.splitlines()]
    assert lines[0] == f"its teacher comes first, in {tmp_path}/run/teacher:"
    assert "relu ANN" in lines[1]
    assert lines[2] == "epoch   1/1"
    assert lines[4].startswith(f"teacher {tmp_path}/run/teacher/last.ckpt: accuracy")
    assert lines[6:8] == ["epoch   1/2", "epoch   2/2"]


@pytest.mark.parametrize(
    "change",
    [{"workers": "1"}, {"lr": "1e-3"}, {"train_limit": "48"}, {"teacher_epochs": "3"}],
)
def test_a_student_resumes_with_other_keys_and_the_teacher_it_had(
    begun: Path, change: dict[str, str]
) -> None:
    before = teacher_of(begun)
    text = run(tiny(begun, **{"teacher_epochs": "1", **change}), resume=True)
    assert "note: " in text
    assert "teacher comes first" not in text
    assert "epoch   2/2" in text
    assert teacher_of(begun) == before


def test_a_checkpoint_that_moved_brings_its_teacher_along(begun: Path, tmp_path: Path) -> None:
    run(tiny(tmp_path / "other"), resume=begun / "last.ckpt")
    assert teacher_of(tmp_path / "other") == teacher_of(begun)
    assert load_checkpoint(tmp_path / "other" / "last.ckpt").extra["epoch"] == 2


def test_an_interrupted_teacher_goes_on_with_the_resumed_run(tmp_path: Path) -> None:
    recipe = tiny(tmp_path / "run")
    teacher = teacher_recipe(recipe, tmp_path / "run" / "teacher")
    assert teacher is not None
    with pytest.raises(KeyboardInterrupt):
        run(teacher, callbacks=[Stop()])
    text = run(tiny(tmp_path / "run", workers="1"), resume=True)
    assert "note: data.workers was 0" in text
    assert text.count("epoch   1/2") == 1  # the student's
    assert text.count("epoch   2/2") == 2


def test_a_finished_teacher_of_another_recipe_is_refused_at_a_new_start(tmp_path: Path) -> None:
    teacher = teacher_recipe(tiny(tmp_path / "run"), tmp_path / "run" / "teacher")
    assert teacher is not None
    run(teacher)
    before = teacher_of(tmp_path / "run")
    with pytest.raises(UserError, match=r"of another recipe \(train.lr differs\)") as error:
        run(tiny(tmp_path / "run", lr="1e-3"))
    assert "\n" not in str(error.value)
    text = run(tiny(tmp_path / "run", workers="1", eval_batch_size="100", epochs="2"))
    assert "epoch   2/2" in text
    assert teacher_of(tmp_path / "run") == before


def test_a_run_is_trained_once(tmp_path: Path) -> None:
    recipe = tiny(tmp_path, epochs="1")
    recipe = dataclasses.replace(recipe, distill=None)
    first = train_once(recipe, console=Console(quiet=True))
    written = first.path.stat().st_mtime_ns
    assert train_once(recipe, console=Console(quiet=True)) == first
    assert first.path.stat().st_mtime_ns == written


def test_a_cell_goes_on_wherever_its_images_are(tmp_path: Path) -> None:
    for name in ("here", "there"):
        write_class_folders(tmp_path / name)

    def recipe(root: str, **overrides: str) -> Recipe:
        keys = {**TINY, "data.root": str(tmp_path / root), "train_limit": "10"}
        del keys["distill.fgd_weight"]
        return load_recipe("cifar10-tiny", {**keys, "output": str(tmp_path / "run"), **overrides})

    quiet = Console(quiet=True)
    first = train_once(recipe("here", epochs="1"), console=quiet)
    assert train_once(recipe("there", epochs="1"), console=quiet) == first
    with pytest.raises(UserError, match=r"another recipe \(train.lr differs\)"):
        train_once(recipe("there", epochs="1", lr="1e-3"), console=quiet)


def taught(path: Path, **overrides: str) -> Recipe:
    return load_recipe(
        "digits", {"distill.teacher": "digits-ann", "output": str(path), **overrides}
    )


def test_data_budget_and_machine_reach_a_teachers_own_recipe_but_nothing_else(
    tmp_path: Path,
) -> None:
    keys = {"epochs": "1", "train_limit": "32", "workers": "2", "devices": "3", "lr": "1e-3"}
    recipe = taught(tmp_path, **keys, weight_bits="2", ema="0.9", seed="5")
    teacher = teacher_recipe(recipe, tmp_path / "teacher")
    assert teacher is not None
    own = load_recipe("digits-ann")
    train_keys = dataclasses.replace(own.train, epochs=1, devices=3)
    assert teacher.train == train_keys
    assert teacher.data == dataclasses.replace(own.data, train_limit=32, workers=2)
    assert teacher.model.to_dict() == own.model.to_dict()
    assert (teacher.seed, teacher.output) == (5, str(tmp_path / "teacher"))


def test_what_the_recipe_says_of_its_teacher_wins_over_the_command_line(tmp_path: Path) -> None:
    keys = "{train.lr: 0.5, batch_size: 7}"
    recipe = taught(
        tmp_path, epochs="1", batch_size="9", teacher_epochs="3", **{"distill.teacher_keys": keys}
    )
    teacher = teacher_recipe(recipe, tmp_path)
    assert teacher is not None
    assert (teacher.train.epochs, teacher.train.batch_size, teacher.train.lr) == (3, 7, 0.5)
    # The stored recipe says the same again without the command line.
    again = parse_recipe(recipe.to_dict())
    assert teacher_recipe(again, tmp_path) == teacher


def test_a_teacher_of_other_data_is_refused_before_it_is_trained(tmp_path: Path) -> None:
    root, fewer = (write_class_folders(tmp_path / name) for name in ("images", "fewer"))
    for split in ("train", "val"):
        shutil.rmtree(fewer / split / "truck")
    keys = f"{{data.name: image_folder, data.root: {root}}}"
    grey = taught(tmp_path / "run", **{"distill.teacher_keys": keys})
    coloured = {"data.name": "image_folder", "data.root": str(fewer), "distill.teacher_keys": keys}
    with pytest.raises(UserError, match="digits-ann takes images of 3 channels, the data has 1"):
        run(grey)
    with pytest.raises(UserError, match="the teacher digits-ann has 10 classes and the data 9"):
        run(taught(tmp_path / "run", logit_weight="1", **coloured))
    assert not (tmp_path / "run" / "teacher").exists()


def test_a_teacher_does_not_learn_what_its_student_holds_out(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    text = (
        "recipe: digits\ndata: {evaluate_on: holdout}\ndistill: {teacher: digits-ann%s}\n"
        "train: {epochs: 1, accelerator: cpu}\noutput: %s\n"
    )
    file.write_text(text % ("", tmp_path / "run"))
    with pytest.raises(UserError, match=r"digits-ann would learn from the images .* holds out"):
        run(load_recipe(str(file)))
    assert not (tmp_path / "run" / "teacher").exists()
    keys = ", teacher_keys: {data.evaluate_on: holdout, train.epochs: 1}"
    file.write_text(text % (keys, tmp_path / "run"))
    run(load_recipe(str(file)))


def test_weights_without_a_recipe_in_a_teachers_place_are_one_line(tmp_path: Path) -> None:
    recipe = tiny(tmp_path / "run", teacher_epochs="1")
    wanted = teacher_recipe(recipe, tmp_path / "run" / "teacher")
    assert wanted is not None
    info = training_data(wanted).info
    model = build_network(wanted.model_config(info), info)
    save_checkpoint(tmp_path / "run" / "teacher" / "last.ckpt", model, info)
    with pytest.raises(UserError, match=r"last\.ckpt has weights only, and no recipe") as error:
        run(recipe)
    assert "\n" not in str(error.value)


def test_what_a_schedule_never_gets_to_is_said(tmp_path: Path) -> None:
    keys = {"train.schedule": "step", "lr_steps": "[1, 3, 5]", "warmup_steps": "9", "epochs": "3"}
    assert schedule_notes(tiny(tmp_path, **keys).train, images=32) == (
        "train.lr_steps: the rate is never lowered after epoch 3 and 5, with train.epochs=3",
        "train.warmup_steps=9: the run has only 6 steps, so that the rate never reaches train.lr",
    )
    text = run(tiny(tmp_path / "run", warmup_steps="100", teacher_epochs="1"))
    assert "note: train.warmup_steps=100: the run has only 4 steps" in text
    assert schedule_notes(tiny(tmp_path).train, images=32) == ()


def test_the_counterpart_takes_keys_too_and_a_mistake_in_them_is_one_line(tmp_path: Path) -> None:
    right = teacher_recipe(tiny(tmp_path, teacher_keys="{lr: 0.5}"), tmp_path)
    assert right is not None
    assert right.train.lr == 0.5
    with pytest.raises(UserError, match="the recipe of the teacher ann: unknown option") as error:
        teacher_recipe(tiny(tmp_path, teacher_keys="{lrr: 0.5}"), tmp_path)
    assert "\n" not in str(error.value)
    assert right.seed == tiny(tmp_path).seed == 0
    seeded = teacher_recipe(tiny(tmp_path, teacher_keys="{seed: 5}"), tmp_path)
    assert seeded is not None
    assert seeded.seed == 5
    unused = {
        "teacher_keys: leave output out": {"teacher_keys": "{output: x}"},
        "teacher_weights is for teachers of timm": {"teacher_weights": "x.pth"},
        "teacher_neuron is for the teacher ann": {
            "distill.teacher": "digits-ann",
            "teacher_neuron": "gelu",
        },
    }
    for message, keys in unused.items():
        with pytest.raises(UserError, match=message):
            teacher_recipe(tiny(tmp_path, **keys), tmp_path)
    (tmp_path / "ann.ckpt").touch()
    trained = {"distill.teacher": str(tmp_path / "ann.ckpt"), "teacher_epochs": "3"}
    with pytest.raises(UserError, match=r"distill.teacher_epochs: .* is trained already"):
        teacher_recipe(tiny(tmp_path, **trained), tmp_path)


def test_a_distilled_recipe_trains_its_teacher_on_the_command_lines_budget(tmp_path: Path) -> None:
    keys = {"epochs": "1", "train_limit": "64", "batch_size": "32", "accelerator": "cpu"}
    run(taught(tmp_path / "run", **keys, image_size="32"))
    loaded = load_checkpoint(tmp_path / "run" / "teacher" / "last.ckpt")
    stored = loaded.extra["recipe"]
    assert (loaded.extra["epoch"], stored["data"]["train_limit"]) == (1, 64)
    assert not loaded.model.config.is_spiking


def test_the_counterpart_of_a_frozen_network_is_trained_whole(tmp_path: Path) -> None:
    keys = {
        "segmentation.frozen_stages": "2",
        "segmentation.norm": "frozen",
        "segmentation.neck_width": "16",
    }
    student = load_recipe("camvid", {**keys, "distill.teacher": "ann"})
    teacher = teacher_recipe(student, tmp_path)
    assert teacher is not None
    assert teacher.segmentation is not None
    assert teacher.segmentation.fields["neck_width"] == 16
    config = teacher.config_for(in_channels=3, num_classes=11)
    assert (config.frozen_stages, config.norm) == (0, "batch")
