"""Detection: training, eval and predict, on small files."""

from __future__ import annotations

import csv
import json
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from data.detection_files import CATEGORIES, annotation, voc_object, write_coco, write_voc
from PIL import Image
from recording import Record
from rich.console import Console
from torch import Tensor

import qsdformer
from qsdformer.cli import run
from qsdformer.data.detection.config import DetectionData
from qsdformer.data.detection.module import DetectionDataModule
from qsdformer.errors import UserError
from qsdformer.models.checkpoint import KEY, load_checkpoint, read
from qsdformer.models.networks import build_network
from qsdformer.recipes.recipe import Recipe, parse_recipe
from qsdformer.training import train


@pytest.fixture(scope="module")
def coco(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six training and three evaluation images: a bright rectangle of one of three categories."""
    root = tmp_path_factory.mktemp("coco")
    rng = np.random.default_rng(0)
    for split, images in (("train", 6), ("val", 3)):
        entries = []
        for number in range(1, images + 1):
            x, y = (int(value) for value in rng.integers(2, 20, 2))
            category = CATEGORIES[number % 3]["id"]
            entry = annotation(
                number,
                number,
                category_id=category,
                bbox=[x, y, 20, 16],
                area=320,
                segmentation=[[x, y, x + 20, y, x + 20, y + 16, x, y + 16]],
            )
            if number != 2:  # which stays without an object
                entries.append(entry)
        write_coco(root, split, images=images, annotations=entries)
        for entry in entries:
            path = root / split / f"{entry['image_id']:012}.png"
            pixels = np.full((40, 48, 3), 40, np.uint8)
            x, y, width, height = entry["bbox"]
            pixels[y : y + height, x : x + width] = 220
            Image.fromarray(pixels).save(path)
    return root


LOSSES = {
    "mask_rcnn": (
        *("loss_objectness", "loss_rpn_box_reg", "loss_classifier", "loss_box_reg"),
        "loss_mask",
    ),
    "faster_rcnn": ("loss_objectness", "loss_rpn_box_reg", "loss_classifier", "loss_box_reg"),
    "retinanet": ("classification", "bbox_regression"),
}


def recipe(root: Path, output: Path, **sections: Any) -> Recipe:
    """A narrow detector; `sections` add to those of the recipe."""
    values: dict[str, Any] = {
        "task": "detection",
        "model": {"name": "metaspikeformer_tiny", "dims": [4, 6, 8, 8], "depth": 2, "heads": 2},
        "detection": {
            "neck_width": 8,
            "head_width": 8,
            "fc_width": 16,
            "mask_convs": 1,
            "head_convs": 1,
            "anchor_sizes": [8, 16, 24, 32],
            "canonical_scale": 32,
            "proposals": 20,
            "rois": 8,
            "detections": 5,
        },
        "data": {"name": "coco", "root": str(root), "image_size": [32, 48]},
        "train": {"epochs": 1, "batch_size": 2, "accelerator": "cpu", "log_every": 1},
    }
    for name, keys in sections.items():
        values[name] = {**values.get(name, {}), **keys}
    return parse_recipe({**values, "output": str(output)})


@pytest.fixture(scope="module")
def run_folder(coco: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Mask R-CNN trained for three steps, with averaged weights."""
    folder = tmp_path_factory.mktemp("detection") / "run"
    train(recipe(coco, folder, train={"ema": 0.5}), console=Console(quiet=True))
    return folder


@pytest.mark.parametrize("kind", LOSSES)
def test_boxes_are_computed_in_float32_whatever_the_precision_of_the_network(
    kind: str, coco: Path, tmp_path: Path
) -> None:
    """Half precision has whole pixels from 256 on, steps of 8 from 1024 on."""
    made = recipe(coco, tmp_path, detection={"detector": kind})
    torch.manual_seed(0)
    detector: Any = build_network(made.config_for(in_channels=3, num_classes=3))
    seen: list[Tensor] = []
    generator = detector.anchor_generator if kind == "retinanet" else detector.rpn.anchor_generator
    generator.register_forward_hook(lambda *call: seen.extend(call[2]))
    if kind != "retinanet":
        detector.rpn.register_forward_hook(lambda *call: seen.extend(call[2][0]))
    images = [torch.rand(3, 32, 1088)]
    boxes = torch.tensor([[1033.0, 4.0, 1036.0, 20.0]])  # 0 wide in steps of 8
    target: dict[str, Tensor] = {"boxes": boxes, "labels": torch.ones(1, dtype=torch.int64)}
    if kind == "mask_rcnn":
        target["masks"] = torch.ones(1, 32, 1088, dtype=torch.uint8)
    with torch.autocast("cpu", torch.bfloat16):
        losses = detector.train()(images, [target])
        found = detector.eval()(images)
    assert len(seen) == (2 if kind == "retinanet" else 4)
    assert {x.dtype for x in seen} == {torch.float32}
    assert all(loss.isfinite() for loss in losses.values())
    assert found[0]["boxes"].dtype == torch.float32


def as_found(checkpoint: Path, coco: Path, root: Path) -> Path:
    """The same images in `root`; true for evaluation is what the checkpoint's detector finds.

    After three steps a detector finds none of the rectangles: every AP on them is 0.
    """
    shutil.copytree(coco, root)
    results = root / "results.json"
    assert run(["eval", str(checkpoint), "--results", str(results)]) == 0
    file = root / "annotations" / "instances_val.json"
    content = json.loads(file.read_text())
    content["annotations"] = []
    for number, entry in enumerate(json.loads(results.read_text()), start=1):
        x, y, width, height = entry["bbox"]
        corners = [[x, y, x + width, y, x + width, y + height, x, y + height]]
        found = {"category_id": entry["category_id"], "bbox": entry["bbox"]}
        found |= {"area": width * height, "segmentation": corners}
        content["annotations"].append(annotation(number, entry["image_id"], **found))
    file.write_text(json.dumps(content))
    return root


def test_a_detector_learns_from_the_tokens_of_its_counterpart(coco: Path, tmp_path: Path) -> None:
    taught = recipe(coco, tmp_path / "run", distill={"teacher": "ann", "fgd_weight": 2.0})
    train(taught, console=Console(quiet=True))
    teacher = load_checkpoint(tmp_path / "run/teacher/last.ckpt").model.config
    assert (teacher.is_spiking, teacher.bits) == (False, None)
    with (tmp_path / "run/metrics.csv").open(newline="") as file:
        last = list(csv.DictReader(file))[-1]
    assert float(last["train_fgd_loss"]) > 0
    parts = sum(float(last[f"train_{name}"]) for name in (*LOSSES["mask_rcnn"], "fgd_loss"))
    assert float(last["train_loss"]) == pytest.approx(parts, rel=1e-4)


@pytest.mark.parametrize("detector", LOSSES)
@pytest.mark.parametrize("bits", [4, None])
def test_each_detector_trains_and_its_losses_are_written_and_add_up(
    coco: Path, tmp_path: Path, detector: str, bits: int | None
) -> None:
    heads = {"detector": detector, "bits": bits, "neuron": "backbone" if bits else "relu"}
    train(recipe(coco, tmp_path / "run", detection=heads), console=Console(quiet=True))
    with (tmp_path / "run" / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    last = rows[-1]
    parts = [float(last[f"train_{name}"]) for name in LOSSES[detector]]
    assert all(math.isfinite(part) for part in parts)
    assert float(last["train_loss"]) == pytest.approx(sum(parts), rel=1e-4)
    assert 0 <= float(last["val_map50"]) <= 1
    for name in ("val_mask_map50", "val_mask_map", "val_mask_map75"):
        assert (last[name] != "") == (detector == "mask_rcnn")


def test_the_checkpoint_keeps_the_task_and_what_files_call_the_classes(run_folder: Path) -> None:
    header = read(run_folder / "last.ckpt")[KEY]
    assert header["extra"]["category_ids"] == [3, 17, 90]
    assert header["model_config"]["task"] == "detection"
    loaded = load_checkpoint(run_folder / "last.ckpt")
    assert loaded.info is not None
    assert loaded.info.class_names == ("cat", "dog", "bird")
    assert "val_map50" in header["extra"]


def test_eval_measures_what_training_did(
    coco: Path, run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of the detector of `run_folder` trained once more, on what it finds then."""
    found = as_found(run_folder / "last.ckpt", coco, tmp_path / "found")
    train(recipe(found, tmp_path / "run", train={"ema": 0.5}), console=Console(quiet=True))
    capsys.readouterr()
    last = tmp_path / "run" / "last.ckpt"
    assert run(["eval", str(last), "--json"]) == 0
    values = json.loads(capsys.readouterr().out)
    saved = read(last)[KEY]["extra"]["val_map50"]
    assert values["box_ap50"] == pytest.approx(saved, abs=1e-6)
    assert saved > 0.1


def test_eval_writes_and_prints_what_is_found(
    run_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results = run_folder.parent / "results.json"
    last = str(run_folder / "last.ckpt")
    assert run(["eval", last, "--json", "--results", str(results)]) == 0
    values = json.loads(capsys.readouterr().out)
    assert [entry["class"] for entry in values["classes"]] == ["cat", "dog", "bird"]
    assert values["images"] == 3
    entries = json.loads(results.read_text())
    assert entries
    assert {entry["category_id"] for entry in entries} <= {3, 17, 90}
    assert {entry["image_id"] for entry in entries} <= {1, 2, 3}
    assert all(entry["segmentation"]["size"] == [40, 48] for entry in entries)
    assert run(["eval", last, "--limit", "1"]) == 0
    printed = capsys.readouterr().out
    assert "box AP50" in printed
    assert "of 1 images" in printed
    assert "mask AP50" in printed.splitlines()[1]


def test_predict_draws_boxes_and_writes_results(
    run_folder: Path, coco: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = [str(coco / "val" / f"{number:012}.png") for number in (1, 2)]
    Image.new("RGBA", (31, 77)).save(tmp_path / "clear.png")
    words = ["--json", "--output", str(tmp_path / "out")]
    last = str(run_folder / "last.ckpt")
    assert run(["predict", last, *images, str(tmp_path / "clear.png"), *words]) == 0
    first, _, third = json.loads(capsys.readouterr().out)
    words = ["predict", last, images[0], "--output", str(tmp_path / "any"), "--min-score"]
    named = []
    for limit in ("0", "1"):
        assert run([*words, limit]) == 0
        named.append(capsys.readouterr().out.count("%"))
    assert named == [len(first["detections"]), 0]
    assert named[0] > 0
    assert Image.open(first["picture"]).size[0] % 48 == 0
    assert Image.open(third["picture"]).size[0] % 31 == 0
    listed = json.loads((tmp_path / "out" / "results.json").read_text())
    assert listed[: len(first["detections"])] == first["detections"]
    for entry in first["detections"]:
        assert {"image_id", "category_id", "bbox", "score", "segmentation"} == set(entry)
        x, y, width, height = entry["bbox"]
        assert x >= 0
        assert y >= 0
        assert x + width <= 48.01
        assert y + height <= 40.01


def test_images_are_numbered_as_given_whichever_can_be_read(
    run_folder: Path, coco: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"no image")
    good = [str(coco / "val" / f"{number:012}.png") for number in (1, 2)]
    words = ["predict", str(run_folder / "last.ckpt"), "--output", str(tmp_path / "out")]
    assert run([*words, good[0], str(bad), good[1], good[1]]) == 2
    results = tmp_path / "out" / "results.json"
    assert {entry["image_id"] for entry in json.loads(results.read_text())} == {1, 3, 4}
    assert run([*words, str(bad)]) == 2
    assert json.loads(results.read_text()) == []


def test_results_never_replace_the_data_and_are_refused_before_the_work(
    run_folder: Path, coco: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["eval", str(run_folder / "last.ckpt"), "--results"]
    for name in ("annotations/instances_val.json", "annotations/instances_train.json"):
        before = (coco / name).read_bytes()
        assert run([*words, str(coco / name)]) == 2
        assert "is what is read and would be overwritten" in capsys.readouterr().err
        assert (coco / name).read_bytes() == before
    assert run([*words, str(coco / "val" / "000000000001.png")]) == 2
    assert "is what is read" in capsys.readouterr().err
    (tmp_path / "file").touch()
    assert run([*words, str(tmp_path / "file" / "found.json")]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""  # nothing was measured in vain
    assert "cannot write" in printed.err


def test_lists_and_annotations_of_voc_are_files_of_the_data(tmp_path: Path) -> None:
    for split in ("train", "val"):
        write_voc(tmp_path, split)
    config = DetectionData(name="voc", root=str(tmp_path))
    data = DetectionDataModule(config, masks=False, batch_size=1)
    assert set(data.files) == {path for path in tmp_path.rglob("*") if path.is_file()}


def test_a_resumed_run_repeats_an_uninterrupted_one(coco: Path, tmp_path: Path) -> None:
    def go(folder: str, record: Record, **options: Any) -> dict[str, Tensor]:
        varied = {"hflip": True, "train_sizes": [32, 40]}
        wanted = recipe(coco, tmp_path / folder, data=varied, train={"epochs": 2, "ema": 0.5})
        train(wanted, console=Console(quiet=True), callbacks=[record], **options)
        state: dict[str, Tensor] = read(tmp_path / folder / "last.ckpt")["state_dict"]
        return state

    whole, first, second = Record(), Record(interrupt_at=5), Record()
    expected = go("whole", whole)
    with pytest.raises(KeyboardInterrupt):
        go("halves", first)
    resumed = go("halves", second, resume=True)
    assert sorted(second.losses) == [4, 5, 6]
    assert {**first.losses, **second.losses} == whole.losses
    assert all(torch.equal(value, resumed[name]) for name, value in expected.items())


@pytest.mark.slow
def test_two_processes_measure_the_whole_set_of_which_each_has_another_share(
    coco: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = str(Path(qsdformer.__file__).parents[1])
    environment = {**os.environ, "PYTHONPATH": source, "OMP_NUM_THREADS": "1"}

    def trained(root: Path, output: Path) -> Path:
        wanted = recipe(root, output, train={"devices": 2, "batch_size": 1})
        file = output.with_suffix(".yaml")
        file.write_text(wanted.to_yaml())
        command = [sys.executable, "-m", "qsdformer", "train", str(file)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return output / "last.ckpt"

    first = trained(coco, tmp_path / "first")
    last = trained(as_found(first, coco, tmp_path / "found"), tmp_path / "second")
    capsys.readouterr()
    assert run(["eval", str(last), "--json"]) == 0  # three images in one process
    measured = json.loads(capsys.readouterr().out)["box_ap50"]
    assert read(last)[KEY]["extra"]["val_map50"] == pytest.approx(measured, abs=1e-6)
    assert measured > 0.1


def test_pictures_of_what_is_found_go_to_tensorboard(run_folder: Path) -> None:
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    seen = events.EventAccumulator(str(run_folder / "tensorboard"), {"images": 0}).Reload()
    assert seen.Tags()["images"] == ["found, true/0", "found, true/1"]


def test_a_start_from_another_checkpoint_is_told(
    coco: Path, run_folder: Path, tmp_path: Path, make_console: Callable[[], Console]
) -> None:
    start = {"start_from": str(run_folder / "last.ckpt")}
    console = make_console()
    train(recipe(coco, tmp_path / "run", model=start), console=console)
    assert "backbone from" in console.export_text()


@pytest.mark.parametrize(
    ("sections", "words"),
    [
        ({"data": {"split": "test"}}, "no annotation file"),
        ({"data": {"root": None}}, "data.root is missing"),
        ({"data": {"name": "voc"}}, "has boxes only"),
        ({"data": {"name": "voc"}, "detection": {"detector": "retinanet"}}, "cannot read the list"),
        ({"data": {"min_size": 41}}, "no image to train on"),
    ],
)
def test_unusable_data_is_one_line(
    coco: Path, tmp_path: Path, sections: dict[str, Any], words: str
) -> None:
    with pytest.raises(UserError, match=words) as caught:
        train(recipe(coco, tmp_path / "run", **sections), console=Console(quiet=True))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run" / "last.ckpt").exists()


def test_a_checkpoint_is_evaluated_on_a_folder_of_either_layout(
    coco: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """And the file exported of it too; the folder says by what is in it which layout it has."""
    kinds = {"detector": "retinanet"}
    train(recipe(coco, tmp_path / "run", detection=kinds), console=Console(quiet=True))
    last = str(tmp_path / "run" / "last.ckpt")
    exported = str(tmp_path / "detector.qsd")
    assert run(["export", last, exported]) == 0
    voc = tmp_path / "voc"
    write_voc(voc, "test", {"a": [voc_object("cat")], "b": [voc_object("bird")]})
    words = ["--data.root", str(voc), "--data.split", "test"]
    capsys.readouterr()
    assert run(["eval", last, *words]) == 0
    assert "of 2 images" in capsys.readouterr().out
    for root, split, images in ((voc, "test", 2), (coco, "val", 3)):
        assert run(["eval", exported, "--data.root", str(root), "--data.split", split]) == 0
        assert f"of {images} images" in capsys.readouterr().out
    out = ["--output", str(tmp_path / "out"), "--json"]
    assert run(["predict", exported, str(coco / "val" / "000000000001.png"), *out]) == 0
    (entry,) = json.loads(capsys.readouterr().out)
    assert {found["category_id"] for found in entry["detections"]} <= {3, 17, 90}
    write_voc(voc, "other", {"a": [voc_object("cow")]})
    assert run(["eval", last, *words[:-1], "other"]) == 2
    assert "'cow', which is none of cat, dog, bird" in capsys.readouterr().err


def test_training_reports_each_image_that_was_dropped(
    coco: Path, tmp_path: Path, make_console: Callable[[], Console]
) -> None:
    root = tmp_path / "data"
    for split in ("train", "val"):
        write_coco(root, split, annotations=[annotation(1, 1), annotation(2, 1, bbox=[1, 1, 0, 5])])
    console = make_console()
    train(recipe(root, tmp_path / "run"), console=console)
    assert "boxes of zero area in" in console.export_text()


@pytest.fixture
def make_console(tmp_path: Path) -> Callable[[], Console]:
    def make() -> Console:
        return Console(record=True, width=300, file=(tmp_path / "console").open("w"))

    return make
