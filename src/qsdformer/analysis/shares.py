"""Which part of a dense network has how many of its parameters, bytes and operations.

Parts are backbone, neck and heads, as the network's `PARTS` name their modules. Post-processing is
a part of its own, without parameters.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.table import Table
from torch import nn

from qsdformer.analysis.energy import CostModel
from qsdformer.analysis.export import energy_text
from qsdformer.analysis.information import packed_bytes_by_tensor
from qsdformer.analysis.ledger import Ledger

POST = "post-processing"


@dataclass(frozen=True, kw_only=True)
class Share:
    """One part: sizes, and what it does for an image; energies in pJ by cost model."""

    part: str
    parameters: int = 0
    packed_bytes: int = 0
    additions: float = 0.0  # for spikes
    macs: float = 0.0  # on real input
    energy: Mapping[str, float]


def parts_of(network: nn.Module) -> dict[str, tuple[str, ...]]:
    """The paths of a network's parts by name; empty for one that is not divided."""
    return dict(getattr(network, "PARTS", {}))


def shares(network: nn.Module, ledger: Ledger, models: Sequence[CostModel]) -> list[Share]:
    """The parts of `network`, whose ledger has rows under the names of its modules."""
    parts = parts_of(network)
    values: dict[str, dict[str, Any]] = {name: _nothing(models) for name in (*parts, POST)}
    for name, parameter in network.named_parameters():
        values[_part(name, parts)]["parameters"] += parameter.numel()
    for name, size in packed_bytes_by_tensor(network).items():
        values[_part(name, parts)]["packed_bytes"] += size
    charged = {model.name: ledger.energies(model) for model in models}
    for i, row in enumerate(ledger.rows):
        own = values[POST if row.kind == "post" else _part(row.name, parts)]
        if row.kind in ("ac", "attention"):
            own["additions"] += row.count
        if row.kind == "mac":
            own["macs"] += row.count
        for model, energies in charged.items():
            own["energy"][model] += energies[i]
    return [Share(part=name, **found) for name, found in values.items()]


def share_table(found: Sequence[Share]) -> Table:
    """The parts side by side: numbers, and their shares of the whole."""
    table = Table(title="Backbone, neck and heads")
    table.add_column("part", no_wrap=True)
    columns: dict[str, list[float]] = {
        "parameters": [float(s.parameters) for s in found],
        "packed bytes": [float(s.packed_bytes) for s in found],
        "additions": [s.additions for s in found],
        "MACs": [s.macs for s in found],
    }
    energies = {name: [s.energy[name] for s in found] for name in found[0].energy}
    for title in (*columns, *energies):
        table.add_column(title, justify="right")
    for i, share in enumerate(found):
        counts = (_cell(f"{c[i]:,.0f}", c[i], sum(c)) for c in columns.values())
        charged = (_cell(energy_text(e[i]), e[i], sum(e)) for e in energies.values())
        table.add_row(share.part, *counts, *charged)
    return table


def share_values(found: Sequence[Share]) -> dict[str, dict[str, Any]]:
    """The parts as plain values, energies in pJ."""
    return {
        s.part: {
            "parameters": s.parameters,
            "packed_bytes": s.packed_bytes,
            "additions": s.additions,
            "macs": s.macs,
            "energy_pj": dict(s.energy),
        }
        for s in found
    }


def _nothing(models: Sequence[CostModel]) -> dict[str, Any]:
    counts = {"parameters": 0, "packed_bytes": 0, "additions": 0.0, "macs": 0.0}
    return {**counts, "energy": {model.name: 0.0 for model in models}}


def _part(name: str, parts: Mapping[str, tuple[str, ...]]) -> str:
    """The part that a module or parameter of this name is in; the last one, the heads, else."""
    for part, paths in parts.items():
        if f"{name}.".startswith(tuple(f"{path}." for path in paths)):
            return part
    return list(parts)[-1]


def _cell(text: str, value: float, total: float) -> str:
    return f"{text}\n{value / total:.1%}" if total else "0"
