"""Simulations as tables on screen, as CSV and as plain values for JSON."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from rich.table import Table

from qsdformer import files
from qsdformer.accelerator.ledger import Line
from qsdformer.accelerator.published.design import Estimate
from qsdformer.accelerator.results import PARTS, Figures, figures, stage_figures
from qsdformer.accelerator.simulate import Simulation, Stage
from qsdformer.accelerator.sweep import Point
from qsdformer.accelerator.traffic import DRAM
from qsdformer.analysis.export import energy_text
from qsdformer.errors import UserError

BYTE = 8
SHOWN_ENERGY = {"compute": "compute", "buffers": "buffers", "dram": "DRAM", "leakage": "leakage"}


def stage_table(simulation: Simulation) -> Table:
    """A line for each stage: cycles, stalls, use of the unit at its head, traffic and energy."""
    table = Table(title=f"Stages on {simulation.design.name}, means an image")
    table.add_column("stage", overflow="fold")
    table.add_column("unit")
    for column in ("rate", "cycles", "stalls", "used", "buffers", "DRAM", "energy"):
        table.add_column(column, justify="right")
    for stage in simulation.stages:
        found = stage_figures(stage, simulation)
        table.add_row(
            stage.name,
            stage.head,
            "" if stage.rate is None else f"{stage.rate:.3f}",
            f"{found.cycles:,.0f}",
            f"{found.stalls:,.0f}",
            f"{stage.units[stage.head].utilisation:.1%}" if stage.head else "",
            bytes_text(_on_chip(found)),
            bytes_text(found.reads[DRAM] + found.writes[DRAM]),
            energy_text(found.total),
        )
    return table


def unit_table(simulation: Simulation) -> Table:
    """How much of the time each unit works, and how much of its lanes is used in all."""
    table = Table(title=f"Units of {simulation.design.name}")
    table.add_column("unit")
    for column in ("lanes", "busy", "used"):
        table.add_column(column, justify="right")
    found = figures(simulation)
    for name, unit in simulation.design.units.named().items():
        busy, used = found.busy.get(name, 0.0), found.used.get(name, 0.0)
        table.add_row(name, f"{unit.total:,}", f"{busy:.1%}", f"{used:.1%}")
    return table


def traffic_table(simulation: Simulation) -> Table:
    """What is read and written at each level of memory, and what it costs."""
    table = Table(title=f"Memory of {simulation.design.name}, an image")
    table.add_column("level")
    for column in ("size", "read", "written"):
        table.add_column(column, justify="right")
    found = figures(simulation)
    sizes = {n: f"{b.kib:g} KiB" for n, b in simulation.design.buffers.named().items()}
    for name, read in found.reads.items():
        cells = bytes_text(read), bytes_text(found.writes[name])
        table.add_row("DRAM" if name == DRAM else name, sizes.get(name, ""), *cells)
    return table


def design_table(simulations: Sequence[Simulation]) -> Table:
    """Designs side by side."""
    table = Table(title="Designs, an image")
    table.add_column("design")
    for column in ("adders", "memory", "cycles", "frames/s", "mJ", *SHOWN_ENERGY.values()):
        table.add_column(column, justify="right")
    for column in ("GSOP/s", "GSOP/W"):
        table.add_column(column, justify="right")
    for simulation in simulations:
        found, design = figures(simulation), simulation.design
        table.add_row(
            design.name,
            f"{design.adders:,}",
            f"{design.kib:,g} KiB",
            f"{found.cycles:,.0f}",
            f"{found.frames_per_second:,.1f}",
            f"{found.millijoules:.4g}",
            *(f"{found.energy[part] / found.total:.0%}" for part in PARTS),
            f"{found.gsops:,.1f}",
            f"{found.gsops_per_watt:,.2f}",
        )
    return table


def ledger_table(lines: Sequence[Line], design: str) -> Table:
    """The ledger's memory model beside the traffic of a design."""
    table = Table(title=f"Traffic an image: the ledger's memory model, and {design}")
    table.add_column("what")
    for column in ("ledger", "simulated", "times"):
        table.add_column(column, justify="right")
    table.add_column("why", overflow="fold")
    for line in lines:
        times = f"{line.simulated / line.ledger:,.1f}" if line.ledger else ""
        cells = bytes_text(line.ledger), bytes_text(line.simulated), times
        table.add_row(line.what, *cells, line.why)
    return table


def bytes_text(bits: float) -> str:
    """Bits as bytes with a readable unit; empty for none."""
    size = bits / BYTE
    for limit, unit in ((2**20, "MiB"), (2**10, "KiB")):
        if size >= limit:
            return f"{size / limit:,.1f} {unit}"
    return f"{size:,.0f} B" if size else ""


def simulation_values(simulation: Simulation) -> dict[str, Any]:
    """A simulation as plain values; energies are in pJ, traffic in bits, means an image."""
    design = simulation.design
    return {
        "design": design.name,
        "title": design.title,
        "kind": design.kind,
        "encoding": design.encoding,
        "clock_mhz": design.clock_mhz,
        "adders": design.adders,
        "on_chip_kib": design.kib,
        "peak_gsops": design.peak_gsops,
        "assumptions": design.assumptions,
        "images": simulation.images,
        "weights_stay_on_chip": simulation.resident,
        "differing_from_reference": simulation.differing,
        **figure_values(figures(simulation)),
        "stages": [
            {**_stage_values(s), **figure_values(stage_figures(s, simulation))}
            for s in simulation.stages
        ],
    }


def figure_values(found: Figures) -> dict[str, Any]:
    """Figures as plain values."""
    return {
        "cycles": found.cycles,
        "stalls": found.stalls,
        "dram_stalls": found.dram_stalls,
        "synaptic_operations": found.synaptic,
        "frames_per_second": found.frames_per_second,
        "millijoules": found.millijoules,
        "gsops": found.gsops,
        "gsops_per_watt": found.gsops_per_watt,
        "energy_pj": found.energy,
        "reads_bits": found.reads,
        "writes_bits": found.writes,
        "busy": found.busy,
        "used": found.used,
    }


def write_csv(path: str | os.PathLike[str], simulations: Sequence[Simulation]) -> None:
    """A line for each stage of each simulation, whole or not at all."""
    rows = [_csv_row(stage, s) for s in simulations for stage in s.stages]
    write_rows(path, rows)


def write_rows(path: str | os.PathLike[str], rows: Sequence[dict[str, Any]]) -> None:
    """Rows as CSV with the columns of all of them."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    files.write_csv(path, columns, rows)


def _csv_row(stage: Stage, simulation: Simulation) -> dict[str, Any]:
    found = figure_values(stage_figures(stage, simulation))
    row = {"design": simulation.design.name, **_stage_values(stage)}
    for key, value in found.items():
        if isinstance(value, dict):
            row |= {f"{key}.{name}": v for name, v in value.items()}
        else:
            row[key] = value
    return row


def _stage_values(stage: Stage) -> dict[str, Any]:
    return {"stage": stage.name, "operation": stage.kind, "unit": stage.head, "rate": stage.rate}


def _on_chip(found: Figures) -> float:
    return sum(v for way in (found.reads, found.writes) for n, v in way.items() if n != DRAM)


def sweep_table(points: Sequence[Point]) -> Table:
    """A line for each variant of a design."""
    table = Table(title=f"Variants of {points[0].design.name}, an image")
    for key in points[0].settings:
        table.add_column(key, justify="right")
    for column in ("adders", "memory", "frames/s", "mJ", "GSOP/s", "GSOP/W", ""):
        table.add_column(column, justify="right")
    for point in points:
        settings = [f"{value}" for value in point.settings.values()]
        cells = [f"{point.design.adders:,}", f"{point.design.kib:,g} KiB"]
        if point.found is None:
            table.add_row(*settings, *cells, point.problem.partition(": ")[2])
            continue
        found = point.found
        table.add_row(
            *settings,
            *cells,
            f"{found.frames_per_second:,.1f}",
            f"{found.millijoules:.4g}",
            f"{found.gsops:,.1f}",
            f"{found.gsops_per_watt:,.2f}",
            "*" if point.best else "",
        )
    return table


def sweep_values(points: Sequence[Point]) -> list[dict[str, Any]]:
    """The variants as plain rows."""
    return [
        {
            **point.settings,
            "adders": point.design.adders,
            "on_chip_kib": point.design.kib,
            "frames_per_second": None if point.found is None else point.found.frames_per_second,
            "millijoules": None if point.found is None else point.found.millijoules,
            "gsops": None if point.found is None else point.found.gsops,
            "gsops_per_watt": None if point.found is None else point.found.gsops_per_watt,
            "best": point.best,
            "problem": point.problem,
        }
        for point in points
    ]


def estimate_table(estimates: Sequence[Sequence[Estimate]]) -> Table:
    """A line for each published design, means over the images it was estimated for."""
    table = Table(title="Published designs by their formulas, an image")
    table.add_column("design")
    for column in ("cycles", "ms", "frames/s", "mJ", "DRAM"):
        table.add_column(column, justify="right")
    for each in estimates:
        found = estimate_values(each)
        table.add_row(
            found["design"],
            f"{found['cycles']:,.0f}",
            f"{found['milliseconds']:,.4g}",
            f"{found['frames_per_second']:,.1f}",
            f"{found['millijoules']:.4g}",
            bytes_text(found["dram_bits"]),
        )
    return table


def estimate_values(estimates: Sequence[Estimate]) -> dict[str, Any]:
    """The estimates of one published design for several images as plain values: their means."""
    means = {
        what: sum(getattr(each, what) for each in estimates) / len(estimates)
        for what in ("cycles", "milliseconds", "millijoules", "dram_bits")
    }
    design = estimates[0].design.name
    if not means["milliseconds"]:
        raise UserError(f"design {design} counts none of this network's operations: leave it out")
    return {
        "design": design,
        "title": estimates[0].design.title,
        "kind": "published",
        "images": len(estimates),
        "left_out": list(estimates[0].left_out),
        "frames_per_second": 1e3 / means["milliseconds"],
        **means,
    }
