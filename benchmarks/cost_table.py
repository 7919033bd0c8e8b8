"""The table of docs/cifar10.md that sets a grid's variants side by side, by accuracy and cost.

    python benchmarks/cost_table.py docs/results/ablation-cifar10-architectures.csv

Means over the seeds of each variant, and the standard deviation of accuracy.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from statistics import mean, stdev

from qsdformer.experiments.ablation_report import read_rows

WORK = ("parameters", "packed_bytes", "additions", "macs")
ENERGIES = ("uj_papers", "uj_papers_inner", "uj_bit_aware", "uj_memory")


def lines(path: Path) -> list[str]:
    """The rows of the table, one a variant, in the file's order."""
    rows = read_rows(path)
    found = []
    lacking = [k for k in (*WORK, *ENERGIES) if not all(row.get(k) for row in rows)]
    if lacking:
        raise SystemExit(f"{path} lacks values of {lacking[0]}: run qsd ablate again to add them")
    for name in dict.fromkeys(row["variant"] for row in rows):
        own = [row for row in rows if row["variant"] == name]
        means = {
            key: mean(float(row[key]) for row in own) for key in ("accuracy", *WORK, *ENERGIES)
        }
        accuracy = f"{100 * means['accuracy']:.2f}"
        if len(own) > 1:
            accuracy += f" ± {stdev(100 * float(row['accuracy']) for row in own):.2f}"
        work = f"{means['macs'] / 1e6:.1f} (MACs)"
        if means["additions"]:
            work = f"{means['additions'] / 1e6:.1f}"
        cells = [own[0]["label"], str(len(own)), accuracy, f"{means['parameters'] / 1e6:.2f}"]
        cells += [f"{means['packed_bytes'] / 1024:.0f}", work]
        cells += [f"{means[key]:.2f}" for key in ENERGIES]
        found.append(f"| {' | '.join(map(str, cells))} |")
    return found


def main(words: list[str] | None = None) -> None:
    """Print the rows."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("results", type=Path, help="results.csv of a grid")
    print("\n".join(lines(parser.parse_args(words).results)))


if __name__ == "__main__":
    main()
