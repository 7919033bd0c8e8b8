"""Times the native engine beside ONNX Runtime and OpenVINO, all taking turns in one run.

    python benchmarks/native_speed.py [MODEL.qsd ...] [--batch 1] [--threads 1] [--runs 21]
    python benchmarks/native_speed.py --activity 90 60 40 20 10 5 [--figure FIGURE.png]

Without a file: metaspikeformer_15m at 224 pixels, untrained, fully spike-driven and as published.
Medians of one batch, and how many times sooner the native engine is done. With `--activity` only
that share of the groups of 4 neighbouring channels fires, the others never do: biases see to it,
in the one network that all runtimes are given.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from qsdformer import create_model
from qsdformer.data.base import DataInfo
from qsdformer.graph.artifact import load_artifact
from qsdformer.graph.integer import IntegerGraph
from qsdformer.graph.lowering import lower
from qsdformer.graph.ops import IELIF, Op, Rescale
from qsdformer.runtimes import native
from qsdformer.runtimes.bench import INTEGER, Timing, make_subjects, measure


def untrained(
    fully_spiking: bool,
    architecture: str = "metaspikeformer_15m",
    size: int = 224,
    channels: int = 3,
    classes: int = 1000,
) -> IntegerGraph:
    """A network with norms that have seen noise."""
    torch.manual_seed(0)
    model = create_model(
        architecture, fully_spiking=fully_spiking, in_channels=channels, num_classes=classes
    )
    info = DataInfo(
        image_size=size,
        channels=channels,
        class_names=tuple(f"class {i}" for i in range(classes)),
        mean=(0.5,) * channels,
        std=(0.25,) * channels,
    )
    with torch.no_grad():
        for _ in range(2):
            model.train()(torch.randn(2 if size > 100 else 16, channels, size, size))
    return lower(model.eval(), info)


def masked(graph: IntegerGraph, percent: float) -> IntegerGraph:
    """The graph in which that share of the groups of 4 channels fires, always the same ones.

    The first channel of these is raised by a spike and a half; all of the others lie far below
    their thresholds. Values of as many channels have the same groups, so that shortcuts fit.
    """
    spike = next(2 * op.thresholds[0] for op in graph.ops if isinstance(op, IELIF))
    ops: list[Op] = []
    for op in graph.ops:
        if isinstance(op, Rescale) and op is not graph.ops[-1] and op.bias.size % 4 == 0:
            groups = op.bias.size // 4
            order = np.random.default_rng(groups).permutation(groups)
            fires = order < round(groups * percent / 100)
            bias = op.bias.reshape(groups, 4).copy()
            bias[fires, 0] += 3 * spike // 2
            bias[~fires] = -64 * spike
            ops.append(dataclasses.replace(op, bias=bias.reshape(-1)))
        else:
            ops.append(op)
    return dataclasses.replace(graph, ops=tuple(ops))


def times(name: str, graph: IntegerGraph, batch: int, threads: int, runs: int) -> dict[str, Timing]:
    """Timings by runtime, printed besides."""
    pre = graph.preprocessing
    shape = (batch, pre.channels, pre.image_size, pre.image_size)
    pixels = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    subjects = [s for s in make_subjects(None, graph, threads) if s.network == INTEGER]
    timings = {t.runtime: t for t in measure(subjects, pixels, runs, threads)}
    base = timings["native"].median_ms
    print(f"{name}, batch {batch}, {threads} thread(s)")
    for t in timings.values():
        print(f"  {t.runtime:14} {t.median_ms:8.3f} ms  {t.median_ms / base:5.2f} x", flush=True)
    return timings


def active_groups(graph: IntegerGraph) -> float:
    """Percent of the groups of 4 channels that fire, over all neurons."""
    pre = graph.preprocessing
    shape = (1, pre.channels, pre.image_size, pre.image_size)
    model = native.of_graph(graph)
    model.reset_statistics()
    model(np.random.default_rng(0).integers(0, 256, shape, np.uint8))
    found = model.statistics().values()
    return 100 * sum(a.active_groups for a in found) / sum(a.groups for a in found)


def sweep(
    graph: IntegerGraph, name: str, percents: Sequence[float], options: argparse.Namespace
) -> list[dict[str, float]]:
    """Milliseconds of every runtime at every activity."""
    rows = []
    for percent in percents:
        silenced = masked(graph, percent)
        found = active_groups(silenced)
        label = f"{name}, {found:.0f} % of groups active"
        timings = times(label, silenced, options.batch, options.threads, options.runs)
        rows.append({"active": found, **{k: t.median_ms for k, t in timings.items()}})
    return rows


def draw(rows: Sequence[dict[str, float]], path: Path) -> None:
    """Time against activity; the runtimes to which activity does not matter are level lines."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(6, 3.6), constrained_layout=True)
    for runtime in rows[0]:
        if runtime == "active":
            continue
        values = [row[runtime] for row in rows]
        if runtime == "native":
            axes.plot([row["active"] for row in rows], values, "o-", label="native engine")
        else:
            line = axes.axhline(float(np.median(values)), linestyle="--", label=runtime)
            line.set_color("tab:orange" if runtime == "OpenVINO" else "tab:green")
    axes.set(xlabel="groups of 4 channels that fire / %", ylabel="ms an image", ylim=(0, None))
    axes.set_xlim(0, 100)
    axes.legend()
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="*", metavar="MODEL.qsd")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--runs", type=int, default=21)
    parser.add_argument("--activity", type=float, nargs="+", metavar="PERCENT", default=[])
    parser.add_argument("--csv", type=Path, help="where to add the times by activity, or read them")
    parser.add_argument("--figure", type=Path, help="draws what is in --csv, or was measured")
    options = parser.parse_args()
    graphs = {path: load_artifact(path) for path in options.models}
    if not graphs and not (options.figure and options.csv and options.csv.exists()):
        graphs = {"15M fully spiking": untrained(True)}
        if not options.activity:
            graphs["15M published"] = untrained(False)
    rows = []
    for name, graph in graphs.items():
        if options.activity:
            rows += sweep(graph, name, options.activity, options)
        else:
            times(name, graph, options.batch, options.threads, options.runs)
    if options.csv and rows:
        new = not options.csv.exists()
        with options.csv.open("a", newline="") as file:
            writer = csv.DictWriter(file, fieldnames=list(rows[0]))
            if new:
                writer.writeheader()
            writer.writerows(rows)
    if options.figure:
        if options.csv and options.csv.exists():
            with options.csv.open(newline="") as file:
                rows = [{k: float(v) for k, v in row.items()} for row in csv.DictReader(file)]
        draw(sorted(rows, key=lambda row: row["active"]), options.figure)


if __name__ == "__main__":
    main()
