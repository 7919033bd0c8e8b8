"""Draws what fine-grained distillation gains against its weight, from the results of three grids.

A line for each grid and source of the student's features: the gain over the untaught student of
the same seed, mean and standard deviation over seeds.

    python benchmarks/distillation_weight.py [--results docs/results] [--output FIGURE]
"""

from __future__ import annotations

import argparse
import statistics
from dataclasses import dataclass
from pathlib import Path

from matplotlib.figure import Figure

from qsdformer.experiments.ablation_report import Row, accuracies, paired_differences, read_rows
from qsdformer.files import atomic_path


@dataclass(frozen=True)
class Line:
    """Variants of one grid that differ in the weight only."""

    label: str
    grid: str
    untaught: str
    variants: dict[float, str]  # weight -> variant


LINES = (
    Line(
        "membrane potentials, small budget, held-out images",
        "ablation-distillation",
        "none",
        {w: f"fgd-{w}-membrane" for w in (1, 3, 10, 30, 100)},
    ),
    Line(
        "spike counts, small budget, held-out images",
        "ablation-distillation",
        "none",
        {w: f"fgd-{w}" for w in (0.3, 1, 3, 30)},
    ),
    Line(
        "membrane potentials, small budget, test images",
        "ablation-fashion-mnist",
        "rectified",
        {1: "fgd", 3: "fgd-3", 10: "fgd-10", 30: "fgd-30"},
    ),
    Line(
        "membrane potentials, full budget, test images",
        "ablation-full-budget",
        "none",
        {1: "fgd", 3: "fgd-3", 10: "fgd-10", 30: "fgd-30"},
    ),
)


def gains(rows: list[Row], line: Line) -> dict[float, list[float]]:
    """Points above the untaught student by weight, one a seed that both have."""
    base = accuracies(rows, line.untaught)
    by_weight = {
        weight: paired_differences(base, accuracies(rows, variant))
        for weight, variant in line.variants.items()
    }
    return {weight: own for weight, own in by_weight.items() if own}


def draw(results: Path, path: Path) -> None:
    """Write the figure (PNG)."""
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    for number, line in enumerate(LINES):
        shift = 1 + 0.04 * (number - 1.5)  # so that bars do not hide each other
        found = gains(read_rows(results / f"{line.grid}.csv"), line)
        axes.errorbar(
            [weight * shift for weight in found],
            [statistics.mean(own) for own in found.values()],
            [statistics.stdev(own) if len(own) > 1 else 0.0 for own in found.values()],
            fmt="o--" if "counts" in line.label else "o-",
            capsize=3,
            label=line.label,
        )
    axes.axhline(0, color="0.4", linewidth=1)
    axes.set_xscale("log")
    ticks = (0.3, 1, 3, 10, 30, 100)
    axes.set_xticks(ticks, [str(t) for t in ticks])
    axes.minorticks_off()
    axes.grid(alpha=0.4)
    axes.set_xlabel("weight of fine-grained distillation")
    axes.set_ylabel("accuracy above the untaught student (points)")
    axes.legend()
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=130)


def main() -> None:
    """Draw from the kept results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--results", type=Path, default=Path("docs/results"))
    parser.add_argument("--output", type=Path, default=Path("docs/figures/distillation-weight.png"))
    options = parser.parse_args()
    draw(options.results, options.output)
    print(options.output)


if __name__ == "__main__":
    main()
