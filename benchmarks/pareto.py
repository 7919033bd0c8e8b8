"""Draws a grid's accuracy against bytes, additions and bit-aware energy, with three Pareto fronts.

    python benchmarks/pareto.py runs/ablation-cifar10-bits/results.csv

A point a variant: mean over its seeds, standard deviation as a bar. In the panel of energy a cross
of the same colour is the quantised ANN of equal bits and levels that skips zeros (for T = 1 it
computes the same, so its accuracy is the spiking network's); ANNs in fp32 stand in every panel with
their MACs in place of additions. The front joins the variants that no other beats in both.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any, NamedTuple

from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

from qsdformer.experiments.ablation_report import Row, accuracies, read_rows
from qsdformer.files import atomic_path

PANELS = {
    "packed": "packed size (KiB)",
    "operations": "additions an image (M); MACs of an ANN",
    "energy": "bit-aware energy an image (µJ)",
}


class Point(NamedTuple):
    """A variant: costs by panel, accuracy in percent and its standard deviation."""

    label: str
    costs: dict[str, float]
    accuracy: float
    spread: float
    twin: float | None  # µJ of the quantised ANN that skips zeros


def points(rows: list[Row]) -> list[Point]:
    """The variants of a grid whose rows have energies, in their order."""
    found = []
    for name in dict.fromkeys(str(row["variant"]) for row in rows):
        own = [row for row in rows if row["variant"] == name and row["uj_bit_aware"]]
        if not own:
            continue

        def average(key: str, own: list[Row] = own) -> float:
            return mean(float(row[key]) for row in own)

        measured = list(accuracies(own, name).values())
        operations = average("additions") or average("macs")
        costs = {
            "packed": average("packed_bytes") / 1024,
            "operations": operations / 1e6,
            "energy": average("uj_bit_aware"),
        }
        spread = stdev(measured) if len(measured) > 1 else 0.0
        twin = average("uj_twin_skip") if own[0].get("uj_twin_skip") else None
        found.append(Point(str(own[0]["label"]), costs, mean(measured), spread, twin))
    return found


def front(found: Sequence[Point], panel: str) -> list[Point]:
    """The points that no other one beats: cheaper ones are all less accurate."""
    best: list[Point] = []
    for point in sorted(found, key=lambda p: (p.costs[panel], -p.accuracy)):
        if not best or point.accuracy > best[-1].accuracy:
            best.append(point)
    return best


def draw(found: list[Point], path: Path) -> None:
    """The three panels into one PNG."""
    figure = Figure(figsize=(13, 5.2), layout="constrained")
    axes: Any = figure.subplots(1, len(PANELS), sharey=True)
    colours = {point.label: f"C{number % 10}" for number, point in enumerate(found)}
    for ax, (panel, title) in zip(axes, PANELS.items(), strict=True):
        joined = front(found, panel)
        x, y = [p.costs[panel] for p in joined], [p.accuracy for p in joined]
        ax.plot(x, y, "-", color="0.75", zorder=0)
        for number, point in enumerate(found):
            style = {"color": colours[point.label], "marker": "os^Dv"[number // 10]}
            cost = point.costs[panel]
            ax.errorbar(cost, point.accuracy, yerr=point.spread, capsize=3, ls="", **style)
            if panel == "energy" and point.twin is not None:
                ax.plot(point.twin, point.accuracy, "x", color=colours[point.label])
        ax.set_xscale("log")
        ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        ax.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        ax.xaxis.set_minor_formatter(NullFormatter())
        ax.set_xlabel(title)
        ax.grid(alpha=0.4, which="both")
    axes[0].set_ylabel("accuracy (%)")
    handles = [
        axes[0].plot([], [], "os^Dv"[number // 10], color=colours[p.label], label=p.label)[0]
        for number, p in enumerate(found)
    ]
    handles.append(axes[0].plot([], [], "x", color="0.4", label="quantised ANN, skipping zeros")[0])
    figure.legend(handles=handles, loc="outside lower center", ncols=4, fontsize=8)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=130)


def main() -> None:
    """Parse arguments, draw, and print the fronts."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("results", type=Path, help="results.csv of a grid")
    parser.add_argument("--output", type=Path, default=Path("docs/figures/cifar10-pareto.png"))
    options = parser.parse_args()
    rows = read_rows(options.results)
    found = points([row for row in rows if "uj_bit_aware" in row])
    if not found:
        parser.exit(2, f"error: {options.results} has no row with energies: run its grid again\n")
    draw(found, options.output)
    for panel, title in PANELS.items():
        line = ", ".join(
            f"{p.label}: {p.costs[panel]:.4g} at {p.accuracy:.2f} %" for p in front(found, panel)
        )
        print(f"{title}: {line}")
    print(options.output)


if __name__ == "__main__":
    main()
