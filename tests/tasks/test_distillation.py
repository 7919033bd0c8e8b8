"""Distilled training on a few digits, from the recipe to the checkpoint."""

from __future__ import annotations

import csv
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from timm.models.metaformer import MetaFormer

from qsdformer.data import DataInfo, DataModule, fashion_mnist
from qsdformer.errors import UserError
from qsdformer.models.checkpoint import load_checkpoint, save_checkpoint
from qsdformer.models.metaspikeformer import MetaSpikeFormer
from qsdformer.recipes.recipe import Recipe, load_recipe, parse_recipe
from qsdformer.tasks.distillation import Distillation
from qsdformer.tasks.fgd import fgd_loss, logit_loss
from qsdformer.tasks.teachers import FEATURES, Teacher, checkpoint_teacher
from qsdformer.training import train
from qsdformer.training.teaching import counterpart

MODEL = {"dims": [4, 6, 8, 8], "depth": 2, "heads": 2, "stem_kernel": 3}


def make_recipe(output: Path, **sections: dict[str, Any]) -> Recipe:
    values: dict[str, Any] = {
        "model": {"name": "metaspikeformer_tiny", **MODEL},
        "data": {"name": "digits", "train_limit": 96},
        "train": {"epochs": 2, "batch_size": 32, "log_every": 1},
        "distill": {"fgd_weight": 0.5, "logit_weight": 0.5},
        "output": str(output),
    }
    for name, changes in sections.items():
        values[name] = {**values.get(name, {}), **changes}
    return parse_recipe(values)


@pytest.fixture(scope="module")
def digits() -> DataInfo:
    return DataModule(make_recipe(Path("unused")).data, batch_size=2).info


def metrics(folder: Path) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def ann(info: DataInfo, **fields: Any) -> MetaSpikeFormer:
    recipe = counterpart(make_recipe(Path("unused"), model=fields))
    torch.manual_seed(1)
    return MetaSpikeFormer(recipe.model_config(info))


def test_one_recipe_trains_the_teacher_then_the_student(tmp_path: Path) -> None:
    recipe = make_recipe(tmp_path / "run", distill={"teacher_epochs": 1})
    train(recipe)
    teacher = load_checkpoint(tmp_path / "run" / "teacher" / "last.ckpt").model
    assert teacher.config.neuron == "relu"
    assert teacher.config.dims == (4, 6, 8, 8)
    content = torch.load(tmp_path / "run" / "last.ckpt", weights_only=True)
    student = load_checkpoint(tmp_path / "run" / "last.ckpt").model
    assert {k.removeprefix("model.") for k in content["state_dict"]} == set(student.state_dict())
    epochs = [row for row in metrics(tmp_path / "run") if row["val_accuracy"]]
    assert all(float(row["train_fgd_loss"]) > 0 for row in epochs)
    assert all(float(row["train_logit_loss"]) > 0 for row in epochs)


def test_a_teacher_in_the_run_folder_is_used_again_if_it_is_the_one_wanted(tmp_path: Path) -> None:
    recipe = make_recipe(tmp_path / "run", train={"epochs": 1})
    train(recipe)
    teacher = tmp_path / "run" / "teacher" / "last.ckpt"
    before = teacher.stat().st_mtime_ns
    train(
        make_recipe(tmp_path / "run", train={"epochs": 1}, distill={"fgd_weight": 2.0}),
        overwrite=True,
    )
    assert teacher.stat().st_mtime_ns == before
    train(
        make_recipe(tmp_path / "run", train={"epochs": 1}, distill={"teacher_neuron": "gelu"}),
        overwrite=True,
    )
    assert load_checkpoint(teacher).model.config.neuron == "gelu"


def test_a_distilled_run_resumes_to_the_same_losses(tmp_path: Path, digits: DataInfo) -> None:
    save_checkpoint(tmp_path / "ann.ckpt", ann(digits), digits)
    distill = {"teacher": str(tmp_path / "ann.ckpt"), "schedule": "linear"}

    class Stop(Exception):
        pass

    import lightning

    class StopAfterAnEpoch(lightning.pytorch.Callback):
        def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
            if trainer.current_epoch == 1:
                raise Stop

    whole = make_recipe(tmp_path / "whole", distill=distill)
    train(whole)
    broken = make_recipe(tmp_path / "broken", distill=distill)
    with pytest.raises(Stop):
        train(broken, callbacks=[StopAfterAnEpoch()])
    train(broken, resume=True)
    weights = [load_checkpoint(r.output + "/last.ckpt").model.state_dict() for r in (whole, broken)]
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])


def test_the_student_alone_gets_gradients(digits: DataInfo, tmp_path: Path) -> None:
    teacher = Teacher(ann(digits))
    task = Distillation(make_recipe(tmp_path, distill={"logit_weight": 0.0}), digits, teacher)
    assert len(list(task.parameters())) == len(list(task.model.parameters()))
    assert not any("teacher" in key for key in task.state_dict())
    assert not any(p.requires_grad for p in teacher.model.parameters())


def test_a_wider_teacher_with_other_heads_and_depth_teaches(
    digits: DataInfo, tmp_path: Path
) -> None:
    teacher = ann(digits, dims=[8, 8, 16, 16], heads=4, depth=4)
    save_checkpoint(tmp_path / "wide.ckpt", teacher, digits)
    distill = {"teacher": str(tmp_path / "wide.ckpt")}
    train(make_recipe(tmp_path / "run", train={"epochs": 1}, distill=distill))
    assert 0 < float(metrics(tmp_path / "run")[-1]["train_fgd_loss"]) < 2


def test_a_timm_teacher_by_name_trained_at_another_size_and_in_colour(tmp_path: Path) -> None:
    model = timm.create_model("test_vit", img_size=64, num_classes=10)
    torch.save(model.state_dict(), tmp_path / "vit.pth")
    distill = {"teacher": "timm:test_vit", "teacher_weights": str(tmp_path / "vit.pth")}
    train(make_recipe(tmp_path / "run", train={"epochs": 1}, distill=distill))
    last = metrics(tmp_path / "run")[-1]
    assert float(last["train_fgd_loss"]) > 0
    assert float(last["train_logit_loss"]) > 0


def test_any_classifier_of_timm_teaches_by_its_logits(tmp_path: Path) -> None:
    model = timm.create_model("test_efficientnet", num_classes=10)
    torch.save(model.state_dict(), tmp_path / "cnn.pth")
    distill = {"teacher": "timm:test_efficientnet", "teacher_weights": str(tmp_path / "cnn.pth")}
    with pytest.raises(UserError, match=r"no attention .* set distill\.fgd_weight to 0"):
        train(make_recipe(tmp_path / "run", train={"epochs": 1}, distill=distill))
    logits = {**distill, "fgd_weight": 0.0}
    train(make_recipe(tmp_path / "run", train={"epochs": 1}, distill=logits))
    last = metrics(tmp_path / "run")[-1]
    assert float(last["train_logit_loss"]) > 0
    assert not last["train_fgd_loss"]


def test_a_caformer_teaches_with_the_stage_of_the_students_grid(
    digits: DataInfo,
    tmp_path: Path,
    make_caformer: Callable[..., MetaFormer],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Distillation, "total_steps", 10)
    model = make_caformer(in_chans=1, num_classes=10, depths=(1, 1, 3, 1))
    task = Distillation(make_recipe(tmp_path), digits, Teacher(model))
    images = torch.randn(2, 1, 32, 32)
    task._open_reader()
    losses = task.extra_losses(images, task.model(images))
    assert task._matched == [1, 2]  # of 3 blocks on 2x2 tokens; the last stage has 1x1
    assert float(losses["fgd_loss"]) > 0


def test_losses_have_the_recipes_weights_schedule_temperature_and_blocks(
    digits: DataInfo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Distillation, "total_steps", 11)
    distill = {"fgd_weight": 2.0, "logit_weight": 3.0, "temperature": 4.0, "schedule": "linear"}
    teacher = Teacher(ann(digits, depth=4))
    task = Distillation(make_recipe(tmp_path, distill=distill), digits, teacher)
    task._open_reader()
    task.schedule_step = 5  # of 0 to 10: half of each loss is left
    images = torch.randn(4, 1, 32, 32)
    logits = task.model(images)
    losses = task.extra_losses(images, logits)
    target, blocks = teacher(images)
    assert task._reader is not None
    own = task._reader.blocks()
    matched = [blocks[i] for i in task._matched]
    assert len(matched) == len(own) > 1
    fgd = fgd_loss(own, matched)
    assert not torch.isclose(fgd, fgd_loss(own, matched[::-1]))  # the order of blocks matters
    torch.testing.assert_close(losses["fgd_loss"], 0.5 * 2 * fgd)
    torch.testing.assert_close(losses["logit_loss"], 0.5 * 3 * logit_loss(logits, target, 4.0))


def test_membrane_potentials_of_a_lif_student_can_be_taught(
    digits: DataInfo, tmp_path: Path
) -> None:
    save_checkpoint(tmp_path / "ann.ckpt", ann(digits), digits)
    recipe = make_recipe(
        tmp_path / "run",
        model={"neuron": "lif", "levels": 1, "time_steps": 2},
        train={"epochs": 1},
        distill={"teacher": str(tmp_path / "ann.ckpt"), "source": "membrane", "features": ["q"]},
    )
    train(recipe)
    loss = float(metrics(tmp_path / "run")[-1]["train_fgd_loss"])
    assert 0 < loss < 2  # of two similarities of norm 1 each; silent neurons would give exactly 1
    assert loss != 1


def test_an_activity_penalty_and_a_teacher_go_together(digits: DataInfo, tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "ann.ckpt", ann(digits), digits)
    distill = {"teacher": str(tmp_path / "ann.ckpt")}
    train(make_recipe(tmp_path / "run", distill=distill, activity={"weight": 1.0, "kind": "group"}))
    last = metrics(tmp_path / "run")[-1]
    assert float(last["train_activity_loss"]) > 0
    assert float(last["train_fgd_loss"]) > 0


def test_the_counterpart_shares_shape_data_budget_and_seed() -> None:
    spiking = {"neuron": "lif", "levels": 1, "time_steps": 4, "weight_bits": 2, "rectify": "none"}
    recipe = make_recipe(Path("run"), model=spiking, activity={})
    other = counterpart(recipe)
    assert other.model.to_dict()["dims"] == MODEL["dims"]
    assert not set(spiking) - {"neuron"} & set(other.model.fields)
    assert (other.data, other.train, other.seed) == (recipe.data, recipe.train, recipe.seed)
    assert other.distill is None
    assert other.activity is None


@pytest.mark.parametrize("teacher", ["nowhere.ckpt", "anm"])
def test_a_missing_teacher_is_one_line(tmp_path: Path, teacher: str) -> None:
    with pytest.raises(UserError, match="no teacher") as error:
        train(make_recipe(tmp_path / "run", distill={"teacher": teacher}))
    assert "\n" not in str(error.value)
    assert not (tmp_path / "run" / "last.ckpt").exists()


def test_a_teacher_of_another_grid_is_one_line_with_both_grids(
    digits: DataInfo, tmp_path: Path
) -> None:
    teacher = Teacher(ann(digits, stem_stride=1))
    with pytest.raises(UserError, match=r"student's token grid is 2x2, the teacher's 4x4"):
        Distillation(make_recipe(tmp_path), digits, teacher)


def test_a_teacher_in_another_class_space_is_one_line(digits: DataInfo, tmp_path: Path) -> None:
    model = ann(digits)
    model.reset_classifier(7)
    with pytest.raises(UserError, match="7 classes and the data 10"):
        Distillation(make_recipe(tmp_path), digits, Teacher(model))
    only_fgd = make_recipe(tmp_path, distill={"logit_weight": 0.0})
    Distillation(only_fgd, digits, Teacher(model))


LETTERS = tuple("abcdefghij")
NUMBERS = tuple("0123456789")
FOLDER = {"name": "image_folder", "root": "images"}
FASHION = {"name": "fashion_mnist"}
DIGITS = {"name": "digits"}


@pytest.fixture
def taught(tmp_path: Path, digits: DataInfo) -> Callable[..., Distillation]:
    """A student of data with some class names, of a teacher that was trained on others."""

    def make(
        mine: tuple[str, ...], data: dict[str, Any], theirs: tuple[str, ...], taught_on: Any
    ) -> Distillation:
        own, other = (dataclasses.replace(digits, class_names=names) for names in (mine, theirs))
        extra = {} if taught_on is None else {"recipe": {"data": taught_on}}
        save_checkpoint(tmp_path / "ann.ckpt", ann(digits), other, extra)
        teacher = checkpoint_teacher(tmp_path / "ann.ckpt", own, FEATURES)
        recipe = make_recipe(tmp_path / "run", data=data)
        return Distillation(recipe, own, teacher)

    return make


@pytest.mark.parametrize(
    ("mine", "data", "theirs", "taught_on", "message"),
    [
        (LETTERS, FOLDER, LETTERS[::-1], FOLDER, "class 'j' .* is 'a' in the data"),
        (LETTERS, FOLDER, (*LETTERS[:9], "z"), None, "class 'z' .* is 'j' in the data"),
        (fashion_mnist.CLASS_NAMES, FASHION, NUMBERS, DIGITS, "class '0' .* is 'T-shirt/top'"),
        (NUMBERS, DIGITS, fashion_mnist.CLASS_NAMES, FASHION, "class 'T-shirt/top' .* is '0'"),
    ],
)
def test_a_teacher_of_as_many_other_classes_is_one_line(
    taught: Callable[..., Distillation],
    mine: tuple[str, ...],
    data: dict[str, Any],
    theirs: tuple[str, ...],
    taught_on: dict[str, Any] | None,
    message: str,
) -> None:
    with pytest.raises(UserError, match=message) as error:
        taught(mine, data, theirs, taught_on)
    assert "set distill.logit_weight to 0" in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("mine", "data", "theirs", "taught_on"),
    [
        (LETTERS, FOLDER, LETTERS, FOLDER),
        (LETTERS, FOLDER, NUMBERS, FOLDER),
        (LETTERS, FOLDER, NUMBERS, None),
        (NUMBERS, FOLDER, LETTERS, FOLDER),
        (NUMBERS, DIGITS, NUMBERS, DIGITS),
    ],
)
def test_classes_that_a_folder_only_numbers_may_be_any(
    taught: Callable[..., Distillation],
    mine: tuple[str, ...],
    data: dict[str, Any],
    theirs: tuple[str, ...],
    taught_on: dict[str, Any] | None,
) -> None:
    taught(mine, data, theirs, taught_on)


def test_names_of_classes_do_not_matter_where_tokens_alone_are_compared(
    digits: DataInfo, tmp_path: Path
) -> None:
    save_checkpoint(
        tmp_path / "ann.ckpt", ann(digits), dataclasses.replace(digits, class_names=LETTERS)
    )
    teacher = checkpoint_teacher(tmp_path / "ann.ckpt", digits, FEATURES)
    Distillation(make_recipe(tmp_path, distill={"logit_weight": 0.0}), digits, teacher)


def test_a_negative_weight_in_a_recipe_names_its_key() -> None:
    with pytest.raises(UserError, match=r"distill\.fgd_weight=-1.0: must be 0 or more"):
        load_recipe("digits", {"distill.fgd_weight": "-1"})


def test_a_compiled_student_learns_the_same_without_compiling_again(
    digits: DataInfo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Distillation, "total_steps", 10)
    losses = []
    for compiled in (False, True):
        recipe = make_recipe(tmp_path, activity={"kind": "group"})
        task = Distillation(recipe, digits, Teacher(ann(digits)))
        if compiled:
            # What is tested is how hooks survive tracing, so the quickest backend will do.
            task.model.compile(backend="eager")
            task._teacher.model.compile(backend="eager")
        task.on_fit_start()
        assert task._reader is not None
        generator = torch.Generator().manual_seed(0)
        values = []
        for step in range(3):  # a hook lost after the first step would show in the second
            images = torch.rand(8, digits.channels, 32, 32, generator=generator)
            task._reader.clear()
            assert task.penalty is not None
            task.penalty.clear()
            with torch._dynamo.config.patch(error_on_recompile=step > 0):
                total = sum(task.extra_losses(images, task.model(images)).values())
            assert isinstance(total, torch.Tensor)
            values.append(total.item())
            total.backward()
        losses.append(values)
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_a_student_of_one_token_a_block_is_refused_or_told(
    digits: DataInfo, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small = dataclasses.replace(digits, image_size=16)
    with pytest.raises(UserError, match="token grid of every block is 1x1"):
        Distillation(
            make_recipe(tmp_path, distill={"logit_weight": 0.0}), small, Teacher(ann(digits))
        )
    recipe = make_recipe(
        tmp_path / "run",
        data={"image_size": 16},
        train={"epochs": 1},
        distill={"teacher_epochs": 1},
    )
    train(recipe)
    assert "only the teacher's logits teach" in capsys.readouterr().out
