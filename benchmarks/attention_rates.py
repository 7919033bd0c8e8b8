"""How much the neurons in attention fire, by block: rates of q, k, v and of the neuron after them.

    python benchmarks/attention_rates.py --ablation runs/ablation-cifar10-spikformer --seed 0 \
        --csv rates.csv plain rectified

writes a row for each of the finished variants named and each block: the share of what a neuron can
fire, 1 where it is saturated, on the first evaluation images. Rows of other variants or seeds that
are in the file stay.
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path
from typing import Any

from qsdformer.errors import UserError
from qsdformer.experiments.ablation_measure import evaluation_images
from qsdformer.experiments.grid import Cell, cell_checkpoint
from qsdformer.files import write_csv
from qsdformer.models.checkpoint import load_checkpoint
from qsdformer.recipes.recipe import parse_recipe
from qsdformer.tasks.activity import measure_activity

NEURONS = ("q", "k", "v", "attention")


def rates(ablation: Path, cell: Cell, images: int) -> list[dict[str, Any]]:
    """A row for each block of a finished cell."""
    loaded = load_checkpoint(cell_checkpoint(ablation, cell))
    batches = list(evaluation_images(parse_recipe(loaded.extra["recipe"]), images))
    activity = measure_activity(loaded.model, batches)
    blocks: dict[str, dict[str, float]] = {}
    for name, layer in activity.items():
        block, _, neuron = name.rpartition(".")
        if block.endswith(".attention") and (kind := neuron.removesuffix("_neuron")) in NEURONS:
            blocks.setdefault(block, {})[f"rate_{kind}"] = round(layer["firing_rate"], 4)
    return [
        {"variant": cell.variant, "seed": cell.seed, "block": number, **block}
        for number, block in enumerate(blocks.values(), 1)
    ]


def main() -> None:
    """Parse arguments and measure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("variants", nargs="+", metavar="VARIANT")
    parser.add_argument("--ablation", type=Path, required=True, help="folder of a grid's output")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--images", type=int, default=500, help="evaluation images (default 500)")
    parser.add_argument("--csv", type=Path, required=True)
    options = parser.parse_args()
    try:
        cells = [Cell(variant, options.seed) for variant in options.variants]
        rows = [row for cell in cells for row in rates(options.ablation, cell, options.images)]
    except UserError as error:
        parser.exit(2, f"error: {error}\n")
    kept: list[dict[str, Any]] = []
    if options.csv.exists():
        with options.csv.open(newline="", encoding="utf-8") as file:
            kept = list(csv.DictReader(file))
    again = {(cell.variant, str(cell.seed)) for cell in cells}
    kept = [row for row in kept if (row["variant"], row["seed"]) not in again]
    columns = ["variant", "seed", "block", *(f"rate_{name}" for name in NEURONS)]
    write_csv(options.csv, columns, [*kept, *rows], line_end="\n")
    print(options.csv)


if __name__ == "__main__":
    main()
