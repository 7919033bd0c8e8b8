"""Commands on dense networks and on what `qsd export` makes of them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from data.detection_files import voc_object, write_voc
from PIL import Image

from dense.networks import (
    CLASSES,
    balanced_segmenter,
    detection_config,
    info_of,
    settled,
    write_scenes,
)
from qsdformer.cli import run
from qsdformer.graph.artifact import load_artifact
from qsdformer.models.checkpoint import save_checkpoint
from qsdformer.runtimes import native

SIZE = (32, 48)


@pytest.fixture(scope="module")
def scenes(tmp_path_factory) -> Path:
    """Larger than SIZE."""
    return write_scenes(tmp_path_factory.mktemp("scenes"), (64, 96), count=4)


@pytest.fixture(scope="module")
def segmenter(tmp_path_factory) -> Path:
    path: Path = tmp_path_factory.mktemp("segmenter") / "model.ckpt"
    save_checkpoint(path, balanced_segmenter(SIZE), info_of(SIZE))
    return path


@pytest.fixture(scope="module", params=[".qsd", ".onnx"])
def exported(request, segmenter) -> Path:
    path: Path = segmenter.with_suffix(request.param)
    assert run(["export", str(segmenter), str(path)]) == 0
    return path


def evaluated(path, scenes, capsys, *more):
    keys = ("--data.root", str(scenes), "--data.name", "mask_folder", *more)
    assert run(["eval", str(path), *keys, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_an_exported_segmenter_repeats_the_figures_of_its_checkpoint(
    exported, segmenter, scenes, capsys
):
    expected = evaluated(segmenter, scenes, capsys)
    found = evaluated(exported, scenes, capsys)
    assert found["images"] == expected["images"] == 4
    assert expected["miou"] > 0.05
    assert all(entry["iou"] > 0 for entry in expected["classes"])
    # A pixel may change its class where two logits are equal but for rounding.
    assert found["miou"] == pytest.approx(expected["miou"], abs=2e-3)
    assert found["pixel_accuracy"] == pytest.approx(expected["pixel_accuracy"], abs=2e-3)


def test_larger_images_pass_through_an_exported_segmenter_in_windows(
    exported, segmenter, scenes, capsys
):
    larger = ("--data.shorter_side", "40")
    expected = evaluated(segmenter, scenes, capsys, *larger, "--inference", "slide")
    found = evaluated(exported, scenes, capsys, *larger)
    assert found["miou"] == pytest.approx(expected["miou"], abs=2e-3)
    keys = ["--data.root", str(scenes), "--data.name", "mask_folder", *larger]
    assert run(["eval", str(exported), *keys, "--inference", "whole"]) == 2
    assert "leave out --inference whole" in capsys.readouterr().err


def test_an_exported_segmenter_draws_what_it_finds(exported, scenes, tmp_path, capsys):
    image = scenes / "val" / "images" / "0.png"
    out = ["--output", str(tmp_path), "--json"]
    assert run(["predict", str(exported), str(image), *out]) == 0
    (entry,) = json.loads(capsys.readouterr().out)
    assert sum(c["share"] for c in entry["classes"]) == pytest.approx(1)
    assert {c["class"] for c in entry["classes"]} <= set(CLASSES)
    assert Image.open(entry["mask"]).size == (96, 64)


def test_an_export_may_have_another_size(segmenter, tmp_path):
    out = tmp_path / "wide.qsd"
    assert run(["export", str(segmenter), str(out), "--image-size", "16,64"]) == 0
    assert load_artifact(out).preprocessing.sides == (16, 64)
    assert run(["export", str(segmenter), str(out), "--image-size", "20"]) == 0
    pre = load_artifact(out).preprocessing
    assert (pre.sides, pre.placed, pre.fit) == ((32, 32), (20, 20), "stretch")


def test_a_filled_up_segmenter_repeats_the_figures_too(segmenter, scenes, tmp_path, capsys):
    out = tmp_path / "odd.qsd"
    assert run(["export", str(segmenter), str(out), "--image-size", "20,44"]) == 0
    capsys.readouterr()
    size = ("--data.image_size", "[20, 44]")
    expected = evaluated(segmenter, scenes, capsys, *size)
    found = evaluated(out, scenes, capsys)
    # What is filled up is the mean colour in whole pixel values, and 0 in the checkpoint.
    assert found["miou"] == pytest.approx(expected["miou"], abs=5e-3)


def test_verify_and_bench_take_dense_networks(segmenter, scenes, capsys):
    keys = ["--data.root", str(scenes), "--data.name", "mask_folder"]
    only = ["--executor", "integer", "--executor", "native"] if native.available() else []
    assert run(["verify", str(segmenter), *keys, *only]) == 0
    text = capsys.readouterr().out
    assert "4 images" in text
    assert "broken" not in text
    path = segmenter.with_suffix(".qsd")
    run(["export", str(segmenter), str(path)])
    assert run(["verify", str(path), *keys, *only]) == 0
    few = ["--runs", "1", "--batch-size", "1", "--threads", "1"]
    assert run(["bench", str(path), *few]) == 0
    assert "ONNX Runtime" in capsys.readouterr().out


def test_analyze_says_what_backbone_neck_and_heads_take(segmenter, scenes, tmp_path, capsys):
    keys = ["--data.root", str(scenes), "--data.name", "mask_folder"]
    out = tmp_path / "analysis.json"
    assert run(["analyze", str(segmenter), *keys, "--json", str(out)]) == 0
    assert "Backbone, neck and heads" in capsys.readouterr().out
    values = json.loads(out.read_text())
    (model,), (ledger, *_) = values["models"], values["ledgers"]
    parts = model["parts"]
    assert list(parts) == ["backbone", "neck", "heads", "post-processing"]
    for key in ("parameters", "packed_bytes"):
        assert sum(part[key] for part in parts.values()) == ledger[key]
    assert sum(part["additions"] for part in parts.values()) == pytest.approx(
        ledger["synaptic_operations"]
    )
    for name, energy in ledger["energy_pj"].items():
        total = sum(part["energy_pj"][name] for part in parts.values())
        assert total == pytest.approx(energy["total"])
    assert ledger["accuracy"] is None
    (row,) = (r for r in ledger["rows"] if r["kind"] == "post")
    assert row["multiplications"] == 4 * 3 * 32 * 48
    assert row["additions"] == 3 * 3 * 32 * 48 + 2 * 32 * 48


def test_a_retinanet_exports_with_all_that_its_boxes_need(tmp_path, capsys):
    path, out = tmp_path / "retina.ckpt", tmp_path / "retina.qsd"
    network = settled(detection_config())
    save_checkpoint(path, network, info_of(32), {"category_ids": [4, 7, 9]})
    assert run(["export", str(path), str(out)]) == 0
    post = load_artifact(out).post
    assert post is not None
    assert post.class_names == CLASSES
    assert post.category_ids == (4, 7, 9)
    assert [level.stride for level in post.levels] == [4, 8, 16, 32]
    assert [level.sizes[0] for level in post.levels] == [6, 12, 24, 32]


def test_an_rcnn_exports_to_onnx_with_its_heads_beside_it(tmp_path, capsys):
    path, out = tmp_path / "rcnn.ckpt", tmp_path / "rcnn.onnx"
    save_checkpoint(path, settled(detection_config(detector="faster_rcnn")), info_of(32))
    assert run(["export", str(path), str(out)]) == 0
    boxes = tmp_path / "rcnn.box.onnx"
    assert f"{out} with {boxes} beside it: " in capsys.readouterr().out
    write_voc(tmp_path / "voc", "val", {"a": [voc_object("one")], "b": [voc_object("two")]})
    keys = ["--data.root", str(tmp_path / "voc"), "--data.split", "val"]
    assert run(["eval", str(out), *keys]) == 0
    assert "of 2 images" in capsys.readouterr().out
    image = tmp_path / "voc" / "JPEGImages" / "a.jpg"
    assert run(["predict", str(out), str(image), "--output", str(tmp_path / "found")]) == 0
    assert (tmp_path / "found" / "a.png").exists()
    assert run(["eval", str(boxes), *keys]) == 2
    assert "is a part of a network, without classes" in capsys.readouterr().err
