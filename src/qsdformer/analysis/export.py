"""Analyses as tables on screen, as CSV and as plain values for JSON."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from typing import Any

from rich.table import Table

from qsdformer import files
from qsdformer.analysis import energy
from qsdformer.analysis.energy import KINDS, CostModel, Row
from qsdformer.analysis.information import histogram_entropy
from qsdformer.analysis.ledger import Ledger
from qsdformer.analysis.subject import Analysis
from qsdformer.graph.trace import plain_config

ROW_FIELDS = tuple(f.name for f in dataclasses.fields(Row))
UNITS = ((1e9, "mJ"), (1e6, "µJ"), (1e3, "nJ"))


def constants() -> dict[str, float]:
    """Every constant of the cost models by name; the name ends with its unit."""
    return {
        n.lower(): v for n, v in vars(energy).items() if n.isupper() and isinstance(v, (int, float))
    }


def energy_text(picojoule: float) -> str:
    """An energy with a readable unit."""
    for size, unit in UNITS:
        if picojoule >= size:
            return f"{picojoule / size:,.2f} {unit}"
    return f"{picojoule:,.1f} pJ"


def ledger_values(
    ledger: Ledger, models: Sequence[CostModel], first: Ledger | None = None
) -> dict[str, Any]:
    """A ledger as plain values; energies are in pJ an image, ratios are first / this."""
    charged = {model.name: ledger.energies(model) for model in models}
    values: dict[str, Any] = {
        "name": ledger.name,
        "left_out": ledger.left_out,
        "accuracy": ledger.accuracy,
        "parameters": ledger.parameters,
        "packed_bytes": ledger.packed_bytes,
        "float_bytes": ledger.float_bytes,
        "synaptic_operations": ledger.synaptic_operations,
        "macs": ledger.macs,
        "energy_pj": {
            model.name: {"total": ledger.total(model), **ledger.by_kind(model)} for model in models
        },
        "rows": [
            {**_row_values(row), "energy_pj": {name: e[i] for name, e in charged.items()}}
            for i, row in enumerate(ledger.rows)
        ],
    }
    if first is not None:
        values["ratio"] = {
            "packed_bytes": first.packed_bytes / ledger.packed_bytes,
            **{f"energy_{m.name}": first.total(m) / ledger.total(m) for m in models},
        }
    return values


def analysis_values(analysis: Analysis) -> dict[str, Any]:
    """Firing rates and entropies as plain values."""
    return {
        "name": analysis.name,
        "data": analysis.data_name,
        "left_out": analysis.left_out,
        "images": analysis.measured.images,
        "accuracy": analysis.measured.accuracy,
        "model_config": plain_config(analysis.model),
        "firing_rates": analysis.rates,
        "entropy_bits": analysis.entropies,
    }


def write_csv(
    path: str | os.PathLike[str], ledgers: Sequence[Ledger], models: Sequence[CostModel]
) -> None:
    """A line for each operation of each ledger, whole or not at all."""
    columns = ["model", *ROW_FIELDS, "deviation", *(f"{m.name}_pj" for m in models)]
    rows = []
    for ledger in ledgers:
        charged = {f"{m.name}_pj": ledger.energies(m) for m in models}
        for i, row in enumerate(ledger.rows):
            energies = {name: column[i] for name, column in charged.items()}
            rows.append({"model": ledger.name, **_row_values(row), **energies})
    files.write_csv(path, columns, rows)


def neuron_table(analysis: Analysis) -> Table:
    """Firing rate of each neuron layer and, of q, k and v, the entropy of its counts."""
    table = Table(title=f"Neurons of {analysis.name}, {analysis.measured.images:,} images")
    table.add_column("neuron", overflow="fold")
    for column in ("firing rate", "entropy"):
        table.add_column(column, justify="right")
    for name, rate in analysis.rates.items():
        histogram = analysis.measured.histograms.get(name)
        entropy = "" if histogram is None else f"{histogram_entropy(histogram):.2f} bit"
        table.add_row(name, f"{rate:.3f}", entropy)
    return table


def operation_table(ledger: Ledger) -> Table:
    """What layers and attention do for one image: exactly, and as papers estimate it."""
    table = Table(title="Operations an image")
    table.add_column("operation", overflow="fold")
    table.add_column("kind")
    for column in ("MACs", "rate", "exact", "papers' estimate", "deviation"):
        table.add_column(column, justify="right")
    for row in ledger.rows:
        if row.dense_macs:
            table.add_row(row.name, KINDS[row.kind], *_operation_cells(row))
    return table


def _operation_cells(row: Row) -> tuple[str, ...]:
    return (
        f"{row.dense_macs:,}",
        "" if row.rate is None else f"{row.rate:.3f}",
        f"{row.count:,.0f}",
        f"{row.estimate:,.0f}",
        "" if row.deviation is None else f"{row.deviation:+.1%}",
    )


def energy_table(ledger: Ledger, models: Sequence[CostModel]) -> Table:
    """Energy an image for each kind of operation, under each cost model."""
    table = Table(title="Energy an image")
    table.add_column("kind")
    for model in models:
        table.add_column(model.name, justify="right")
    columns = [ledger.by_kind(model) for model in models]
    for kind, title in KINDS.items():
        if any(row.kind == kind for row in ledger.rows):
            table.add_row(title, *(energy_text(column[kind]) for column in columns))
    table.add_section()
    table.add_row("total", *(energy_text(ledger.total(model)) for model in models))
    return table


def comparison_table(ledgers: Sequence[Ledger], models: Sequence[CostModel]) -> Table:
    """Models side by side: energy and size, and how many times less than the first."""
    table = Table(title="Side by side (× : first / this)")
    table.add_column("model", overflow="fold")
    for column in ("top-1", "packed", *(model.name for model in models)):
        table.add_column(column, justify="right")
    first = ledgers[0]
    for ledger in ledgers:
        size_ratio = first.packed_bytes / ledger.packed_bytes
        cells = [
            "" if ledger.accuracy is None else f"{ledger.accuracy:.2%}",
            f"{ledger.packed_bytes / 1024:,.0f} KiB ({size_ratio:.2f}×)",
        ]
        for model in models:
            total = ledger.total(model)
            cells.append(f"{energy_text(total)} ({first.total(model) / total:.2f}×)")
        lacking = f" (energy without its {ledger.left_out})" if ledger.left_out else ""
        table.add_row(ledger.name + lacking, *cells)
    return table


def _row_values(row: Row) -> dict[str, Any]:
    values = {name: getattr(row, name) for name in ROW_FIELDS}
    return {**values, "deviation": row.deviation}
