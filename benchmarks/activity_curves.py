"""Draws accuracy against spike activity, from the results of the grid `ablation-activity`.

Left against the mean firing rate, right against the share of active groups of 4 channels; a line
for each kind of penalty, a point a target: mean and standard deviation over seeds.

    qsd ablate ablation-activity --jobs 2
    python benchmarks/activity_curves.py runs/ablation-activity/results.csv
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from qsdformer.experiments.ablation_report import Row, accuracies, read_rows
from qsdformer.files import atomic_path

UNPENALISED = "none"
KINDS = {"rate": "penalty on single neurons", "group": "penalty on groups of 4 channels"}
AXES = {"firing_rate": "mean firing rate (%)", "active_groups": "active groups (%)"}


def curve(rows: list[Row], kind: str, column: str) -> list[tuple[float, float, float]]:
    """(activity, accuracy, standard deviation of accuracy) in percent, by falling activity."""
    names = [str(r["variant"]) for r in rows]
    wanted = [n for n in dict.fromkeys(names) if n == UNPENALISED or n.startswith(f"{kind}-")]
    points = []
    for name in wanted:
        accuracy = list(accuracies(rows, name).values())
        spread = statistics.stdev(accuracy) if len(accuracy) > 1 else 0.0
        activity = 100 * statistics.mean(float(r[column]) for r in rows if r["variant"] == name)
        points.append((activity, statistics.mean(accuracy), spread))
    return sorted(points, reverse=True)


def draw(rows: list[Row], path: Path) -> None:
    """Both panels into one PNG."""
    figure = Figure(figsize=(9, 3.8), layout="constrained")
    panels: Any = figure.subplots(1, len(AXES), sharey=True)
    for axes, (column, title) in zip(panels, AXES.items(), strict=True):
        for kind, label in KINDS.items():
            x, y, spread = zip(*curve(rows, kind, column), strict=True)
            axes.errorbar(x, y, yerr=spread, marker="o", capsize=3, label=label)
        axes.set_xlabel(title)
        axes.set_xlim(left=0)
        axes.grid(alpha=0.4)
    panels[0].set_ylabel("accuracy (%)")
    panels[0].legend()
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=130)


def main() -> None:
    """Parse arguments, draw, and print the points."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("results", type=Path, help="results.csv of the grid")
    parser.add_argument("--output", type=Path, default=Path("docs/figures/spike-activity.png"))
    options = parser.parse_args()
    rows = read_rows(options.results)
    if not any(row["variant"] == UNPENALISED for row in rows):
        parser.exit(2, f"error: {options.results} has no row of the variant {UNPENALISED}\n")
    draw(rows, options.output)
    for kind in KINDS:
        for column in AXES:
            points = ", ".join(
                f"{x:.1f}: {y:.2f} ± {s:.2f}" for x, y, s in curve(rows, kind, column)
            )
            print(f"{kind}, {column} %: accuracy %  {points}")
    print(options.output)


if __name__ == "__main__":
    main()
