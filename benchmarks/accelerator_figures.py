"""Draws the break-evens of the sparse design, trained networks as points, and a sweep's Pareto.

python benchmarks/accelerator_figures.py runs/A zoo/B.qsd --data-root data/cifar-10 --images 4
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from accelerator_tables import Trained, load_trained
from matplotlib.figure import Figure

from qsdformer.accelerator.breakeven import (
    Costs,
    Layer,
    compare,
    crossing,
    random_spikes,
    storage_break_even,
)
from qsdformer.accelerator.design import Design, changed, load_design
from qsdformer.accelerator.encoding import Encoding, encode, stored_bits
from qsdformer.accelerator.results import stage_figures
from qsdformer.accelerator.simulate import Simulation, simulate
from qsdformer.accelerator.sweep import Point, parse_sweep, sweep, variant
from qsdformer.files import atomic_path
from qsdformer.graph.ops import Neuron

RATES = [*np.geomspace(0.004, 0.1, 12).round(4).tolist(), 0.13, 0.17, 0.22, 0.28, 0.36, 0.47]
RATES += [0.6, 0.8, 1.0]
LAYER = Layer(inputs=256, outputs=256, side=12)
SPARSE: tuple[Encoding, ...] = ("bitmap", "address", "address+count")
SWEEP = (
    "lanes=16|32|64|128,encoding=bitmap|address|address+count,share=false|true,"
    "buffers=0.125|0.25|0.5|1"
)
MARKERS = "osv^D<>Pp*hX"
BESIDE: dict[str, Any] = {"loc": "center left", "bbox_to_anchor": (1.02, 0.5)}
PASSES, COUNTS, SHARED = "D passes", "counts", "counts, shared weights"


def variants() -> dict[str, Design]:
    """The ways of a sparse design that are compared."""
    sparse = load_design("sdt-sparse")
    counts = variant(sparse, {"encoding": "address+count"})
    return {PASSES: sparse, COUNTS: counts, SHARED: variant(counts, {"share": True})}


def storage(networks: Sequence[Trained], path: Path) -> None:
    """Bits of stored spikes for each place, against the firing rate."""
    figure, panels = _panels(2)
    for axes, levels in zip(panels, (1, 4), strict=True):
        for index, encoding in enumerate(SPARSE):
            bits = [
                stored_bits(spikes, encoding) / (spikes.list_count * spikes.length)
                for spikes in (random_spikes(rate, levels, LAYER) for rate in RATES)
            ]
            axes.plot(RATES, bits, label=encoding, color=f"C{index}")
            if encoding != "bitmap":
                rate = storage_break_even(LAYER.inputs, levels, encoding)
                axes.axvline(rate, color=f"C{index}", lw=0.7, ls=":")
        for number, trained in enumerate(networks):
            points = [p for p in _stored(trained) if p[0] == levels]
            for index in (1, 2):
                x, y = [p[1] for p in points], [p[1 + index] for p in points]
                marker = MARKERS[number % len(MARKERS)]
                axes.scatter(x, y, s=9, alpha=0.5, color=f"C{index}", marker=marker)
        axes.set_title(f"D = {levels}, lists of 256 addresses")
        axes.set_xlabel("firing rate")
        axes.set_xlim(0, 0.6)
        axes.set_ylim(0, 6 if levels == 1 else 18)
    panels[0].set_ylabel("bits for a place")
    panels[0].legend()
    _save(figure, path)


def _stored(trained: Trained) -> list[tuple[int, float, float, float]]:
    """Of every neuron layer: D, its rate, and bits a place as addresses and with counts."""
    _, counts = trained.graph.run_with_counts(trained.images[:1])
    found = []
    for op in trained.graph.ops:
        if isinstance(op, Neuron) and op.name in counts:
            x = counts[op.name].swapaxes(0, 1).astype(np.int32)
            spikes = encode(x, op.levels, "pixel")
            sizes = (stored_bits(spikes, encoding) / x.size for encoding in SPARSE[1:])
            found.append((op.levels, spikes.rate, *sizes))
    return found


def against_dense(simulations: dict[str, dict[str, Simulation]], path: Path) -> None:
    """Cycles and energy of the sparse design over those of the dense array."""
    figure, panels = _panels(2, beside=2.8)
    dense = load_design("dense-int")
    measures: dict[str, Callable[[Costs], float]] = {
        "cycles": lambda c: c.cycles,
        "energy": lambda c: c.energy,
    }
    for axes, (title, measure) in zip(panels, measures.items(), strict=True):
        for index, levels in enumerate((1, 2, 4, 8)):
            for (name, design), style in zip(variants().items(), ("-", "--", ":"), strict=True):
                if (levels, name) in ((1, COUNTS), (2, COUNTS), (8, SHARED)):
                    continue
                ratios = compare(RATES, levels, LAYER, design, dense, measure)
                label = f"D = {levels}, {name}"
                shown = label if title == "cycles" else None
                axes.plot(RATES, ratios, style, color=f"C{index}", label=shown)
                print(f"{title}, {label}: break-even at a rate of {_text(crossing(RATES, ratios))}")
        for number, (name, both) in enumerate(simulations.items()):
            points = _stage_ratios(both[COUNTS], both["dense"], title)
            marker = MARKERS[number % len(MARKERS)]
            label = name if title == "energy" else None
            axes.scatter(
                *zip(*points, strict=True), s=12, alpha=0.6, color="0.3", marker=marker, label=label
            )
            print(f"{title}, {name}: {np.median([y for _, y in points]):.2f} in the median stage")
        axes.axhline(1, color="k", lw=0.8)
        axes.set(
            xscale="log", yscale="log", xlabel="firing rate", ylabel=f"sparse / dense, {title}"
        )
        axes.set_xlim(0.004, 1)
        axes.grid(alpha=0.3)
    panels[0].legend(fontsize=6, loc="lower right")
    panels[1].legend(fontsize=7, title="stages of", **BESIDE)
    _save(figure, path)


def print_break_evens() -> None:
    """The rates at which sparse and dense take as long or as much, by D and bits of weights."""
    dense = load_design("dense-int")
    measures: dict[str, Callable[[Costs], float]] = {
        "cycles": lambda c: c.cycles,
        "energy": lambda c: c.energy,
        "arithmetic": lambda c: c.compute,
    }
    print("| D | weights | variant | cycles | energy | arithmetic alone |\n" + "|---" * 6 + "|")
    for levels in (1, 2, 4, 8):
        for bits in (2, 4, 8):
            for name, design in variants().items():
                layer = Layer(inputs=256, outputs=256, side=12, bits=bits)
                ratios = [
                    compare(RATES, levels, layer, design, dense, measure)
                    for measure in measures.values()
                ]
                rates = ["any" if max(r) <= 1 else _text(crossing(RATES, r)) for r in ratios]
                print(f"| {levels} | {bits} bits | {name} | {' | '.join(rates)} |")


def _stage_ratios(first: Simulation, second: Simulation, what: str) -> list[tuple[float, float]]:
    """Rate, and how many times as much the first takes, of each stage that spikes add in."""
    found = []
    for a, b in zip(first.stages, second.stages, strict=True):
        if a.synaptic and a.rate and a.head in ("linear", "convolution"):
            x, y = stage_figures(a, first), stage_figures(b, second)
            energies = [f.total - f.energy["leakage"] for f in (x, y)]
            ratio = x.cycles / y.cycles if what == "cycles" else energies[0] / energies[1]
            found.append((a.rate, ratio))
    return found


def counts_or_passes(simulations: dict[str, dict[str, Simulation]], path: Path) -> None:
    """D passes of addresses over one pass with counts, in bits, cycles and energy."""
    figure, panels = _panels(3)
    passes = load_design("sdt-sparse")
    counted = changed(passes, "encoding", "address+count")
    measures: dict[str, Callable[[Costs], float]] = {
        "bits stored": lambda c: c.stored,
        "cycles": lambda c: c.cycles,
        "energy": lambda c: c.energy,
    }
    for axes, (title, measure) in zip(panels, measures.items(), strict=True):
        for index, levels in enumerate((2, 4, 8)):
            ratios = compare(RATES, levels, LAYER, passes, counted, measure)
            axes.plot(RATES, ratios, color=f"C{index}", label=f"D = {levels}")
            rate = _text(crossing(RATES, ratios))
            print(f"{title}, D = {levels}: counts are better beyond a rate of {rate}")
        if title != "bits stored":
            axes.set_yscale("log")  # a head that reads sums over the grid has many levels
            for number, both in enumerate(simulations.values()):
                points = _stage_ratios(both[PASSES], both[COUNTS], title)
                marker = MARKERS[number % len(MARKERS)]
                axes.scatter(
                    *zip(*points, strict=True), s=12, alpha=0.6, color="0.3", marker=marker
                )
        axes.axhline(1, color="k", lw=0.8)
        axes.set(xlabel="firing rate", ylabel=f"D passes / counts, {title}", xlim=(0, 1))
        axes.grid(alpha=0.3)
    panels[0].legend()
    _save(figure, path)


def pareto(points: Sequence[Point], path: Path) -> None:
    """Frames a second against energy, on-chip memory as the size of a dot."""
    figure, (axes,) = _panels(1)
    for index, (encoding, share) in enumerate(itertools.product(SPARSE, (False, True))):
        wanted = {"encoding": encoding, "share": share}
        mine = [p for p in points if p.found and wanted.items() <= p.settings.items()]
        label = encoding + (", shared weights" if share else "")
        for best in (False, True):
            shown = [p for p in mine if p.best == best]
            if not shown:
                continue
            axes.scatter(
                [p.found.frames_per_second for p in shown if p.found],
                [1e3 * p.found.millijoules for p in shown if p.found],
                s=[p.design.kib / 12 for p in shown],
                color=f"C{index}",
                alpha=0.9 if best else 0.25,
                edgecolors="k" if best else "none",
                label=f"{label}{', best' if best else ''}",
            )
    axes.set(xlabel="frames/s", ylabel="µJ an image", xscale="log", yscale="log")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=7, title="size of a dot: memory", **BESIDE)
    _save(figure, path)


def _panels(count: int, beside: float = 0) -> tuple[Figure, Any]:
    """So many panels, with so many inches to their right for a legend."""
    size = (4.6 * max(count, 1.4) + beside, 3.8)
    figure = Figure(figsize=size, layout="constrained")
    return figure, np.atleast_1d(figure.subplots(1, count))


def _save(figure: Figure, path: Path) -> None:
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)
    print(path)


def _text(rate: float | None) -> str:
    return "none" if rate is None else f"{rate:.3f}"


def main() -> None:
    """Parse arguments and draw."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "runs",
        nargs="+",
        metavar="[NAME=]PATH",
        help="runs or .qsd files; the first is swept",
    )
    parser.add_argument("--data-root", help="folder of the images of .qsd files")
    parser.add_argument("--images", type=int, default=4)
    parser.add_argument("--output", type=Path, default=Path("docs/figures"))
    options = parser.parse_args()
    networks = [load_trained(path, options.images, 0, options.data_root) for path in options.runs]
    sparse = load_design("sdt-sparse")
    designs = {**variants(), "dense": load_design("dense-int")}
    simulations = {
        t.name: {name: simulate(t.graph, d, t.images) for name, d in designs.items()}
        for t in networks
    }
    storage(networks, options.output / "accelerator-storage.png")
    print_break_evens()
    against_dense(simulations, options.output / "accelerator-dense.png")
    counts_or_passes(simulations, options.output / "accelerator-counts.png")
    first = networks[0]
    points = sweep(first.graph, sparse, first.images[:1], parse_sweep(SWEEP, sparse))
    pareto(points, options.output / "accelerator-pareto.png")
    for point in points:
        if point.best and point.found:
            found = point.found
            print(
                f"{first.name} {point.settings}: {found.frames_per_second:,.0f} frames/s, "
                f"{1e3 * found.millijoules:.2f} µJ, {point.design.kib:g} KiB"
            )


if __name__ == "__main__":
    main()
