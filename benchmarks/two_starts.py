"""Draws a grid's variants with our start beside the same ones with the published start.

    python benchmarks/two_starts.py docs/results/ablation-cifar10-spikformer.csv

A line a pair of variants NAME and NAME-published: the mean over the seeds of each start, its
standard deviation as a bar, the seeds themselves in grey. A dotted line is the mean of the grid's
`ann`, where it has one.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from statistics import mean, stdev
from typing import Any, NamedTuple

from matplotlib.figure import Figure

from qsdformer.experiments.ablation_report import Row, accuracies, read_rows
from qsdformer.files import atomic_path

ENDING = "-published"


class Pair(NamedTuple):
    """A variant with either start: its label, and accuracies in percent by seed."""

    label: str
    ours: dict[int, float]
    published: dict[int, float]


def pairs(rows: list[Row]) -> list[Pair]:
    """The variants that `rows` have with both starts, in their order."""
    labels = {str(row["variant"]): str(row["label"]) for row in rows}
    return [
        Pair(label, accuracies(rows, name), accuracies(rows, name + ENDING))
        for name, label in labels.items()
        if name + ENDING in labels
    ]


def draw(found: list[Pair], ann: dict[int, float], path: Path) -> None:
    """One picture of all pairs, the first one at the top."""
    figure = Figure(figsize=(8.5, 0.5 * len(found) + 1.6), layout="constrained")
    axes: Any = figure.subplots()
    starts = {"our start": (-0.14, "C0", "o"), "published start": (0.14, "C1", "s")}
    for line, pair in enumerate(found):
        for (offset, colour, marker), own in zip(
            starts.values(), (pair.ours, pair.published), strict=True
        ):
            measured = list(own.values())
            spread = stdev(measured) if len(measured) > 1 else 0.0
            axes.plot(measured, [line + 1.9 * offset] * len(measured), ".", color="0.6", ms=5)
            axes.errorbar(
                mean(measured), line + offset, xerr=spread, color=colour, marker=marker, capsize=3
            )
    for label, (_, colour, marker) in starts.items():
        axes.plot([], [], marker=marker, color=colour, label=label)
    if ann:
        axes.axvline(mean(ann.values()), color="0.4", ls=":", label="ANN fp32")
    axes.set_yticks(range(len(found)), [pair.label for pair in found])
    axes.set_ylim(len(found) - 0.5, -0.5)
    axes.set_xlabel("accuracy (%): mean, standard deviation, and each seed in grey")
    axes.grid(axis="x", alpha=0.4)
    figure.legend(loc="outside upper right", ncols=3, frameon=False)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=130)


def main(words: list[str] | None = None) -> int:
    """Parse arguments, draw, and print each pair."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("results", type=Path, help="rows of a grid, as `qsd ablate` writes them")
    parser.add_argument("--output", type=Path, default=Path("docs/figures/cifar10-starts.png"))
    options = parser.parse_args(words)
    rows = read_rows(options.results)
    found = pairs(rows)
    if not found:
        parser.exit(2, f"error: {options.results} has no variant NAME with its NAME{ENDING}\n")
    draw(found, accuracies(rows, "ann"), options.output)
    for pair in found:
        ours, theirs = mean(pair.ours.values()), mean(pair.published.values())
        print(f"{pair.label}: {ours:.2f} %, published start {theirs:.2f} %")
    print(options.output)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
