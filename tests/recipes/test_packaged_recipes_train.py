"""Every packaged recipe makes three steps: its own optimiser, precision, averaging and processes.

Only widths, image sizes, the number of images and of processes (at most two, on gloo) are smaller
than in the recipe, and `precision: auto` is bfloat16 autocast, what it means on CUDA.
"""

from __future__ import annotations

import csv
import gzip
import json
import os
import re
import runpy
import shlex
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from data.cifar_files import write_tiny_cifar10
from data.detection_files import annotation, voc_object, write_coco, write_voc
from data.segmentation.mask_files import write_ade20k, write_camvid
from PIL import Image
from rich.console import Console

import qsdformer
from qsdformer.cli import run
from qsdformer.models.checkpoint import load
from qsdformer.models.registry import family_of
from qsdformer.recipes import packaged_recipes
from qsdformer.recipes.recipe import Recipe, load_recipe
from qsdformer.training import train

BATCH, STEPS = 4, 3
IMAGES = 2 * BATCH * STEPS  # enough for two processes


def write_idx(path: Path, values: np.ndarray) -> None:
    header = bytes((0, 0, 8, values.ndim)) + struct.pack(f">{values.ndim}I", *values.shape)
    path.write_bytes(gzip.compress(header + values.astype(np.uint8).tobytes()))


def fashion_mnist(root: Path) -> None:
    """The four IDX files, of noise."""
    noise = np.random.default_rng(0)
    for split in ("train", "t10k"):
        images = noise.integers(0, 256, (IMAGES, 28, 28))
        write_idx(root / f"{split}-images-idx3-ubyte.gz", images)
        write_idx(root / f"{split}-labels-idx1-ubyte.gz", np.arange(IMAGES) % 10)


def image_folder(root: Path) -> None:
    """JPEG files of two classes, of noise."""
    noise = np.random.default_rng(0)
    for split in ("train", "val"):
        for index in range(IMAGES):
            folder = root / split / ("cat", "dog")[index % 2]
            folder.mkdir(parents=True, exist_ok=True)
            pixels = noise.integers(0, 256, (48, 40, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"{index}.jpg")


def coco(root: Path) -> None:
    """One object in each image, in the splits that recipes name."""
    objects = [annotation(number, number) for number in range(1, IMAGES + 1)]
    for split in ("train", "val", "train2017", "val2017"):
        write_coco(root, split, images=IMAGES, annotations=objects)


def voc(root: Path) -> None:
    """One object in each image."""
    for split in ("train", "val"):
        names = [f"{split}_{number}" for number in range(IMAGES)]
        write_voc(root, split, {name: [voc_object()] for name in names})


# How the files of each data source are made, if it needs any; the size of images to train on.
MAKERS: dict[str, tuple[Callable[[Path], object] | None, int]] = {
    "digits": (None, 16),
    "fashion_mnist": (fashion_mnist, 32),  # 16 would leave one token, and nothing to compare
    "image_folder": (image_folder, 32),
    "cifar10": (write_tiny_cifar10, 16),
    "camvid": (write_camvid, 32),
    "ade20k": (write_ade20k, 16),
    "coco": (coco, 32),
    "voc": (voc, 32),
}


def test_the_documented_offspring_of_cifar10_small_are_trained_as_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    document = Path(__file__).parents[2] / "docs/cifar10.md"
    pattern = re.compile(r"^qsd (train cifar10-small(?:-ann)? .*)$", re.MULTILINE)
    lines = pattern.findall(document.read_text("utf-8"))
    write_tiny_cifar10(tmp_path / "data")
    monkeypatch.chdir(tmp_path)
    small = ["--data.root=data", "--batch_size=20", "--width=16", "--heads=2", "--devices=1"]
    small += ["--stem_widths=[4, 4, 8, 8, 12]"]
    shape = "model.width: 16, model.heads: 2, model.stem_widths: [4, 4, 8, 8, 12]"
    teacher = f"--teacher_keys={{{shape}, train.epochs: 1}}"
    assert len(lines) == 9
    for number, line in enumerate(lines):
        words = [*shlex.split(line, comments=True), *small, "--epochs=1"]
        words += ["--train_limit=20"] if "--train_limit" in words else []
        words += [] if number else [teacher]
        assert run(words) == 0, capsys.readouterr().err
    assert "weights from runs/cifar10-small/last.ckpt" in capsys.readouterr().out
    config = load("runs/cifar10-small-2bit/last.ckpt").config
    assert (config.weight_bits, config.depth, config.stem_widths) == (2, 1, (4, 4, 8, 8, 12))
    script = runpy.run_path(str(document.parents[1] / "benchmarks/cifar10_small.py"))
    kept = document.parent / "results/cifar10-small.csv"
    Path("rows.csv").write_bytes(kept.read_bytes())
    script["main"](["--machine", "this one", "--csv", "rows.csv"])
    with open("rows.csv", newline="") as written, kept.open(newline="") as before:
        rows, old = list(csv.DictReader(written)), list(csv.DictReader(before))
    assert [row["network"] for row in rows] == [row["network"] for row in old]
    own = [row for row in rows if row["machine"] == "this one"]
    assert [row["network"] for row in own] == list(script["NETWORKS"].values())
    assert [bool(float(row["additions_m"]) or float(row["macs_m"])) for row in own] == [True] * 8


def test_the_documented_anns_of_one_block_are_trained_as_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    document = Path(__file__).parents[2] / "docs/cifar10.md"
    commands = r"^qsd (train \S+ --ann .*)$"
    lines = re.findall(commands, document.read_text("utf-8"), re.MULTILINE)
    write_tiny_cifar10(tmp_path / "data")
    monkeypatch.chdir(tmp_path)
    small = {"data.root": "data", "batch_size": "10", "width": "16", "heads": "2", "epochs": "1"}
    assert len(lines) == 4
    for line in lines:
        _, recipe, *words = shlex.split(line)
        limit = {"train_limit": "20"} if "--train_limit" in words else {}
        output = words[words.index("--output") + 1]
        keys = {**small, **limit, "output": output}
        if "--devices" in words:
            in_processes(recipe, keys, *words)
        else:
            given = [f"--{key}={value}" for key, value in {**keys, "devices": "1"}.items()]
            assert run(["train", recipe, *words, *given]) == 0
        assert json.loads(Path(f"{output}/result.json").read_text())["parameters"] > 0


def test_the_documented_windows_of_e_spikeformer_are_trained_as_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    document = Path(__file__).parents[2] / "docs/cifar10.md"
    text = document.read_text("utf-8")
    lines = re.findall(r"^qsd train (cifar10-e-spikeformer-tiny .*)$", text, re.MULTILINE)
    write_tiny_cifar10(tmp_path / "data")
    monkeypatch.chdir(tmp_path)
    small = ["--data.root=data", "--batch_size=10", "--dims=[4,6,8,8]", "--heads=2", "--epochs=1"]
    found = []
    for line in lines:
        given = shlex.split(line)
        assert run(["train", *given, *small, "--train_limit=20"]) == 0
        config = load(f"{given[given.index('--output') + 1]}/last.ckpt").config
        found.append((config.count_units, config.attention_norm, config.rectify))
    assert found == [
        (False, True, "qkv"),
        (True, True, "qkv"),
        (True, True, "all"),
        (True, False, "qkv"),
    ]


@pytest.fixture(scope="module")
def data_root(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path | None]:
    """Makes the files of a data source once."""
    made: dict[str, Path] = {}

    def root(source: str) -> Path | None:
        maker = MAKERS[source][0]
        if maker is not None and source not in made:
            made[source] = tmp_path_factory.mktemp(source)
            maker(made[source])
        return made.get(source)

    return root


def narrow(recipe: Recipe) -> dict[str, str]:
    """Keys that make a recipe's network narrow and leave its kind as it is."""
    keys = {"model.depth": "2", "model.heads": "2"}
    if recipe.dense is not None:
        keys |= {f"{recipe.task}.{name}_width": "8" for name in ("neck", "head")}
    if recipe.task == "detection":
        small = {"fc_width": 16, "proposals": 20, "rois": 8, "detections": 5, "mask_convs": 1}
        keys |= {f"detection.{name}": str(value) for name, value in small.items()}
    if "dims" in family_of(recipe.model.name).fields:
        return {**keys, "model.dims": "[4, 6, 8, 8]"}
    return {**keys, "model.width": "16"}


def shrunk(name: str, output: Path, root: Callable[[str], Path | None]) -> dict[str, str]:
    """The keys that make recipe `name` small."""
    recipe = load_recipe(name)
    assert recipe.data.name in MAKERS, (
        f"recipe {name} trains on {recipe.data.name}: add a maker of its files to MAKERS"
    )
    keys = {
        **narrow(recipe),
        "data.image_size": str(MAKERS[recipe.data.name][1]),
        "data.train_limit": str(BATCH * STEPS * min(2, recipe.train.devices)),
        "data.workers": str(min(1, recipe.data.workers)),
        "train.devices": str(min(2, recipe.train.devices)),
        "train.batch_size": str(BATCH),
        "train.epochs": "1",
        "train.log_every": "1",
        "train.accelerator": "cpu",
        "output": str(output),
    }
    if recipe.train.precision == "auto":
        keys["train.precision"] = "bf16-mixed"
    if getattr(recipe.data, "shorter_side", None) is not None:
        keys |= {"data.shorter_side": "32", "data.longest_side": "64"}
    if getattr(recipe.data, "train_sizes", None) is not None:
        keys["data.train_sizes"] = "[32, 48]"
    if getattr(recipe.data, "min_size", 1) > 1:
        keys["data.min_size"] = "16"
    folder = root(recipe.data.name)
    return keys if folder is None else {**keys, "data.root": str(folder)}


def in_processes(name: str, keys: dict[str, str], *words: str) -> None:
    """Train by the command, which starts the other processes; `keys` come after `words`."""
    source = str(Path(qsdformer.__file__).parents[1])
    command = [sys.executable, "-m", "qsdformer", "train", name, *words]
    command += [f"--{key}={value}" for key, value in keys.items()]
    environment = {**os.environ, "PYTHONPATH": source, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def step_rows(folder: Path, monitored: str) -> list[dict[str, Any]]:
    with (folder / "metrics.csv").open(newline="", encoding="utf-8") as file:
        return [row for row in csv.DictReader(file) if not row[monitored]]


@pytest.mark.parametrize("name", packaged_recipes())
def test_the_recipe_trains_three_steps_in_its_own_way(
    name: str,
    tmp_path: Path,
    data_root: Callable[[str], Path | None],
    small_teacher: Callable[[Recipe], str],
) -> None:
    keys = shrunk(name, tmp_path / "run", data_root)
    recipe = load_recipe(name, keys)
    if recipe.distill is not None:
        keys["distill.teacher"] = small_teacher(recipe)
        recipe = load_recipe(name, keys)
    if recipe.train.devices > 1:
        in_processes(name, keys)
    else:
        train(recipe, console=Console(quiet=True))
    rows = step_rows(tmp_path / "run", recipe.measures.monitored)
    assert [int(row["step"]) for row in rows] == [1, 2, 3]
    assert all(np.isfinite(float(row["train_loss"])) for row in rows)
    content = torch.load(tmp_path / "run" / "last.ckpt", weights_only=True)
    averaged = any(key.startswith("ema.") for key in content["state_dict"])
    assert averaged == (recipe.train.ema is not None)
    for key, value in load(tmp_path / "run" / "last.ckpt").state_dict().items():
        assert value.isfinite().all(), key


@pytest.fixture
def small_teacher(tmp_path: Path) -> Callable[[Recipe], str]:
    """Writes the student's counterpart ANN, untrained, and gives the checkpoint's path."""

    def write(recipe: Recipe) -> str:
        from qsdformer.models.checkpoint import save_checkpoint
        from qsdformer.models.networks import build_network
        from qsdformer.tasks.choice import training_data
        from qsdformer.training.teaching import counterpart

        info = training_data(recipe).info
        path = tmp_path / "teacher.ckpt"
        save_checkpoint(path, build_network(counterpart(recipe).model_config(info)), info)
        return str(path)

    return write
