"""The measured figures of docs/energy.md, from what `qsd analyze --twins --json` wrote.

qsd analyze runs/fashion-mnist/fashion-mnist-tiny-0/best.ckpt --twins --json energy.json
python benchmarks/energy_tables.py energy.json
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

TITLES = {
    "spiking": "spiking, 4-1-4",
    "ann": "ANN, fp32",
    "quantised-ann": "quantised ANN, every MAC",
    "quantised-ann-skip": "quantised ANN, zeros skipped",
}
MODELS = ("papers", "papers-inner", "bit-aware", "memory")


def main(path: str) -> None:
    """Print the table of energies, and what happens in the layers that see spikes."""
    values = json.loads(Path(path).read_text())
    ledgers = dict(zip(TITLES, values["ledgers"], strict=True))
    spiking = ledgers["spiking"]
    print(f"{spiking['name']}: top-1 {spiking['accuracy']:.2%}")
    print("| | packed | " + " | ".join(f"`{m}`" for m in MODELS) + " |")
    print("|---|" + "---|" * (1 + len(MODELS)))
    for name, ledger in ledgers.items():
        totals = (ledger["energy_pj"][model]["total"] / 1e6 for model in MODELS)
        energies = " | ".join(f"{total:.2f}" for total in totals)
        print(f"| {TITLES[name]} | {ledger['packed_bytes'] / 1024:,.0f} KiB | {energies} |")
    names = {row["name"] for row in spiking["rows"] if row["kind"] == "ac"}
    print("\n| layers on spikes | operations (M) | bit-aware (nJ) |\n|---|---|---|")
    for name, ledger in ledgers.items():
        rows = [row for row in ledger["rows"] if row["name"] in names]
        count = sum(row["count"] for row in rows) / 1e6
        energy = sum(row["energy_pj"]["bit-aware"] for row in rows) / 1e3
        print(f"| {TITLES[name]} | {count:.2f} | {energy:,.0f} |")
    _print_deviations(spiking)


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
    main(sys.argv[1])
