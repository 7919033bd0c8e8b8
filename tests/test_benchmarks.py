"""The scripts under benchmarks/ still load, and the lines that texts show of them are understood.

What they measure is not repeated here: that takes trained networks, whole machines, or hours.
"""

from __future__ import annotations

import argparse
import re
import runpy
import shlex
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from data import cifar_files
from PIL import Image
from shell import benchmark

from qsdformer.data.base import DataInfo
from qsdformer.data.cifar_names import CIFAR10
from qsdformer.models.checkpoint import load_checkpoint
from qsdformer.nn.quantizers import quantized_layers
from qsdformer.recipes.recipe import load_recipe
from qsdformer.tasks.classification import Classification

ROOT = Path(__file__).parents[1]
SCRIPTS = sorted(path.name for path in (ROOT / "benchmarks").glob("*.py"))
TEXTS = [ROOT / "README.md", *sorted(ROOT.glob("docs/*.md")), *sorted(ROOT.glob("zoo/*.md"))]


def shown() -> list[str]:
    """The command lines of scripts in all texts, those without words left out."""
    pattern = re.compile(r"`(benchmarks/\w+\.py [^`]+)`|^python (benchmarks/\w+\.py .+)$", re.M)
    found = [pattern.findall(text.read_text("utf-8")) for text in TEXTS]
    return ["".join(parts) for lines in found for parts in lines]


class Understood(Exception):
    """A script's options were read; nothing is run."""


@pytest.fixture
def only_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Scripts stop when they have read their options."""
    parse = argparse.ArgumentParser.parse_args

    def read(parser: argparse.ArgumentParser, *given: Any, **named: Any) -> None:
        parse(parser, *given, **named)
        raise Understood

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", read)
    monkeypatch.setattr(sys, "path", [str(ROOT / "benchmarks"), *sys.path])


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_loads_and_says_what_it_takes(
    name: str, only_reads: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if name == "scalesim_check.py":
        pytest.importorskip("scalesim")  # which the project does not install
    path = ROOT / "benchmarks" / name
    scope = runpy.run_path(str(path))
    assert callable(scope["main"])
    if "ArgumentParser" in path.read_text("utf-8"):
        monkeypatch.setattr(sys, "argv", [name, "--help"])
        with pytest.raises(SystemExit) as caught:
            runpy.run_path(str(path), run_name="__main__")
        assert caught.value.code == 0
        assert capsys.readouterr().out.startswith("usage: ")


@pytest.mark.parametrize("line", shown())
def test_a_line_that_a_text_shows_is_understood(
    line: str, only_reads: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", shlex.split(line))
    with pytest.raises(Understood):
        runpy.run_path(str(ROOT / sys.argv[0]), run_name="__main__")


def test_step_sizes_start_otherwise_and_weights_as_in_training(tmp_path: Path) -> None:
    name = "cifar10-spikformer-tiny"
    command = ["step_size_start.py", name, "--seed", 3, "--checkpoint", tmp_path / "start.ckpt"]
    recipe = load_recipe(name, {"seed": "3"})
    halves = (0.5, 0.5, 0.5)
    info = DataInfo(
        image_size=32, channels=3, mean=halves, std=halves, class_names=tuple("0123456789")
    )
    begun = Classification(recipe, info).model
    errors = []
    for start in (1, 0.5, "least-error"):
        done = benchmark(*command, "--start", start)
        errors += re.findall(r"([0-9.]+)% with LSQ's step sizes, ([0-9.]+)% here", done.stdout)
        made = load_checkpoint(tmp_path / "start.ckpt").model
        for name, layer in quantized_layers(begun).items():
            other = made.get_submodule(name)
            assert torch.equal(layer.weight, other.weight)
            if start != "least-error":
                assert torch.allclose(layer.step_size * start, other.step_size)
    (own, same), (_, half), (_, least) = errors
    assert own == same
    assert float(least) < float(half) < float(own)
    (tmp_path / "start.ckpt").rename(tmp_path / "trained.ckpt")
    trained = benchmark(*command, "--start", 0.5, "--trained", tmp_path / "trained.ckpt").stdout
    assert "weights 1.0 to 1.0 times, codes at the ends of their range " in trained
    refused = benchmark(*command, "--start", "-1")
    assert refused.code == 2
    assert refused.stderr.endswith("--start -1: must be least-error or a number above 0\n")


def published_cifar10(root: Path) -> Path:
    """CIFAR-10 with 40 training images and 25 test images, two or three of each class."""
    labels = cifar_files.labels(0, 25)[:, None].astype(np.uint8)
    test = np.concatenate([labels, cifar_files.pixels(6, 25)], axis=1).tobytes()
    return cifar_files.write_folder(root, {**cifar_files.binary_ten(), "test_batch.bin": test})


def test_training_images_and_each_half_of_the_test_images_of_a_class_become_files(
    tmp_path: Path,
) -> None:
    root, folder = published_cifar10(tmp_path / "published"), tmp_path / "made" / "folders"
    done = benchmark("cifar10_folders.py", root, folder)
    printed = ["train: 40 images", "val: 15 images", "test: 10 images"]
    assert done.stdout.splitlines() == printed
    for number, split in enumerate(["val", "test", "val"]):
        for label, name in enumerate(CIFAR10[:5]):
            file = folder / split / name / f"{number:04}.png"
            pixels = cifar_files.pixels(6, 25)[10 * number + label].reshape(3, 32, 32)
            assert np.array_equal(np.asarray(Image.open(file)), pixels.transpose(1, 2, 0))
    cats = sorted(path.name for path in (folder / "train" / "cat").iterdir())
    assert cats == ["0000.png", "0001.png", "0002.png"]
    benchmark("cifar10_folders.py", root, tmp_path / "jpeg", "--jpeg")
    image = Image.open(tmp_path / "jpeg" / "val" / "cat" / "0002.jpg")
    assert image.layer[0][1:3] == (2, 2)  # type: ignore[attr-defined]  # brightness to colours
    assert image.quantization[0][0] == 8  # type: ignore[attr-defined]  # as quality 75 has it


def test_images_are_written_whole_from_a_published_archive_into_a_new_folder(
    tmp_path: Path,
) -> None:
    root = published_cifar10(tmp_path / "published")
    for data, folder, said in (
        (root, root, f"{root} is there already: choose another folder\n"),
        (tmp_path, tmp_path / "new", "no published archive of CIFAR-10, nor a folder of it\n"),
        (root, root / "test_batch.bin" / "new", "choose another folder\n"),
    ):
        refused = benchmark("cifar10_folders.py", data, folder)
        assert refused.code == 2
        assert refused.stderr.endswith(said)
    (root / "test_batch.bin").write_bytes(b"")
    refused = benchmark("cifar10_folders.py", root, tmp_path / "new")
    assert refused.code == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["published"]


def test_times_are_added_to_a_table_of_the_same_columns_alone(tmp_path: Path) -> None:
    add = runpy.run_path(str(ROOT / "benchmarks" / "native_speed.py"))["add"]
    table, other = tmp_path / "times.csv", tmp_path / "other.csv"
    add(table, [{"active": 40.0, "native": 2.0}])
    add(table, [{"active": 20.0, "native": 1.5}])
    assert table.read_text("utf-8").split() == ["active,native", "40.0,2.0", "20.0,1.5"]
    other.write_text("active,native\n", "utf-8")
    add(other, [{"active": 40.0, "native": 2.0}])
    assert other.read_text("utf-8").split() == ["active,native", "40.0,2.0"]
    for text in ("name,active\n", "name,active\na,1\n", ""):
        other.write_text(text, "utf-8")
        with pytest.raises(SystemExit, match="its columns are not active, native; name another"):
            add(other, [{"active": 40.0, "native": 2.0}])
        assert other.read_text("utf-8") == text
