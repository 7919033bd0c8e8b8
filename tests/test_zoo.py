"""The trained networks that the project keeps: each file runs, and its card knows it."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from data.detection_files import voc_object, write_image, write_voc
from PIL import Image

from qsdformer.cli import run
from qsdformer.data.cifar_names import CIFAR10
from qsdformer.graph.artifact import load_artifact
from qsdformer.graph.check import check_graph
from qsdformer.runtimes import native

ZOO = Path(__file__).parents[1] / "zoo"
FILES = sorted(ZOO.glob("*.qsd"))
LARGEST = 2_000_000  # bytes


def test_the_zoo_is_not_empty_and_lists_every_file():
    index = (ZOO / "README.md").read_text(encoding="utf-8")
    assert FILES
    assert re.findall(r"\[([\w-]+\.qsd)\]", index) == [path.name for path in FILES]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_card_says_how_large_the_file_is_and_how_to_repeat_its_figure(path: Path):
    card = path.with_suffix(".md").read_text(encoding="utf-8")
    assert f"{path.stat().st_size:,} bytes" in card
    assert path.stat().st_size < LARGEST
    assert f"qsd eval zoo/{path.name} --data.root" in card
    assert "--data.split test" in card
    for word in ("data", "recipe", "commit", "**Limits.**"):
        assert word in card


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
@pytest.mark.skipif(not native.available(), reason="the native engine was not built")
def test_the_native_engine_gives_the_integers_of_the_reference(path: Path):
    graph = load_artifact(path)
    check_graph(graph)
    height, width = graph.preprocessing.sides
    shape = (1, graph.preprocessing.channels, height, width)
    image = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    found, expected = native.load(path).run_outputs(image), graph.run_outputs(image)
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        assert np.array_equal(found[name], values), name


def camvid_like(root: Path) -> int:
    """One street scene in each split that the card evaluates, of every class."""
    for split in ("val", "test"):
        write_image(root / split / "images" / "street.png", (360, 480))
        (root / split / "masks").mkdir()
        mask = np.arange(360 * 480).reshape(360, 480) // 40 % 12
        Image.fromarray(mask.astype(np.uint8)).save(root / split / "masks" / "street.png")
    return 1


def bccd_like(root: Path) -> int:
    """One image of cells in each split that the card evaluates."""
    for split in ("val", "test"):
        write_voc(root, split, {f"{split}0": [voc_object(), voc_object("WBC")]}, (480, 640))
    return 1


def cifar10_like(root: Path) -> int:
    """One image of each class in each split that the card evaluates."""
    for split in ("val", "test"):
        for name in CIFAR10:
            write_image(root / split / name / "0.png", (32, 32))
    return len(CIFAR10)


# Each makes a folder of a set's layout and returns how many images a split has.
SETS = {"bccd": bccd_like, "camvid": camvid_like, "cifar10": cifar10_like}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_the_commands_of_a_card_run_on_a_folder_of_its_layout(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    name = path.stem.partition("-")[0]
    card = path.with_suffix(".md").read_text(encoding="utf-8")
    (folder,) = set(re.findall(r"--data\.root (data/[\w-]+)", card))
    count = SETS[name](tmp_path / folder)
    for image in ("street.jpg", "cells.jpg", "bird.png"):
        write_image(tmp_path / image, (480, 640))
    (tmp_path / "zoo").symlink_to(ZOO)
    monkeypatch.chdir(tmp_path)
    commands = re.findall(r"^qsd (.*)$", card, re.MULTILINE)
    assert len(commands) == 3
    for command in commands:
        assert run(shlex.split(command)) == 0, command
        out = capsys.readouterr().out
        assert f"of {count} images" in out or command.startswith("predict"), out
    if name == "cifar10":  # classes are printed, maps and boxes are drawn
        assert out.startswith("bird.png: ")
    else:
        assert list((tmp_path / "predictions").glob("*.png"))


def test_a_folder_of_other_classes_than_a_networks_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    cifar10_like(tmp_path)
    command = ["eval", str(ZOO / "cifar10-small.qsd"), "--data.root", str(tmp_path)]
    (tmp_path / "val" / "dog").rename(tmp_path / "val" / "ewe")
    assert run(command) == 2
    assert "class 'dog' is 'ewe' in the dataset" in capsys.readouterr().err
    for path in (tmp_path / "val" / "ewe").iterdir():
        path.unlink()
    (tmp_path / "val" / "ewe").rmdir()
    assert run(command) == 2
    error = capsys.readouterr().err
    assert "has 10 classes, but the dataset has 9" in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
@pytest.mark.skipif(not native.available(), reason="the native engine was not built")
def test_verify_and_bench_take_a_file(
    path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    SETS[path.stem.partition("-")[0]](tmp_path)
    images = ["--data.root", str(tmp_path), "--limit", "1"]
    assert run(["verify", str(path), *images, "--executor", "integer", "--executor", "native"]) == 0
    assert "1 images" in capsys.readouterr().out
    assert run(["bench", str(path), "--runs", "1", "--batch-size", "1", "--threads", "1"]) == 0
    assert "native" in capsys.readouterr().out


def test_a_card_lists_what_the_script_prints_of_each_class(tmp_path: Path):
    cifar10_like(tmp_path)
    command = [sys.executable, str(ZOO.parent / "benchmarks/class_accuracy.py")]
    command += [str(ZOO / "cifar10-small.qsd"), str(tmp_path), "--split", "test"]
    rows = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    pattern = re.compile(r"^\| (\w+) \| [\d.]+ % \|$", re.MULTILINE)
    card = (ZOO / "cifar10-small.md").read_text(encoding="utf-8")
    assert pattern.findall(rows) == pattern.findall(card) == list(CIFAR10)
