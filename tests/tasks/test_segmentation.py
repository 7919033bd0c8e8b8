"""Segmentation: known scores of hand-made masks, windows, and a run from training to pictures."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from data.segmentation.mask_files import save, write_camvid
from lightning.pytorch import Callback
from PIL import Image
from rich.console import Console
from torch import Tensor, nn

from qsdformer.cli import run as command
from qsdformer.data import DataModule
from qsdformer.data.base import DataInfo
from qsdformer.data.segmentation.labels import IGNORE
from qsdformer.data.segmentation.names import CAMVID
from qsdformer.errors import UserError
from qsdformer.models.checkpoint import load_checkpoint
from qsdformer.models.dense.config import SegmentationConfig
from qsdformer.models.networks import build_network
from qsdformer.nn.scaling import scaled
from qsdformer.nn.taps import spiking_neurons
from qsdformer.recipes.dense import SegmentationRecipe
from qsdformer.recipes.recipe import Recipe, load_recipe, parse_recipe
from qsdformer.tasks.dense_distillation import TaughtSegmentation
from qsdformer.tasks.fgd import fgd_loss
from qsdformer.tasks.segmentation import Segmentation, balanced, mean_loss
from qsdformer.tasks.segmenting import (
    MaskScores,
    Segmenter,
    evaluate_masks,
    window_starts,
)
from qsdformer.tasks.teachers import Teacher
from qsdformer.training import train

X = IGNORE  # in the tables below


def scores_of(found: list[list[int]], true: list[list[int]], classes: int = 3) -> MaskScores:
    scores = MaskScores(classes)
    scores.update(torch.tensor([found]), torch.tensor([true]))
    return scores


def test_a_perfect_mask_has_iou_1_and_absent_classes_do_not_count() -> None:
    scores = scores_of([[0, 0], [1, 1]], [[0, 0], [1, 1]]).compute()
    assert scores.iou[:2] == (1, 1)
    assert math.isnan(scores.iou[2])
    assert math.isnan(scores.accuracy[2])
    assert (scores.mean_iou, scores.pixel_accuracy) == (1, 1)
    assert scores.share == (0.5, 0.5, 0)


def test_a_wrong_mask_has_iou_0() -> None:
    scores = scores_of([[1, 1]], [[0, 0]]).compute()
    assert (scores.mean_iou, scores.pixel_accuracy) == (0, 0)
    assert scores.iou[:2] == (0, 0)  # the class found is shown, too


def test_known_overlaps_give_known_scores() -> None:
    # Class 0: 3 of 4 found, 1 too many: 3/5. Class 1: 2 of 3, 2 too many: 2/5. Class 2: 0 of 1.
    found = [[0, 0, 0, 1], [0, 1, 1, 1]]
    true = [[0, 0, 0, 0], [1, 1, 1, 2]]
    scores = scores_of(found, true).compute()
    assert scores.iou == pytest.approx((3 / 5, 2 / 5, 0))
    assert scores.mean_iou == pytest.approx((3 / 5 + 2 / 5 + 0) / 3)
    assert scores.accuracy == pytest.approx((3 / 4, 2 / 3, 0))
    assert scores.pixel_accuracy == pytest.approx(5 / 8)
    assert scores.share == pytest.approx((4 / 8, 3 / 8, 1 / 8))


def test_ignored_pixels_are_not_counted_whatever_is_found_there() -> None:
    scores = scores_of([[0, 1, 2], [0, 1, 2]], [[0, X, X], [0, 1, X]]).compute()
    assert scores.iou[:2] == (1, 1)
    assert math.isnan(scores.iou[2])
    assert scores.pixel_accuracy == 1
    nothing = scores_of([[0, 1]], [[X, X]]).compute()
    assert (nothing.mean_iou, nothing.pixel_accuracy) == (0, 0)


def test_intersections_and_unions_are_summed_over_the_set_not_averaged_over_images() -> None:
    scores = MaskScores(2)
    scores.update(torch.tensor([[[0, 0, 0, 0]]]), torch.tensor([[[0, 0, 0, 0]]]))
    scores.update(torch.tensor([[[1, 1, 1, 1]]]), torch.tensor([[[0, 0, 1, 1]]]))
    # Class 0: 4 of 6. Class 1: 2 of 4. A mean over images would be (1 + 1/4) / 2.
    assert scores.compute().mean_iou == pytest.approx((4 / 6 + 2 / 4) / 2)
    scores.reset()
    scores.update(torch.tensor([[[1]]]), torch.tensor([[[1]]]))
    assert scores.compute().mean_iou == 1


def test_rare_classes_weigh_more_and_unseen_ones_nothing() -> None:
    pixels, around = torch.tensor([80.0, 20.0, 5.0, 0.0]), torch.tensor([100.0, 100.0, 50.0, 0.0])
    # Shares .8, .2, .1: the median is .2.
    assert balanced(pixels, around, 1.0).tolist() == pytest.approx([0.25, 1, 2, 0])
    assert balanced(pixels, around, 0.5).tolist() == pytest.approx([0.5, 1, 2**0.5, 0])
    with pytest.raises(UserError, match="show no class"):
        balanced(torch.zeros(3), torch.zeros(3), 1.0)


class Coordinates(nn.Module):
    """Logits that are a linear function of the pixels, at half the size; counts its calls."""

    multiple = 4

    def __init__(self) -> None:
        super().__init__()
        self.shapes: list[tuple[int, ...]] = []

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        assert all(side % self.multiple == 0 for side in images.shape[-2:])
        self.shapes.append(tuple(images.shape[-2:]))
        return {"mask": nn.functional.avg_pool2d(images[:, :2], 2)}


def test_whole_images_of_any_size_are_padded_and_cropped_again() -> None:
    network = Coordinates()
    images = torch.rand(2, 3, 10, 13)
    logits = Segmenter(network=network)(images)
    assert logits.shape == (2, 2, 10, 13)
    assert network.shapes == [(12, 16)]
    even = torch.rand(1, 3, 8, 12)
    exact = scaled(nn.functional.avg_pool2d(even[:, :2], 2), (8, 12))
    assert torch.equal(Segmenter(network=network)(even), exact)
    assert Segmenter(network=network)(even, (20, 30)).shape == (1, 2, 20, 30)


@pytest.mark.parametrize(
    ("length", "window", "overlap", "starts"),
    [
        (8, 8, 0.5, [0]),
        (12, 8, 0.5, [0, 4]),
        (13, 8, 0.5, [0, 4, 5]),
        (16, 8, 0.0, [0, 8]),
    ],
)
def test_windows_cover_all_with_the_wanted_overlap(
    length: int, window: int, overlap: float, starts: list[int]
) -> None:
    assert window_starts(length, window, overlap) == starts


def test_windows_give_the_mean_of_all_that_see_a_pixel() -> None:
    network = Coordinates()
    flat = torch.arange(2.0).view(1, 2, 1, 1).expand(1, 2, 12, 20).contiguous()
    logits = Segmenter(network=network, window=(8, 8), overlap=0.5)(flat)
    assert torch.equal(logits, flat)  # a mean of equal values, whatever their number
    assert network.shapes == [(8, 8)] * 2 * 4


def test_a_pixel_of_two_windows_has_the_mean_of_their_logits() -> None:
    """The network's logits are the number of its call: 0 above, 1 below."""

    class Numbered(Coordinates):
        def forward(self, images: Tensor) -> dict[str, Tensor]:
            number = len(self.shapes)
            return {"mask": torch.full_like(super().forward(images)["mask"], number)}

    logits = Segmenter(network=Numbered(), window=(8, 8), overlap=0.5)(torch.zeros(1, 3, 12, 8))
    assert logits.shape == (1, 2, 12, 8)
    assert logits[0, 0, :, 0].tolist() == [0.0] * 4 + [0.5] * 4 + [1.0] * 4
    assert torch.equal(logits, logits[:, :1, :, :1].expand_as(logits))


def test_an_image_smaller_than_the_window_is_looked_at_as_far_as_it_reaches() -> None:
    network, image = Coordinates(), torch.rand(1, 3, 4, 12)
    logits = Segmenter(network=network, window=(8, 8), overlap=0.5)(image)
    assert network.shapes == [(4, 8)] * 2
    left, right = (
        scaled(nn.functional.avg_pool2d(image[:, :2, :, at : at + 8], 2), (4, 8)) for at in (0, 4)
    )
    middle = (left[..., 4:] + right[..., :4]) / 2
    expected = torch.cat([left[..., :4], middle, right[..., 4:]], dim=3)
    torch.testing.assert_close(logits, expected)


def test_windows_are_as_the_recipe_says() -> None:
    network = Coordinates()
    section = SegmentationRecipe(inference="slide", overlap=0.25)
    info = DataInfo(
        image_size=(8, 12), channels=3, class_names=("a", "b"), mean=(0.0,) * 3, std=(1.0,) * 3
    )
    made = Segmenter.of(network, section, info)
    assert (made.window, made.overlap) == ((8, 12), 0.25)


def test_images_of_several_sizes_in_a_batch_are_scored_one_by_one() -> None:
    images = [torch.zeros(3, 4, 4), torch.zeros(3, 2, 6)]
    masks = [torch.zeros(4, 4, dtype=torch.int64), torch.ones(2, 6, dtype=torch.int64)]

    def always_0(image: Tensor, size: Any) -> Tensor:
        assert tuple(image.shape[-2:]) == tuple(size)
        return torch.tensor([1.0, 0.0]).view(1, 2, 1, 1).expand(len(image), 2, *size)

    result = evaluate_masks(always_0, [(images, masks)], 2)
    assert result.images == 2
    assert result.scores.iou == pytest.approx((16 / 28, 0))
    with pytest.raises(UserError, match="no images"):
        evaluate_masks(always_0, [], 2)


SMALL = {
    "model.dims": "[4, 6, 8, 8]",
    "model.depth": "2",
    "model.heads": "2",
    "segmentation.neck_width": "8",
    "segmentation.head_width": "8",
    "data.image_size": "[32, 48]",
    "train.epochs": "2",
    "train.batch_size": "4",
    "train.ema": "0.5",
    "train.log_every": "1",
    "train.accelerator": "cpu",
}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_camvid(tmp_path_factory.mktemp("camvid"), count=8)


def small(files: Path, folder: Path, **keys: str) -> Recipe:
    named = {name.replace("__", "."): value for name, value in keys.items()}
    return load_recipe("camvid", {**SMALL, "data.root": str(files), "output": str(folder), **named})


@pytest.fixture(scope="module")
def run(files: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder of two epochs."""
    folder = tmp_path_factory.mktemp("run") / "run"
    train(small(files, folder), console=Console(quiet=True))
    return folder


def test_a_run_leaves_checkpoints_metrics_and_pictures(run: Path) -> None:
    with (run / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    epochs = [row for row in rows if row["val_miou"]]
    assert len(epochs) == 2
    assert len(rows) == 2 + 4
    assert all(0 <= float(row["val_miou"]) <= 1 for row in epochs)
    assert all(math.isfinite(float(row["train_loss"])) for row in rows)
    result = json.loads((run / "result.json").read_text())
    best = max(float(row["val_miou"]) for row in epochs)
    assert result["best_miou"] == pytest.approx(best, abs=1e-6)
    loaded = load_checkpoint(run / "last.ckpt")
    assert loaded.task == "segmentation"
    assert isinstance(loaded.model.config, SegmentationConfig)
    assert loaded.info is not None
    assert loaded.info.sides == (32, 48)
    assert loaded.info.class_names == CAMVID
    events = list((run / "tensorboard").glob("events*"))
    assert b"image, found, true" in events[0].read_bytes()


def test_eval_repeats_the_figure_of_training(
    run: Path, files: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(["eval", str(run / "last.ckpt"), "--json", "--device", "cpu"]) == 0
    values = json.loads(capsys.readouterr().out)
    with (run / "metrics.csv").open(newline="") as file:
        last = [row for row in csv.DictReader(file) if row["val_miou"]][-1]
    assert values["miou"] == pytest.approx(float(last["val_miou"]), abs=1e-6)
    assert values["pixel_accuracy"] == pytest.approx(float(last["val_pixel_accuracy"]), abs=1e-6)
    assert [row["class"] for row in values["classes"]] == list(CAMVID)
    assert values["images"] == 8
    again = ["eval", str(run / "last.ckpt"), "--limit", "3", "--data.split", "train"]
    assert command([*again, "--inference", "slide", "--full_size"]) == 0
    text = capsys.readouterr().out
    assert "of 3 images" in text
    assert all(name in text for name in CAMVID)


def test_images_of_sizes_that_strides_do_not_divide_train_and_export(
    files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    keys = {"train.epochs": "1", "data.image_size": "[30, 44]", "data.root": str(files)}
    recipe = load_recipe("camvid", {**SMALL, **keys, "output": str(tmp_path / "run")})
    train(recipe, console=Console(quiet=True))
    checkpoint, artifact = str(tmp_path / "run/last.ckpt"), str(tmp_path / "odd.qsd")
    assert command(["eval", checkpoint, "--json", "--device", "cpu"]) == 0
    here = json.loads(capsys.readouterr().out)
    assert command(["export", checkpoint, artifact]) == 0
    capsys.readouterr()
    assert command(["eval", artifact, "--json", "--data.root", str(files)]) == 0
    there = json.loads(capsys.readouterr().out)
    assert there["pixel_accuracy"] == pytest.approx(here["pixel_accuracy"], abs=0.02)
    assert there["images"] == here["images"] == 8


def test_eval_needs_only_the_split_that_it_is_of(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_camvid(tmp_path, count=3)
    (tmp_path / "val").rename(tmp_path / "test")
    (tmp_path / "train").rename(tmp_path / "other")
    aside = ["--data.root", str(tmp_path), "--data.split", "test", "--device", "cpu"]
    assert command(["eval", str(run / "last.ckpt"), "--json", *aside]) == 0
    published = json.loads(capsys.readouterr().out)
    assert (published["data"], published["images"]) == ("camvid", 3)
    unnamed = ["--data.name", "mask_folder", "--data.ignore_label", "11"]
    assert command(["eval", str(run / "last.ckpt"), "--json", *aside, *unnamed]) == 0
    assert json.loads(capsys.readouterr().out)["miou"] == published["miou"]
    (tmp_path / "classes.txt").write_text("\n".join(["sea", *CAMVID[1:]]))
    assert command(["eval", str(run / "last.ckpt"), *aside, *unnamed]) == 2
    assert "class 'sky' is 'sea' in the dataset" in capsys.readouterr().err


def test_predict_draws_what_is_found_with_a_legend(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    grey = save(np.zeros((50, 70), np.uint8), tmp_path / "in" / "one.png")
    colours = np.zeros((40, 30, 4), np.uint8)
    save(colours, tmp_path / "in" / "deep" / "one.png")
    out = tmp_path / "out"
    words = ["predict", str(run / "best.ckpt"), str(tmp_path / "in"), "--output", str(out)]
    assert command([*words, "--json", "--device", "cpu"]) == 0
    entries = json.loads(capsys.readouterr().out)
    assert len(entries) == 2
    for entry in entries:
        assert sum(row["share"] for row in entry["classes"]) == pytest.approx(1)
        with Image.open(entry["image"]) as image, Image.open(entry["mask"]) as mask:
            assert mask.size == image.size
            assert int(np.asarray(mask).max()) < len(CAMVID)
        with Image.open(entry["picture"]) as drawn:
            assert drawn.size[0] > mask.size[0]
    assert sorted(p.name for p in out.iterdir()) == [
        *("one-2-mask.png", "one-2.png", "one-mask.png", "one.png")
    ]
    assert command(["predict", str(run / "best.ckpt"), str(grey), "--output", str(grey)]) == 2
    assert "choose another folder with --output" in capsys.readouterr().err


def test_a_picture_never_overwrites_an_image_nor_another_picture(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image = save(np.zeros((50, 70), np.uint8), tmp_path / "in" / "one.png")
    (tmp_path / "linked").symlink_to(image.parent)
    before, words = image.read_bytes(), ["predict", str(run / "best.ckpt")]
    for given in (image, image.parent, tmp_path / "linked" / "one.png"):
        assert command([*words, str(given), "--output", str(image.parent)]) == 2
        assert "one.png lies in" in capsys.readouterr().err
    assert image.read_bytes() == before
    mask = save(np.zeros((50, 70), np.uint8), tmp_path / "in" / "one-mask.png")
    out = tmp_path / "out"
    assert command([*words, str(image), str(mask), "--output", str(out)]) == 0
    assert len(list(out.iterdir())) == 4


def test_a_picture_never_overwrites_what_lies_beside_an_image(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photos = tmp_path / "photos"
    beside = save(np.zeros((50, 70), np.uint8), photos / "a.png")
    photo, before = beside.with_suffix(".jpg"), beside.read_bytes()
    Image.new("RGB", (70, 50)).save(photo)
    (tmp_path / "linked.jpg").symlink_to(photo)
    (tmp_path / "same").symlink_to(photos)
    words = ["predict", str(run / "best.ckpt"), "--output"]
    for output, image in ((photos, photo), (tmp_path / "same", photo), (photos, "linked.jpg")):
        assert command([*words, str(output), str(tmp_path / image)]) == 2
        said = capsys.readouterr().err
        assert f"{tmp_path / image} lies in {output}" in said
        assert said.endswith("choose another folder with --output\n")
        assert said.count("\n") == 1
    assert beside.read_bytes() == before
    assert sorted(path.name for path in photos.iterdir()) == ["a.jpg", "a.png"]


class Interrupt(Callback):
    """Stops, as Ctrl-C would, after some steps."""

    def on_train_batch_end(self, trainer: Any, *rest: Any) -> None:
        if trainer.global_step == 3:
            raise KeyboardInterrupt


def test_an_interrupted_run_ends_as_one_that_was_not(
    run: Path, files: Path, tmp_path: Path
) -> None:
    with pytest.raises(KeyboardInterrupt):
        train(small(files, tmp_path), console=Console(quiet=True), callbacks=[Interrupt()])
    result = train(small(files, tmp_path), resume=True, console=Console(quiet=True))
    assert result.metric == "miou"
    whole, resumed = (load_checkpoint(folder / "last.ckpt") for folder in (run, tmp_path))
    assert whole.extra["val_miou"] == resumed.extra["val_miou"]
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, resumed.model.state_dict()[name]), name
    again = small(files, tmp_path, train__epochs="3", model__levels="2")
    with pytest.raises(UserError, match=r"backbone\.levels=4"):
        train(again, resume=True, console=Console(quiet=True))


def test_spikes_are_penalised_in_neck_and_head_too(files: Path, tmp_path: Path) -> None:
    keys = {"activity.weight": "1.0", "activity.target": "0.0", "train.epochs": "1"}
    settings = {**SMALL, **keys, "data.root": str(files), "output": str(tmp_path / "run")}
    train(load_recipe("camvid", settings), console=Console(quiet=True))
    with (tmp_path / "run/metrics.csv").open(newline="") as file:
        last = list(csv.DictReader(file))[-1]
    assert float(last["train_activity_loss"]) > 0
    recipe = load_recipe("camvid", settings)
    task = Segmentation(recipe, DataModule(recipe.data, batch_size=2).info)
    assert task.penalty is not None
    assert set(task.penalty._neurons) == set(spiking_neurons(task.model))
    parts = {name.split(".")[0] for name in task.penalty._neurons}
    assert {"neck", "head"} < parts


def test_a_teacher_of_the_same_kind_is_trained_first_and_its_tokens_compared(
    files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    keys = {"distill.teacher": "ann", "train.epochs": "1", "data.root": str(files)}
    recipe = load_recipe("camvid", {**SMALL, **keys, "output": str(tmp_path / "run")})
    train(recipe, console=Console(width=200))
    assert "its teacher comes first" in capsys.readouterr().out
    teacher = load_checkpoint(tmp_path / "run/teacher/last.ckpt")
    assert not teacher.model.config.is_spiking
    with (tmp_path / "run/metrics.csv").open(newline="") as file:
        last = list(csv.DictReader(file))[-1]
    assert float(last["train_fgd_loss"]) > 0
    student = load_checkpoint(tmp_path / "run/last.ckpt")
    assert student.task == "segmentation"
    assert not any("teacher" in name for name in student.model.state_dict())


def test_the_tokens_of_a_teacher_that_is_the_student_are_no_loss(
    files: Path, tmp_path: Path
) -> None:
    keys = {"distill.teacher": "ann", "train.batch_size": "2"}
    recipe = load_recipe("camvid", {**SMALL, **keys, "data.root": str(files)})
    data = DataModule(recipe.data, batch_size=2)
    model = build_network(recipe.model_config(data.info))
    task = TaughtSegmentation(recipe, data.info, Teacher(cast(Any, model).body))
    cast(Any, model).load_state_dict(task.model.state_dict())
    task.on_fit_start()
    task.model.eval()
    task.network.backbone.training = True  # its pass is noted in training only
    images, _ = next(iter(data.val_dataloader()))
    with torch.no_grad():
        task.model(images)
    _, own = task._teacher(task.teacher_images(images))
    assert task._reader is not None
    assert fgd_loss(task._reader.blocks(), own).item() == 0
    task.on_fit_end()


def test_a_backbone_starts_from_the_teacher_that_it_learns_from(
    files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    keys = {"distill.teacher": "ann", "start_from": "teacher", "output": str(tmp_path / "run")}
    recipe = load_recipe("camvid", {**SMALL, **keys, "data.root": str(files), "lr": "1e-9"})
    train(recipe, console=Console(width=300))
    said = capsys.readouterr().out
    assert f"backbone from {tmp_path / 'run/teacher/last.ckpt'}" in said
    assert "attention.attention_norm.weight" in said.partition("newly initialised: ")[2]
    own, there = (load_checkpoint(tmp_path / f"run/{n}last.ckpt").model for n in ("", "teacher/"))
    weight = "stages.1.blocks.0.conv1.weight"
    values = [cast(Any, model).body.state_dict()[weight] for model in (own, there)]
    torch.testing.assert_close(*values, atol=1e-6, rtol=1e-6)


def test_what_a_student_lacks_is_said_before_its_teacher_is_trained(
    files: Path, tmp_path: Path
) -> None:
    keys = {"distill.teacher": "ann", "class_weights": "[1, 2]", "balance": "0"}
    keys |= {"data.root": str(files), "output": str(tmp_path / "run")}
    with pytest.raises(UserError, match="class_weights has 2 numbers"):
        train(load_recipe("camvid", {**SMALL, **keys}), console=Console(quiet=True))
    assert not (tmp_path / "run/teacher").exists()


def test_the_backbone_starts_from_a_classifier(
    files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    keys = ["--model.dims", "[4, 6, 8, 8]", "--model.depth", "2", "--model.heads", "2"]
    keys += ["--image_size", "16", "--train_limit", "64", "--epochs", "1"]
    assert command(["train", "digits", *keys, "--output", str(tmp_path / "digits")]) == 0
    start = str(tmp_path / "digits/last.ckpt")
    capsys.readouterr()
    shape = {"model.stem_stride": "2", "model.stem_kernel": "3", "model.start_from": start}
    recipe = load_recipe(
        "camvid",
        {**SMALL, **shape, "data.root": str(files), "output": str(tmp_path / "run")},
    )
    console = Console(width=200)
    train(recipe, console=console)
    said = capsys.readouterr().out
    assert "backbone from" in said
    assert "left out: head." in said


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"segmentation": {"class_weights": [1.0]}}, "class_weights has 1 numbers"),
        ({"segmentation": {"balance": 2.0}}, r"segmentation\.balance=2\.0: must be in \[0, 1\]"),
        ({"segmentation": {"bits": 1}}, r"segmentation\.bits=1: must be 2 to 8 bits"),
        ({"segmentation": {"neck": 1}}, r"unknown recipe key segmentation\.neck"),
        ({"detection": {}}, "detection is a section for task: detection"),
        ({"distill": {"logit_weight": 1.0}}, "learns from the teacher's tokens alone"),
        ({"data": {"name": "digits"}}, r"data\.name='digits': must be one of mask_folder"),
        ({"task": "colouring"}, "task='colouring': must be one of classification"),
        ({"model": {"name": "sdt_tiny"}}, "one token grid"),
    ],
)
def test_a_recipe_that_cannot_be_is_refused_in_one_line(
    files: Path, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    values = small(files, tmp_path / "run").to_dict()
    for name, value in change.items():
        whole = name in ("task", "distill", "detection", "model")
        values[name] = value if whole else {**values[name], **value}
    if "class_weights" in change.get("segmentation", {}):
        del values["segmentation"]["balance"]
    with pytest.raises(UserError, match=message):
        train(parse_recipe(values), console=Console(quiet=True))


def task_of(files: Path, folder: Path, classes: str, **keys: str) -> Segmentation:
    """A task of 16 px images, each class named by a letter, that weighs all classes alike."""
    third = (0.5,) * 3
    info = DataInfo(image_size=16, channels=3, class_names=tuple(classes), mean=third, std=third)
    return Segmentation(small(files, folder, segmentation__balance="0", **keys), info)


def test_the_loss_is_the_weighted_mean_over_the_pixels_that_count(
    files: Path, tmp_path: Path
) -> None:
    task = task_of(files, tmp_path, "ab")
    logits = torch.randn(1, 2, 1, 3, generator=torch.Generator().manual_seed(0))
    masks = torch.tensor([[[0, 1, IGNORE]]])
    each = nn.functional.cross_entropy(logits, masks, ignore_index=IGNORE, reduction="none")[0, 0]
    mean = mean_loss(*task._loss_sums(logits, masks)).item()
    assert mean == pytest.approx((each[0] + each[1]).item() / 2)
    task.weights = torch.tensor([1.0, 3.0])
    expected = (each[0] + 3 * each[1]).item() / 4
    assert mean_loss(*task._loss_sums(logits, masks)).item() == pytest.approx(expected)
    assert mean_loss(*task._loss_sums(logits, torch.full_like(masks, IGNORE))).item() == 0


def test_pixels_of_classes_without_weight_are_no_loss_however_labels_are_smoothed(
    files: Path, tmp_path: Path
) -> None:
    task = task_of(files, tmp_path, "abc", train__label_smoothing="0.1")
    task.weights = torch.tensor([0.0, 1.0, 1.0])
    logits = torch.randn(1, 3, 2, 2, requires_grad=True)
    loss = mean_loss(*task._loss_sums(logits, torch.zeros(1, 2, 2, dtype=torch.int64)))
    loss.backward()
    assert loss.item() == 0
    assert logits.grad is not None
    assert not logits.grad.any()


@pytest.mark.parametrize("weights", [None, [0.2, 1.0, 3.0], [0.0, 1.0, 3.0]])
def test_the_validation_loss_does_not_depend_on_the_batches(
    files: Path, tmp_path: Path, weights: list[float] | None
) -> None:
    task = task_of(files, tmp_path, "abc", train__label_smoothing="0.1").eval()
    task.weights = None if weights is None else torch.tensor(weights)
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(4, 3, 16, 16, generator=generator)
    masks = torch.randint(0, 3, (4, 16, 16), generator=generator)
    masks[:2] = 0  # classes are not spread evenly over the images
    masks[3, 8:] = IGNORE
    logged: dict[str, Any] = {}
    task.log = lambda name, value, **_: logged.update({name: float(value)})  # type: ignore[assignment, method-assign]
    losses = []
    for parts in ([4], [2, 2], [1, 3]):
        for batch in zip(images.split(parts), masks.split(parts), strict=True):
            task.validation_step(batch, 1)  # of batch 0 pictures are drawn
        task.on_validation_epoch_end()
        losses.append(logged["val_loss"])
    with torch.no_grad():
        logits = task.segmenter(images)
    expected = nn.functional.cross_entropy(
        logits, masks, weight=task.weights, ignore_index=IGNORE, label_smoothing=0.1
    )
    assert losses == pytest.approx([expected.item()] * 3, rel=1e-5)
