"""Segmentation and detection: the ANN, a spiking backbone with float heads, and all of it spiking.

    python benchmarks/dense_tasks.py SET --root DIR [--seeds 0 1 2] [--jobs 1] [--finished]

SET is one of camvid, bccd and fashion-scenes. Each run is `qsd train` with a recipe of the package,
in a process with 2 / jobs threads. Writes docs/results/SET.csv: a row a run, with what the task
measures of the last and of the best epoch on the evaluation split, wall-clock and processor
seconds, threads. A run that is finished or has its row is not repeated (delete the row to do so),
but for an ANN whose checkpoint is needed to teach. The best epoch is chosen on the split it is
measured on; figures that are quoted are those of the last one.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import platform
import subprocess
import sys
from collections.abc import Container, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import mean, stdev
from typing import NamedTuple

import torch

from qsdformer.files import atomic_path

ANN, FLOAT_HEADS, SPIKING = "ANN", "4-bit spiking backbone", "+ spiking 4-bit neck and heads"
# Taught by the ANN of the same seed, whose time is not the student's.
TAUGHT = "+ taught by the ANN: counts, weight 1"
MEMBRANES = "+ taught by the ANN: membranes, weight 10"


class Model(NamedTuple):
    """What is trained: a recipe and keys on top of it; `folder` begins the name of its runs."""

    recipe: str
    keys: tuple[str, ...] = ()
    suffix: str = ""

    @property
    def folder(self) -> str:
        return self.recipe + self.suffix

    @property
    def is_taught(self) -> bool:
        return self.recipe.endswith("-distilled")


def taught(recipe: str) -> dict[str, Model]:
    """The two ways in which the ANN teaches: the published one, and what helped classifiers."""
    keys = ("--distill.source", "membrane", "--distill.fgd_weight", "10")
    return {TAUGHT: Model(recipe), MEMBRANES: Model(recipe, keys, "-membrane")}


# The models of each set, and what is measured.
SETS: dict[str, dict[str, Model]] = {
    "camvid": {
        ANN: Model("camvid-ann"),
        FLOAT_HEADS: Model("camvid-float-head"),
        SPIKING: Model("camvid"),
        **taught("camvid-distilled"),
    },
    "bccd": {
        ANN: Model("bccd-ann"),
        FLOAT_HEADS: Model("bccd-float-heads"),
        SPIKING: Model("bccd"),
        **taught("bccd-distilled"),
    },
    "fashion-scenes": {
        ANN: Model("fashion-scenes-ann"),
        FLOAT_HEADS: Model("fashion-scenes-float-heads"),
        SPIKING: Model("fashion-scenes"),
    },
}
METRICS = {"camvid": "miou", "bccd": "map50", "fashion-scenes": "map50"}
CORES = 2
COLUMNS = ["model", "seed", "last", "best", "seconds", "cpu_seconds", "threads", "parameters"]
COLUMNS += ["metric", "torch", "last_mask_map50"]
MASKS = "val_mask_map50"  # of the last epoch, a column of its own where there are masks


def result(folder: Path) -> dict[str, float] | None:
    """The result of a finished run, or None."""
    file = folder / "result.json"
    values: dict[str, float] | None = json.loads(file.read_text()) if file.exists() else None
    return values


def run(folder: Path, model: Model, seed: int, root: Path, threads: int) -> None:
    """Train one model, unless it has been."""
    if result(folder) is not None:
        return
    command = [sys.executable, "-m", "qsdformer", "train", model.recipe, "--seed", str(seed)]
    command += ["--output", str(folder), "--data.root", str(root), *model.keys]
    if model.is_taught:
        teacher = folder.with_name(f"{model.recipe.removesuffix('distilled')}ann-{seed}")
        command += ["--distill.teacher", str(teacher / "last.ckpt")]
    command += ["--resume"] if (folder / "last.ckpt").exists() else []
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_name(f"{folder.name}.log").open("a") as log:
        subprocess.run(command, check=True, stdout=log, stderr=log, env=environment)


def rows_of(path: Path) -> dict[tuple[str, int], list[str]]:
    """The rows of an earlier table by model and seed."""
    if not path.exists():
        return {}
    with path.open(newline="") as file:
        return {(row[0], int(row[1])): row for row in list(csv.reader(file))[1:]}


def to_train(
    name: str, seeds: Sequence[int], rows: Container[tuple[str, int]]
) -> list[list[tuple[str, int]]]:
    """Models and seeds without a row, in two lists: those that the second learns from come first.

    An ANN that has its row is trained again where it has to teach.
    """
    waves: list[list[tuple[str, int]]] = [[], []]
    students = [label for label, model in SETS[name].items() if model.is_taught]
    for label in SETS[name]:
        for seed in seeds:
            teaches = label == ANN and any((one, seed) not in rows for one in students)
            if (label, seed) not in rows or teaches:
                waves[label in students].append((label, seed))
    return waves


def masks_of(folder: Path) -> str:
    """AP50 of the masks after the last epoch of a run; empty for models without masks."""
    with (folder / "metrics.csv").open(newline="") as file:
        measured = [row[MASKS] for row in csv.DictReader(file) if row.get(MASKS)]
    return f"{float(measured[-1]):.4f}" if measured else ""


def row_of(
    label: str, seed: int, folder: Path, values: dict[str, float], metric: str, threads: int
) -> list[str]:
    """The row of a finished run."""
    measured = [f"{values[f'{which}_{metric}']:.4f}" for which in ("last", "best")]
    times = [str(round(values["seconds"])), str(round(values["cpu_seconds"]))]
    rest = [str(threads), str(values["parameters"]), metric, torch.__version__]
    return [label, str(seed), *measured, *times, *rest, masks_of(folder)]


def line(label: str, own: dict[int, float], ann: dict[int, float], metric: str) -> str:
    """Mean and spread of a model; its share of the ANN's over the seeds that both have."""
    spread = f" +- {stdev(own.values()):.2f} (sd)" if len(own) > 1 else ""
    text = f"{label:40s} {metric} {mean(own.values()):.2f}{spread} %, n = {len(own)}"
    both = own.keys() & ann.keys()
    if label != ANN and both:
        share = sum(own[seed] for seed in both) / sum(ann[seed] for seed in both)
        text += f", {share - 1:+.1%} of the ANN's (n = {len(both)})"
    return text


def main() -> None:
    """Run what is missing, then write and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("set", choices=sorted(SETS))
    parser.add_argument("--root", type=Path, help="the folder of the set")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--jobs", type=int, default=1, help="runs side by side")
    parser.add_argument("--runs", type=Path, help="default: runs/SET")
    parser.add_argument("--csv", type=Path, help="default: docs/results/SET.csv")
    parser.add_argument(
        "--finished", action="store_true", help="train nothing: the table of the finished runs"
    )
    options = parser.parse_args()
    name = options.set
    runs = options.runs or Path("runs") / name
    threads = max(1, CORES // options.jobs)
    cells = [
        (label, seed, runs / f"{model.folder}-{seed}", model)
        for label, model in SETS[name].items()
        for seed in options.seeds
    ]
    path = options.csv or Path(f"docs/results/{name}.csv")
    rows = rows_of(path)

    if not options.finished:
        if options.root is None:
            parser.error("--root is needed to train")
        root = options.root.resolve()
        for wave in to_train(name, options.seeds, rows):
            with ThreadPoolExecutor(options.jobs) as pool:
                jobs = [
                    pool.submit(run, folder, model, seed, root, threads)
                    for label, seed, folder, model in cells
                    if (label, seed) in wave
                ]
                for job in jobs:
                    job.result()
    metric = METRICS[name]
    for label, seed, folder, _ in cells:
        values = result(folder)
        if values is not None and (label, seed) not in rows:
            rows[label, seed] = row_of(label, seed, folder, values, metric, threads)
    labels = list(SETS[name])
    with atomic_path(path) as temporary, temporary.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        writer.writerows(
            rows[key] for key in sorted(rows, key=lambda k: (labels.index(k[0]), k[1]))
        )
    print(f"{platform.machine()}, {threads} thread(s) a run, {options.jobs} runs side by side")
    scores: dict[str, dict[int, float]] = {label: {} for label in SETS[name]}
    for (label, seed), row in rows.items():
        scores[label][seed] = 100 * float(row[2])
    for label, own in scores.items():
        if own:
            print(line(label, own, scores[ANN], metric))


if __name__ == "__main__":
    main()
