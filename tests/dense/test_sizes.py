"""What is exported takes images of the sizes and proportions that its checkpoint takes."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from data.detection_files import voc_object, write_voc
from PIL import Image

from dense.networks import (
    balanced_segmenter,
    detection_config,
    info_of,
    settled,
    write_scenes,
)
from qsdformer.cli import run
from qsdformer.models.checkpoint import save_checkpoint

SIZE = (32, 48)


@pytest.fixture(scope="module")
def scenes(tmp_path_factory) -> Path:
    return write_scenes(tmp_path_factory.mktemp("scenes"), (64, 128), count=2, block=8)


def evaluated(path, scenes, capsys, *more):
    keys = ("--data.root", str(scenes), "--data.name", "mask_folder", *more)
    assert run(["eval", str(path), *keys, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


@pytest.fixture(scope="module")
def proportioned(tmp_path_factory) -> Path:
    """A segmenter that was trained on images of their own proportions."""
    path: Path = tmp_path_factory.mktemp("proportioned") / "model.ckpt"
    data = {"name": "mask_folder", "image_size": list(SIZE), "shorter_side": 40}
    recipe = {"task": "segmentation", "data": data, "segmentation": {"inference": "slide"}}
    save_checkpoint(path, balanced_segmenter(SIZE), info_of(SIZE), {"recipe": recipe})
    return path


@pytest.mark.parametrize("suffix", [".qsd", ".onnx"])
def test_images_keep_their_proportions_in_a_file_as_in_its_checkpoint(
    proportioned, scenes, suffix, tmp_path, capsys
):
    file = tmp_path / f"model{suffix}"
    assert run(["export", str(proportioned), str(file)]) == 0
    capsys.readouterr()
    expected = evaluated(proportioned, scenes, capsys)
    found = evaluated(file, scenes, capsys)
    assert found["miou"] == pytest.approx(expected["miou"], abs=2e-3)
    stretched = evaluated(file, scenes, capsys, "--data.shorter_side", "none")
    assert abs(stretched["miou"] - expected["miou"]) > 5e-3
    image, masks = str(scenes / "val" / "images" / "0.png"), []
    for model in (proportioned, file):
        out = tmp_path / model.suffix[1:]
        assert run(["predict", str(model), image, "--output", str(out)]) == 0
        masks.append(np.asarray(Image.open(out / "0-mask.png")))
    assert np.mean(masks[0] != masks[1]) < 0.01  # where two logits are equal but for rounding


@pytest.mark.parametrize("size", [(30, 60), (60, 30)], ids=["wide", "tall"])
def test_a_detector_that_keeps_proportions_is_evaluated_as_it_predicts(size, tmp_path, capsys):
    path, file = tmp_path / "model.ckpt", tmp_path / "model.qsd"
    info = dataclasses.replace(info_of((32, 48)), fit="pad")
    save_checkpoint(path, settled(detection_config()), info)
    assert run(["export", str(path), str(file)]) == 0
    root = tmp_path / "voc"
    write_voc(root, "val", {"a": [voc_object("one", (5, 5, 20, 20))]}, size=size)
    keys = ["--data.root", str(root), "--results", str(tmp_path / "found.json")]
    assert run(["eval", str(file), *keys]) == 0
    (picture,) = (root / "JPEGImages").iterdir()
    assert run(["predict", str(file), str(picture), "--output", str(tmp_path / "out")]) == 0
    found, predicted = (
        json.loads(p.read_text()) for p in (tmp_path / "found.json", tmp_path / "out/results.json")
    )
    assert found
    assert [(f["bbox"], f["score"]) for f in found] == [(f["bbox"], f["score"]) for f in predicted]
