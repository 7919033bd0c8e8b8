import csv
import dataclasses
import io
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from recording import Record
from rich.console import Console
from torch._inductor.exc import InductorError

from qsdformer.data import DataModule
from qsdformer.errors import UserError
from qsdformer.models.checkpoint import load, load_checkpoint
from qsdformer.recipes.recipe import Recipe, load_recipe
from qsdformer.tasks.evaluation import evaluate
from qsdformer.training import TrainResult, train

SMALL = {
    "dims": "[8, 16, 16, 16]",
    "depth": "2",
    "heads": "2",
    "image_size": "16",
    "train_limit": "320",
    "epochs": "4",
    "drop_path_rate": "0.2",
    "ema": "0.9",
    "log_every": "1",
    "auto_augment": "rand-m9-mstd0.5-inc1",
    "mixup": "0.8",
    "cutmix": "1.0",
    "mixup_off_epoch": "3",
    "hflip": "true",
    "crop_padding": "2",
    "random_erasing": "0.3",
    "accelerator": "cpu",
}


def small(folder: Path, **overrides: str) -> Recipe:
    return load_recipe("digits", {**SMALL, "output": str(folder), **overrides})


def run(recipe: Recipe, **options: Any) -> TrainResult:
    return train(recipe, console=Console(quiet=True), **options)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Record, TrainResult]:
    """An uninterrupted run of four epochs of five steps."""
    folder, record = tmp_path_factory.mktemp("whole"), Record()
    return folder, record, run(small(folder), callbacks=[record])


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open(newline="", encoding="utf-8") as file:
        # Speed is the one column that two equal runs differ in.
        return [{**row, "images_per_second": ""} for row in csv.DictReader(file)]


@pytest.mark.parametrize("workers", ["0", "1"])
def test_resumed_run_repeats_the_uninterrupted_one_exactly(
    tmp_path: Path, whole: tuple[Path, Record, TrainResult], workers: str
) -> None:
    folder, record, result = whole
    first, second = Record(interrupt_at=13), Record()  # in the third epoch
    with pytest.raises(KeyboardInterrupt):
        run(small(tmp_path, workers=workers), callbacks=[first])
    resumed = run(small(tmp_path, workers=workers), resume=True, callbacks=[second])
    assert sorted(second.losses) == list(range(11, 21))
    assert {**first.losses, **second.losses} == record.losses
    assert resumed.best == result.best
    assert rows(tmp_path) == rows(folder)
    ours = torch.load(tmp_path / "last.ckpt", weights_only=True)["state_dict"]
    theirs = torch.load(folder / "last.ckpt", weights_only=True)["state_dict"]
    assert any(key.startswith("ema.module.") for key in ours)
    assert ours.keys() == theirs.keys()
    for key in ours:
        assert torch.equal(ours[key], theirs[key]), key


def test_other_seeds_and_drop_path_change_the_losses(
    tmp_path: Path, whole: tuple[Path, Record, TrainResult]
) -> None:
    for number, change in enumerate(({"seed": "1"}, {"drop_path_rate": "0"})):
        record = Record()
        run(small(tmp_path / str(number), epochs="1", warmup="0", **change), callbacks=[record])
        assert record.losses[1] != whole[1].losses[1]


def test_run_folder_holds_what_is_promised(whole: tuple[Path, Record, TrainResult]) -> None:
    folder, record, result = whole
    names = {item.name for item in folder.iterdir()}
    expected = {"best.ckpt", "last.ckpt", "recipe.yaml", "metrics.csv", "result.json"}
    assert names == {*expected, "tensorboard"}
    again = load_recipe(str(folder / "recipe.yaml"))
    assert again == dataclasses.replace(small(folder), model=again.model)
    table = rows(folder)
    steps = [row for row in table if not row["val_accuracy"]]
    losses = [float(row["train_loss"]) for row in steps]
    assert losses == pytest.approx(list(record.losses.values()), rel=1e-5)
    epochs = [float(row["val_accuracy"]) for row in table if row["val_accuracy"]]
    assert len(epochs) == 4
    assert max(epochs) == pytest.approx(result.best)
    assert list((folder / "tensorboard").iterdir())


def test_checkpoints_hold_the_evaluated_weights_and_all_that_eval_needs(
    whole: tuple[Path, Record, TrainResult],
) -> None:
    folder, _, result = whole
    loaded = load_checkpoint(folder / "best.ckpt")
    assert loaded.extra["val_accuracy"] == pytest.approx(result.best)
    assert loaded.extra["epoch"] == result.best_epoch
    assert loaded.extra["recipe"]["data"]["name"] == "digits"
    model = load(folder / "best.ckpt")
    batches = DataModule(small(folder).data, batch_size=64).val_dataloader()
    measured = evaluate(model, batches, torch.device("cpu")).top1
    assert measured == pytest.approx(result.best)  # of averaged weights
    assert model.data_info is not None
    assert model.data_info.class_names == tuple("0123456789")


def test_a_run_never_overwrites_another_silently(
    tmp_path: Path, whole: tuple[Path, Record, TrainResult]
) -> None:
    with pytest.raises(UserError, match="is not empty: go on with --resume"):
        run(small(whole[0]))
    (tmp_path / "mine.txt").write_text("keep me")
    (tmp_path / "last.ckpt").write_text("old")
    run(small(tmp_path, epochs="1"), overwrite=True)
    load(tmp_path / "last.ckpt")
    assert (tmp_path / "mine.txt").read_text() == "keep me"


def test_resuming_what_does_not_fit_is_refused(
    tmp_path: Path, whole: tuple[Path, Record, TrainResult]
) -> None:
    last = whole[0] / "last.ckpt"
    cases = {
        "its model has levels=4, the recipe 2": {"levels": "2", "epochs": "9"},
        "has been trained for 4 of 4 epochs": {},
        "train.ema was 0.9": {"ema": "none", "epochs": "9"},
        "another optimizer": {"optimizer": "lamb", "epochs": "9"},
    }
    for expected, overrides in cases.items():
        with pytest.raises(UserError, match=expected):
            run(small(tmp_path, **overrides), resume=last)
    content = torch.load(last, weights_only=True)
    half = {key: value for key, value in content.items() if key != "loops"}
    torch.save(half, tmp_path / "half.ckpt")
    with pytest.raises(UserError, match="no training state"):
        run(small(tmp_path / "run", epochs="9"), resume=tmp_path / "half.ckpt")
    content["qsdformer"]["extra"]["recipe"]["train"] = {"ema": "often"}
    torch.save(content, tmp_path / "half.ckpt")
    with pytest.raises(UserError, match=r"train\.ema='often'"):
        run(small(tmp_path / "run", epochs="9"), resume=tmp_path / "half.ckpt")
    content["qsdformer"]["extra"] = {"recipe": "x"}
    torch.save(content, tmp_path / "half.ckpt")
    with pytest.raises(UserError, match="recipe='x' is not a section"):
        run(small(tmp_path / "run", epochs="9"), resume=tmp_path / "half.ckpt")
    (tmp_path / "half.ckpt").unlink()
    with pytest.raises(UserError, match="nothing to resume: there is no"):
        run(small(tmp_path), resume=tmp_path / "none.ckpt")
    assert list(tmp_path.iterdir()) == []


def test_non_finite_loss_stops_the_run_and_keeps_the_last_good_checkpoint(tmp_path: Path) -> None:
    class Spoil(Callback):
        def on_train_batch_start(self, trainer: Any, module: Any, *args: Any) -> None:
            if trainer.global_step == 7:  # in the second epoch
                module.model.head.weight.data.fill_(float("nan"))

    with pytest.raises(UserError) as caught:
        run(small(tmp_path), callbacks=[Spoil()])
    message = str(caught.value)
    assert "not finite at step 8 (learning rate 0.00" in message
    assert "learning rate is too high" in message
    assert str(tmp_path / "last.ckpt") in message
    for name in ("last.ckpt", "best.ckpt"):
        assert load_checkpoint(tmp_path / name).extra["epoch"] == 1
        assert all(v.isfinite().all() for v in load(tmp_path / name).state_dict().values())


def test_weights_too_large_for_an_evaluation_are_not_saved(tmp_path: Path) -> None:
    class Spoil(Callback):
        def on_validation_start(self, trainer: Any, module: Any) -> None:
            module.evaluated.head.bias.data.fill_(-3e38)[0] = 3e38

    with pytest.raises(UserError, match="the evaluation loss is not finite after step 5, most"):
        run(small(tmp_path), callbacks=[Spoil()])
    assert not list(tmp_path.glob("*.ckpt"))


@pytest.mark.parametrize("step", [5, 20])
def test_weights_broken_by_the_last_step_of_an_epoch_are_not_saved(
    tmp_path: Path, step: int
) -> None:
    class Spoil(Callback):
        def on_train_batch_end(self, trainer: Any, module: Any, *args: Any) -> None:
            if trainer.global_step == step:  # the last one of the first epoch, or of the run
                module.model.head.weight.data.fill_(float("inf"))

    with pytest.raises(UserError, match=f"the weights are not finite after step {step}, most"):
        run(small(tmp_path), callbacks=[Spoil()])
    assert not (tmp_path / "result.json").exists()
    for name in ("last.ckpt", "best.ckpt"):
        assert (tmp_path / name).exists() == (step > 5)
        if step > 5:
            assert all(v.isfinite().all() for v in load(tmp_path / name).state_dict().values())


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ValueError("Expected more than 1 value per channel when training, got"), "--batch_size 2"),
        (RuntimeError("DataLoader worker (pid 7) is killed by signal"), "set --data.workers lower"),
        (InductorError(OSError("No working C++ compiler found"), None), "set --compile false"),
    ],
)
def test_errors_of_pytorch_that_a_user_can_mend_are_one_line(
    tmp_path: Path, error: Exception, said: str
) -> None:
    class Fail(Callback):
        def on_train_batch_end(self, *args: Any) -> None:
            raise error

    with pytest.raises(UserError, match=said):
        run(small(tmp_path), callbacks=[Fail()])


def test_failed_start_leaves_no_folder(tmp_path: Path) -> None:
    recipe = small(tmp_path / "run", train_limit="99999")
    with pytest.raises(UserError, match="train_limit"):
        run(recipe)
    assert list(tmp_path.iterdir()) == []


def test_lamb_clipping_channels_last_and_bf16_train(tmp_path: Path) -> None:
    extra = {"optimizer": "lamb", "clip_grad": "1", "channels_last": "true", "epochs": "2"}
    extra |= {"mixup": "0", "cutmix": "0", "auto_augment": "none"}
    extra |= {"hflip": "false", "crop_padding": "0", "random_erasing": "0"}
    result = run(small(tmp_path, precision="bf16-mixed", warmup="0", **extra))
    first, *_, last = [float(r["train_loss"]) for r in rows(tmp_path) if not r["val_loss"]]
    assert last < first - 0.05  # bfloat16 rounds otherwise on other processors
    assert result.last_path.exists()


@pytest.mark.slow
def test_short_training_of_the_digits_recipe_reaches_90_percent(tmp_path: Path) -> None:
    recipe = load_recipe("digits", {"epochs": "3", "output": str(tmp_path), "accelerator": "cpu"})
    assert run(recipe).best >= 0.90


@pytest.mark.parametrize("terminal", [False, True])
def test_within_a_long_epoch_lines_tell_the_progress_where_there_is_no_terminal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, terminal: bool
) -> None:
    monkeypatch.setattr("qsdformer.training.progress.LINE_EVERY", 0.0)
    written = io.StringIO()
    console = Console(file=written, force_terminal=terminal)
    train(small(tmp_path, epochs="2"), console=console)
    lines = [line for line in written.getvalue().splitlines() if "  step " in line]
    starts = [f"epoch {epoch}/2  step {step}/5  " for epoch in (1, 2) for step in range(1, 6)]
    assert [line[: len(starts[0])] for line in lines] == ([] if terminal else starts)
    assert all("img/s  loss" in line for line in lines)
