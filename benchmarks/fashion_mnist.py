"""Fashion-MNIST, 26 epochs: the ANN, direct 4-bit LIF, 4-bit IE-LIF alone and taught by that ANN.

    python benchmarks/fashion_mnist.py [--seeds 0 1 2] [--jobs 2] [--only LABEL] [--finished]

Each run is `qsd train` with a recipe of the package, in a process with 2 / jobs threads; the
teacher is the ANN's run of the same seed, and its time is not the student's. A finished run is not
repeated, nor one that has its row (delete the row to do so), but for an ANN whose checkpoint is
needed to teach. Writes docs/results/fashion-mnist.csv: a row a run, last-epoch accuracy on the
test set, wall-clock and processor seconds, threads. The recipes' rate and residual gain were chosen
on held-out training images; their crop of one pixel after no and two pixels had been seen on the
test set; the recipe's weight of distillation after the test results of shorter runs
(`ablation-full-budget`).
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import platform
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev

import torch
from dense_tasks import rows_of

from qsdformer.experiments.ablation_report import paired_difference
from qsdformer.files import atomic_path

ANN = "fashion-mnist-tiny-ann"
PLAIN = "fashion-mnist-tiny"
DISTILLED = "fashion-mnist-tiny-distilled"
LIF = ("--neuron", "lif", "--levels", "1", "--time_steps", "4", "--rectify", "none")
CORES = 2
COLUMNS = ["model", "seed", "accuracy", "seconds", "cpu_seconds", "threads", "parameters", "torch"]


@dataclass(frozen=True)
class Model:
    """One line of the table: a recipe, and the keys that differ from it."""

    label: str
    recipe: str
    keys: tuple[str, ...] = ()
    suffix: str = ""  # of the folder of its runs


UNTAUGHT = "4-bit IE-LIF"
MODELS = (
    Model("ANN fp32", ANN),
    Model("direct 4-bit LIF, T=4", PLAIN, LIF, "-lif"),
    Model(UNTAUGHT, PLAIN),
    Model("4-bit IE-LIF + FGD", DISTILLED),
    Model("4-bit IE-LIF + FGD, 44 epochs", DISTILLED, ("--epochs", "44"), "-44"),
)
LABELS = [model.label for model in MODELS]


def folder(runs: Path, model: Model, seed: int) -> Path:
    """Where a run is kept."""
    return runs / f"{model.recipe}{model.suffix}-{seed}"


def result(runs: Path, model: Model, seed: int) -> dict[str, float] | None:
    """The result of a finished run, or None."""
    file = folder(runs, model, seed) / "result.json"
    values: dict[str, float] | None = json.loads(file.read_text()) if file.exists() else None
    return values


def run(runs: Path, model: Model, seed: int, threads: int) -> None:
    """Train one model, unless it has been."""
    if result(runs, model, seed) is not None:
        return
    own = folder(runs, model, seed)
    command = [sys.executable, "-m", "qsdformer", "train", model.recipe, "--seed", str(seed)]
    command += ["--output", str(own), *model.keys]
    command += ["--resume"] if (own / "last.ckpt").exists() else []
    if model.recipe == DISTILLED:
        command += ["--distill.teacher", str(folder(runs, MODELS[0], seed) / "last.ckpt")]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    runs.mkdir(parents=True, exist_ok=True)
    with own.with_name(f"{own.name}.log").open("a") as log:
        subprocess.run(command, check=True, stdout=log, stderr=log, env=environment)


def key(model: Model, seed: int) -> tuple[str, int]:
    """Of a run's row."""
    return model.label, seed


def main() -> None:
    """Run what is missing, then write and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--jobs", type=int, default=2, help="runs side by side")
    parser.add_argument("--only", action="append", choices=LABELS, help="train no other model")
    parser.add_argument("--runs", type=Path, default=Path("runs/fashion-mnist"))
    parser.add_argument("--csv", type=Path, default=Path("docs/results/fashion-mnist.csv"))
    parser.add_argument(
        "--finished", action="store_true", help="train nothing: the table of the finished runs"
    )
    options = parser.parse_args()
    threads = max(1, CORES // options.jobs)
    rows = rows_of(options.csv)
    cells = [(model, seed) for model in MODELS for seed in options.seeds]
    if not options.finished:
        wanted = [
            c for c in cells if c[0].label in (options.only or LABELS) and key(*c) not in rows
        ]
        taught = [c for c in wanted if c[0].recipe == DISTILLED]
        teachers = [(MODELS[0], seed) for _, seed in taught]
        wanted += [c for c in dict.fromkeys(teachers) if c not in wanted]
        for some in ([c for c in wanted if c not in taught], taught):  # teachers come first
            with ThreadPoolExecutor(options.jobs) as pool:
                list(pool.map(lambda cell: run(options.runs, *cell, threads), some))
    for cell in cells:
        values = result(options.runs, *cell)
        if values is not None and key(*cell) not in rows:
            times = [str(round(values[name])) for name in ("seconds", "cpu_seconds")]
            rest = [str(threads), str(values["parameters"]), torch.__version__]
            label, seed = key(*cell)
            rows[label, seed] = [label, str(seed), f"{values['last_accuracy']:.4f}", *times, *rest]
    with atomic_path(options.csv) as temporary, temporary.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        writer.writerows(rows[k] for k in sorted(rows, key=lambda k: (LABELS.index(k[0]), k[1])))
    print(f"{platform.machine()}, {threads} thread(s) a run, {options.jobs} runs side by side")
    accuracies: dict[str, dict[int, float]] = {label: {} for label in LABELS}
    for (label, seed), row in rows.items():
        accuracies[label][seed] = 100 * float(row[2])
    for model in MODELS:
        own = list(accuracies[model.label].values())
        if not own:
            continue
        spread = stdev(own) if len(own) > 1 else float("nan")
        line = f"{model.label:30s} {mean(own):.2f} +- {spread:.2f} % (n={len(own)})"
        if model.recipe == DISTILLED:
            gain, half, n = paired_difference(accuracies[UNTAUGHT], accuracies[model.label])
            line += f", {gain:+.2f} +- {half:.2f} (95 %) points to {UNTAUGHT} (n={n})"
        print(line)


if __name__ == "__main__":
    main()
