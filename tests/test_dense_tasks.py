"""The table of `benchmarks/dense_tasks.py` grows by the runs that are finished, by no others."""

from __future__ import annotations

import json
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
from shell import benchmark

from qsdformer.recipes.recipe import load_recipe

ROOT = Path(__file__).parents[1]
HEAD = "model,seed,last,best,seconds,cpu_seconds,threads,parameters,metric,torch,last_mask_map50"


def test_rows_of_earlier_runs_stay_and_finished_runs_are_added(tmp_path: Path):
    table, runs = tmp_path / "camvid.csv", tmp_path / "runs"
    earlier = "+ spiking 4-bit neck and heads,0,0.5,0.6,9,8,1,7,miou,2.15.0,"
    other = "ANN,2,0.25,0.3,1,1,2,1,miou,2.11.0,"  # kept, though the run is here
    table.write_text("\n".join([HEAD, earlier, other]) + "\n")
    for name, miou in (
        ("camvid-ann-0", 0.75),
        ("camvid-ann-2", 0.9),
        ("camvid-float-head-0", 0.625),
    ):
        (runs / name).mkdir(parents=True)
        values = {"last_miou": miou, "best_miou": miou, "seconds": 3, "cpu_seconds": 2}
        (runs / name / "result.json").write_text(json.dumps({**values, "parameters": 5}))
        masks = "" if "ann" in name else "0.25"
        (runs / name / "metrics.csv").write_text(f"epoch,val_mask_map50\n1,0.5\n2,{masks}\n2,\n")
    options = ["--runs", runs, "--csv", table, "--jobs", 2]
    done = benchmark("dense_tasks.py", "camvid", "--finished", *options)
    assert done.code == 0
    rows = table.read_text().splitlines()
    assert rows[0] == HEAD
    assert rows[1].startswith("ANN,0,0.7500,0.7500,3,2,1,5,miou,")
    assert rows[1].endswith(",0.5000")
    assert rows[2] == other
    assert rows[3].startswith("4-bit spiking backbone,0,0.6250,")
    assert rows[3].endswith(",0.2500")
    assert rows[4:] == [earlier]
    # Beside the ANN of the same seed, not beside the mean over two.
    assert "miou 50.00 %, n = 1, -33.3% of the ANN's (n = 1)" in done.stdout


def test_the_table_of_fashion_mnist_keeps_the_rows_of_runs_that_are_not_here(tmp_path: Path):
    kept = (ROOT / "docs/results/fashion-mnist.csv").read_text()
    table, runs = tmp_path / "kept.csv", tmp_path / "runs"
    table.write_text(kept)
    command = ["fashion_mnist.py", "--finished", "--runs", runs, "--csv", table]
    assert benchmark(*command).code == 0
    assert table.read_text().splitlines() == kept.splitlines()
    lines = kept.splitlines()
    table.write_text("\n".join(line for line in lines if not line.startswith("ANN fp32,1")) + "\n")
    folder = runs / "fashion-mnist-tiny-ann-1"
    folder.mkdir(parents=True)
    values = {"last_accuracy": 0.5, "seconds": 3, "cpu_seconds": 2, "parameters": 5}
    (folder / "result.json").write_text(json.dumps(values))
    assert benchmark(*command).code == 0
    rows = table.read_text().splitlines()
    assert len(rows) == len(lines)
    assert sum(row not in lines for row in rows) == 1
    assert rows[2].startswith("ANN fp32,1,0.5000,3,2,1,5,")


def test_fashion_mnist_trains_what_has_no_row_and_the_ann_that_has_to_teach_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    named = runpy.run_path(str(ROOT / "benchmarks/fashion_mnist.py"))
    kept = (ROOT / "docs/results/fashion-mnist.csv").read_text().splitlines()
    table = tmp_path / "kept.csv"
    table.write_text("\n".join(x for x in kept if not x.startswith("4-bit IE-LIF + FGD,1")) + "\n")
    commands: list[list[str]] = []
    monkeypatch.setattr(subprocess, "run", lambda command, **_: commands.append(command))
    words = ["--only", "4-bit IE-LIF + FGD", "--runs", str(tmp_path / "runs"), "--csv", str(table)]
    monkeypatch.setattr(sys, "argv", ["fashion_mnist.py", *words])
    named["main"]()
    ann, student = commands
    assert ann[4:7] == ["fashion-mnist-tiny-ann", "--seed", "1"]
    assert student[4:7] == ["fashion-mnist-tiny-distilled", "--seed", "1"]
    assert student[-1] == str(tmp_path / "runs/fashion-mnist-tiny-ann-1/last.ckpt")


def test_only_what_has_no_row_is_trained_and_whoever_has_to_teach() -> None:
    named = runpy.run_path(str(ROOT / "benchmarks/dense_tasks.py"))
    ann, spiking, taught = named["ANN"], named["SPIKING"], named["TAUGHT"]
    labels = list(named["SETS"]["camvid"])
    first, second = named["to_train"]("camvid", [0, 1], {(label, 0) for label in labels})
    assert first == [(label, 1) for label in labels[:3]]
    assert second == [(label, 1) for label in labels[3:]]
    assert labels[3] == taught
    rows = {(label, 0) for label in labels if label != taught}
    assert named["to_train"]("camvid", [0], rows) == [[(ann, 0)], [(taught, 0)]]
    scenes = {(label, 0) for label in named["SETS"]["fashion-scenes"] if label != spiking}
    assert named["to_train"]("fashion-scenes", [0], scenes) == [[(spiking, 0)], []]


def test_every_model_of_a_set_is_a_command_that_trains(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    named = runpy.run_path(str(ROOT / "benchmarks/dense_tasks.py"))
    commands: list[list[str]] = []
    monkeypatch.setattr(subprocess, "run", lambda command, **_: commands.append(command))
    for models in named["SETS"].values():
        for model in models.values():
            named["run"](tmp_path / f"{model.folder}-3", model, 3, tmp_path, 1)
    keys = [dict(zip(c[5::2], c[6::2], strict=True)) for c in commands]
    recipes = [
        load_recipe(c[4], {name.removeprefix("--"): value for name, value in given.items()})
        for c, given in zip(commands, keys, strict=True)
    ]
    assert {recipe.seed for recipe in recipes} == {3}
    assert len({recipe.output for recipe in recipes}) == len(recipes)
    teachers = {r.output: r.distill.teacher for r in recipes if r.distill is not None}
    assert teachers == {
        str(tmp_path / f"{name}-distilled{way}-3"): str(tmp_path / f"{name}-ann-3/last.ckpt")
        for name in ("camvid", "bccd")
        for way in ("", "-membrane")
    }
    sources = [r.distill.source for r in recipes if r.distill is not None]
    assert sources == ["counts", "membrane"] * 2
