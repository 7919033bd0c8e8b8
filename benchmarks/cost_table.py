"""A table of docs/cifar10.md that sets a grid's variants side by side, by accuracy and cost.

    python benchmarks/cost_table.py docs/results/ablation-cifar10-architectures.csv
    python benchmarks/cost_table.py docs/results/ablation-cifar10-bits.csv --columns packed_bytes

Means over the seeds of each variant, and the standard deviation of accuracy. Additions of an ANN
are its MACs; a dash is what a variant does not have.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import NamedTuple

from qsdformer.experiments.ablation_report import Row, read_rows


class Column(NamedTuple):
    """What stands above a column, what its values are divided by, and their decimals."""

    title: str
    unit: float = 1.0
    digits: int = 2


COLUMNS = {
    "parameters": Column("parameters, M", 1e6),
    "packed_bytes": Column("packed KiB", 1024, 0),
    "active_groups": Column("active groups", 1, 3),
    "additions": Column("additions, M", 1e6, 1),
    "uj_papers": Column("`papers`, µJ"),
    "uj_papers_inner": Column("`papers-inner`, µJ"),
    "uj_bit_aware": Column("`bit-aware`, µJ"),
    "uj_memory": Column("`memory`, µJ"),
    "uj_twin_skip": Column("quantised ANN, skipping zeros, µJ"),
}
DEFAULT = tuple(key for key in COLUMNS if key not in ("active_groups", "uj_twin_skip"))


def lines(path: Path, columns: Sequence[str] = DEFAULT) -> list[str]:
    """The lines of the table: titles, then one a variant, in the file's order."""
    rows = read_rows(path)
    lacking = [key for key in columns if not any(row.get(key) for row in rows)]
    if lacking:
        raise SystemExit(f"{path} lacks values of {lacking[0]}: run qsd ablate again to add them")
    titles = ["variant", "n", "accuracy % ± sd", *(COLUMNS[key].title for key in columns)]
    found = [_line(titles), f"|---{'|---:' * (len(titles) - 1)}|"]
    for name in dict.fromkeys(row["variant"] for row in rows):
        own = [row for row in rows if row["variant"] == name]
        percent = [100 * float(row["accuracy"]) for row in own]
        accuracy = f"{mean(percent):.2f}"
        if len(own) > 1:
            accuracy += f" ± {stdev(percent):.2f}"
        cells = [_cell(own, key) for key in columns]
        found.append(_line([str(own[0]["label"]), str(len(own)), accuracy, *cells]))
    return found


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _cell(own: Sequence[Row], key: str) -> str:
    """The mean of a variant's values."""
    title, unit, digits = COLUMNS[key]
    if key == "additions" and not any(float(row[key] or 0) for row in own):
        return f"{mean(float(row['macs']) for row in own) / unit:.{digits}f} (MACs)"
    values = [row.get(key) for row in own]
    if not any(values):
        return "–"
    if not all(values):
        raise SystemExit(f"some seeds of {own[0]['variant']} lack their {title}")
    return f"{mean(float(value) for value in values) / unit:.{digits}f}"


def main(words: list[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("results", type=Path, help="results.csv of a grid")
    parser.add_argument("--columns", nargs="+", choices=COLUMNS, default=DEFAULT)
    options = parser.parse_args(words)
    print("\n".join(lines(options.results, options.columns)))


if __name__ == "__main__":
    main()
