"""The rows of the networks of 2 M parameters in docs/cifar10.md: docs/results/cifar10-small.csv.

    python benchmarks/cifar10_small.py --machine TEXT [--root DIR] [--runs runs]

The page says by which commands the networks are trained, each into a folder of RUNS. A row each of
those that are there: accuracies in training and on the evaluation split after the last epoch,
minutes by the clock, processes, and size, work and energy as `qsd analyze` counts them. Rows of
networks without a folder are kept as they are.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

from qsdformer.experiments.ablation_measure import measure
from qsdformer.files import write_csv
from qsdformer.models.checkpoint import load_checkpoint
from qsdformer.recipes.recipe import parse_recipe

# Folders of runs, and what the page calls the networks in them.
NETWORKS = {
    "cifar10-small/teacher": "ANN fp32",
    "cifar10-small": "4 bits, IE-LIF D = 4",
    "cifar10-small-sparse": "… and a penalty on active groups",
    "cifar10-small-2bit": "… and 2 bits",
    "cifar10-original-ann": "ANN fp32, original pixels",
    "cifar10-original": "4 bits, IE-LIF D = 4, original pixels",
    "cifar10-original-sparse": "… original pixels, and a penalty on active groups",
    "cifar10-original-2bit": "… original pixels, and 2 bits",
}
COLUMNS = ["network", "seed", "epochs", "accuracy", "train_accuracy", "minutes", "processes"]
COLUMNS += ["parameters", "packed_kib", "additions_m", "macs_m", "bit_aware_uj", "active_groups"]
COLUMNS += ["machine"]


def row_of(name: str, folder: Path, root: Path | None, machine: str) -> dict[str, Any]:
    """The row of a finished run."""
    checkpoint = folder / "last.ckpt"
    result = json.loads((folder / "result.json").read_text())
    recipe = parse_recipe(load_checkpoint(checkpoint).recipe)
    if root is not None:
        recipe = dataclasses.replace(recipe, data=dataclasses.replace(recipe.data, root=str(root)))
    measured = measure(recipe, checkpoint, sys.maxsize)  # on all evaluation images
    with (folder / "metrics.csv").open(newline="") as file:
        trained = [row["train_accuracy"] for row in csv.DictReader(file) if row["val_accuracy"]]
    return {
        "network": name,
        "seed": recipe.seed,
        "epochs": recipe.train.epochs,
        "accuracy": f"{result['last_accuracy']:.4f}",
        "train_accuracy": f"{float(trained[-1]):.4f}",
        "minutes": round(result["seconds"] / 60),
        "processes": recipe.train.devices,
        "parameters": measured["parameters"],
        "packed_kib": round(measured["packed_bytes"] / 1024),
        "additions_m": f"{measured['additions'] / 1e6:.1f}",
        "macs_m": f"{measured['macs'] / 1e6:.1f}",
        "bit_aware_uj": f"{measured['uj_bit_aware']:.2f}",
        "active_groups": f"{measured['active_groups']:.3f}" if "active_groups" in measured else "",
        "machine": machine,
    }


def main(words: list[str] | None = None) -> None:
    """Write the table, and print it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--machine", required=True, help="the processor they were trained on")
    parser.add_argument("--root", type=Path, help="the images (default: where training found them)")
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--csv", type=Path, default=Path("docs/results/cifar10-small.csv"))
    options = parser.parse_args(words)
    rows: dict[str, dict[str, Any]] = {}
    if options.csv.exists():
        with options.csv.open(newline="") as file:
            rows = {row["network"]: row for row in csv.DictReader(file)}
    for folder, name in NETWORKS.items():
        if (options.runs / folder / "result.json").exists():
            rows[name] = row_of(name, options.runs / folder, options.root, options.machine)
    write_csv(options.csv, COLUMNS, rows.values(), line_end="\n")
    print(options.csv.read_text(), end="")


if __name__ == "__main__":
    main()
