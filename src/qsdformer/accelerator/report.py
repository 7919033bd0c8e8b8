"""A design in the report: when which unit works, what moves between memories, and its roofline."""

from __future__ import annotations

from collections.abc import Sequence

from qsdformer.accelerator.results import PARTS, figures, stage_figures
from qsdformer.accelerator.simulate import Simulation
from qsdformer.accelerator.tables import SHOWN_ENERGY, bytes_text
from qsdformer.accelerator.traffic import DRAM
from qsdformer.analysis.export import energy_text
from qsdformer.analysis.report import svg
from qsdformer.analysis.report.sections import Cell, figure, section, short_name, table
from qsdformer.analysis.report.svg import Axes, escape

ROW = 22  # height of a unit's row in the timeline
NAME_WIDTH = 82
SHORT_NAMES = {"accumulators": "sums", "membranes": "potentials", DRAM: "DRAM"}
BYTE = 8


def accelerator_section(simulations: Sequence[Simulation], left_out: Sequence[str] = ()) -> str:
    """The designs, the first in detail; `left_out` of the network was not simulated, in words."""
    first = simulations[0]
    design, found = first.design, figures(first)
    without = f" Simulated without: {escape(', '.join(left_out))}." if left_out else ""
    summary = (
        f"<p class='soft'>{escape(design.name)}: {escape(design.title)}. "
        f"{first.images} images, one after the other: {found.cycles:,.0f} cycles at "
        f"{design.clock_mhz:g} MHz, {found.frames_per_second:,.0f} frames/s, "
        f"{energy_text(found.total)} an image. {len(design.assumptions)} of "
        f"{len(design.sources)} numbers of this design are assumptions."
        f"{without}</p>"
    )
    return (
        section(
            "A simulated accelerator",
            figure("timeline", f"Units of {design.name} over an image", timeline(first), TIMELINE),
            figure("traffic", "What moves at each level of memory", traffic(first)),
            figure("roofline", "Roofline", roofline(first), ROOFLINE),
            figure("designs", "Energy of an image by design", energies(simulations)),
        )
        + summary
        + stages(first)
    )


TIMELINE = "Stages run one after the other; in a stage units are a pipeline, beside DRAM."
ROOFLINE = (
    "A dot is a stage that spikes add in; at the right edge are those that need no DRAM. The line "
    "is what adders and DRAM allow."
)


def timeline(simulation: Simulation) -> str:
    """A row for each unit with its time of work in every stage, means over images."""
    images, design = simulation.images, simulation.design
    used = [n for n in design.units.named() if any(n in s.units for s in simulation.stages)]
    rows = {name: i for i, name in enumerate([*used, DRAM])}
    whole = sum(stage.cycles for stage in simulation.stages) or 1
    scale = (svg.WIDTH - NAME_WIDTH - 4) / whole
    parts, begin = [], 0.0
    for name, i in rows.items():
        parts.append(
            f'<text class="end small" x="{NAME_WIDTH - 5}" y="{i * ROW + 15}">{escape(name)}</text>'
        )
    for stage in simulation.stages:
        moved = stage.traffic.reads[DRAM] + stage.traffic.writes[DRAM]
        lengths = {name: float(unit.cycles) for name, unit in stage.units.items()}
        lengths[DRAM] = moved / design.dram_bits
        for name, cycles in lengths.items():
            if cycles <= 0:
                continue
            tip = f"{stage.name}, {name}: {cycles / images:,.0f} cycles"
            parts.append(
                f'<rect class="bar s{rows[name] % 8}" x="{NAME_WIDTH + begin * scale:.2f}" '
                f'y="{rows[name] * ROW + 4}" width="{max(0.3, cycles * scale):.2f}" '
                f'height="{ROW - 7}"><title>{escape(tip)}</title></rect>'
            )
        begin += stage.cycles
    bottom = len(rows) * ROW + 14
    end = f"{whole / images:,.0f} cycles"
    parts.append(f'<text class="end small soft" x="{svg.WIDTH - 4}" y="{bottom}">{end}</text>')
    return svg.svg(bottom + 6, parts, "units over the stages of an image")


def traffic(simulation: Simulation) -> str:
    """Bytes read and written at each level."""
    found = figures(simulation)
    names = [name for name in found.reads if found.reads[name] or found.writes[name]]
    series = {
        "read": [found.reads[n] / BYTE / 1024 for n in names],
        "written": [found.writes[n] / BYTE / 1024 for n in names],
    }
    short = [SHORT_NAMES.get(name, name) for name in names]
    return svg.bars(short, series, "", "KiB an image")


def roofline(simulation: Simulation) -> str:
    """Additions a nanosecond against additions for a byte of DRAM."""
    design = simulation.design
    bandwidth = design.dram_bits / BYTE * design.clock_mhz / 1e3  # GB/s
    points = {}
    for stage in simulation.stages:
        found = stage_figures(stage, simulation)
        moved = (found.reads[DRAM] + found.writes[DRAM]) / BYTE
        if found.synaptic:
            points[stage.name] = (found.synaptic / moved if moved else None, found.gsops)
    intensities = [x for x, _ in points.values() if x is not None]
    ridge = design.peak_gsops / bandwidth
    low = min([ridge / 30, *intensities]) / 1.5
    high = max([ridge * 30, *intensities]) * 1.5
    slowest = min([y for _, y in points.values()], default=design.peak_gsops / 100)
    axes = Axes(
        (low, high),
        (slowest / 1.5, design.peak_gsops * 1.5),
        "additions for a byte of DRAM",
        "GSOP/s",
        x_log=True,
        y_log=True,
    )
    start = max(low, axes.y[0] / bandwidth)
    roof = [(start, start * bandwidth), (ridge, design.peak_gsops), (high, design.peak_gsops)]
    axes.line(roof, 1, f"{bandwidth:g} GB/s, {design.peak_gsops:g} GSOP/s")
    for name, (x, y) in points.items():
        where = "no DRAM" if x is None else f"{x:,.1f} a byte"
        axes.dot(high if x is None else x, y, 0, f"{name}: {where}, {y:,.2f} GSOP/s")
    return axes.render("roofline of the design")


def energies(simulations: Sequence[Simulation]) -> str:
    """The parts of each design's energy."""
    rows, captions = {}, {}
    for simulation in simulations:
        found, name = figures(simulation), simulation.design.name
        rows[name] = {SHOWN_ENERGY[part]: found.energy[part] for part in PARTS}
        captions[name] = (
            f"{name}: {energy_text(found.total)}, {found.frames_per_second:,.0f} frames/s"
        )
    return svg.stacked(rows, captions)


def stages(simulation: Simulation) -> str:
    """A line for each stage."""
    rows: list[list[str | Cell]] = []
    for stage in simulation.stages:
        found = stage_figures(stage, simulation)
        moved = found.reads[DRAM] + found.writes[DRAM]
        used = stage.units[stage.head].utilisation if stage.head else None
        rows.append(
            [
                short_name(stage.name),
                stage.head,
                ("" if stage.rate is None else f"{stage.rate:.3f}", stage.rate),
                (f"{found.cycles:,.0f}", found.cycles),
                (f"{found.stalls:,.0f}", found.stalls),
                ("" if used is None else f"{used:.1%}", used),
                (bytes_text(moved), moved),
                (energy_text(found.total), found.total),
            ]
        )
    headings = ["stage", "unit", "rate", "cycles", "stalls", "used", "DRAM", "energy"]
    return table(headings, rows, f"stages on {simulation.design.name}")
