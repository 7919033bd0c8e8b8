"""The measured figures of docs/energy.md, from what `qsd analyze --twins --json` wrote.

qsd analyze runs/fashion-mnist/fashion-mnist-tiny-0/best.ckpt --twins --json energy.json
python benchmarks/energy_tables.py energy.json
"""

from __future__ import annotations

import argparse
import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from qsdformer.files import atomic_path

TITLES = {
    "spiking": "spiking, 4-1-4",
    "ann": "ANN, fp32",
    "quantised-ann": "quantised ANN, every MAC",
    "quantised-ann-skip": "quantised ANN, zeros skipped",
}
MODELS = ("papers", "papers-inner", "bit-aware", "memory")


def rows_of(ledgers: dict[str, dict[str, Any]]) -> list[dict[str, str]]:
    """A row for each network: size, µJ an image by cost model, and its layers on spikes alone."""
    names = {row["name"] for row in ledgers["spiking"]["rows"] if row["kind"] == "ac"}
    found = []
    for name, ledger in ledgers.items():
        rows = [row for row in ledger["rows"] if row["name"] in names]
        found.append(
            {
                "network": TITLES[name],
                "packed KiB": f"{ledger['packed_bytes'] / 1024:.0f}",
                **{m: f"{ledger['energy_pj'][m]['total'] / 1e6:.2f}" for m in MODELS},
                "operations (M)": f"{sum(row['count'] for row in rows) / 1e6:.2f}",
                "their nJ": f"{sum(row['energy_pj']['bit-aware'] for row in rows) / 1e3:.0f}",
            }
        )
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """Print energies of the networks, and what happens in the layers that see spikes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("json", type=Path, help="what qsd analyze --twins --json has written")
    parser.add_argument("--csv", type=Path, help="write the rows to this file, too")
    options = parser.parse_args(arguments)
    values = json.loads(options.json.read_text(encoding="utf-8"))
    ledgers = dict(zip(TITLES, values["ledgers"], strict=True))
    spiking = ledgers["spiking"]
    print(f"{spiking['name']}: top-1 {spiking['accuracy']:.2%}")
    rows = rows_of(ledgers)
    print(f"| {' | '.join(rows[0])} |\n|{'---|' * len(rows[0])}")
    for row in rows:
        print(f"| {' | '.join(row.values())} |")
    _print_deviations(spiking)
    if options.csv is not None:
        with atomic_path(options.csv) as path, path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)


def _print_deviations(spiking: dict[str, Any]) -> None:
    rows = [row for row in spiking["rows"] if row["rate"] is not None]
    estimate = sum(row["estimate"] for row in rows) / spiking["synaptic_operations"] - 1
    print(f"\npapers' estimate of all spikes' additions: {estimate:+.1%}")
    known = [row for row in rows if row["deviation"] is not None]
    for row in (min(known, key=_deviation), max(known, key=_deviation)):
        print(f"{row['name']}: {row['deviation']:+.0%}")
    for model in ("bit-aware", "memory"):
        kinds = dict(spiking["energy_pj"][model])
        total = kinds.pop("total")
        print(model, ", ".join(f"{kind} {pj / total:.0%}" for kind, pj in kinds.items()))


def _deviation(row: dict[str, Any]) -> float:
    return float(row["deviation"])


if __name__ == "__main__":
    main()
