"""Times the native engine beside ONNX Runtime and OpenVINO, all taking turns in one run.

    python benchmarks/native_speed.py [MODEL.qsd ...] [--batch 1] [--threads 1] [--runs 21]
    python benchmarks/native_speed.py --activity 90 60 40 20 10 5 [--figure FIGURE.png]
    python benchmarks/native_speed.py TRAINED.qsd ... --trained CSV [--data cifar10 --root DIR]

Without a file: metaspikeformer_15m at 224 pixels, untrained, fully spike-driven and as published;
with `--tiny` metaspikeformer_tiny at 28. Medians of one batch, and how many times sooner the native
engine is done; "native, dense" is the engine when it skips nothing. With `--activity` only that
share of the groups of 4 neighbouring channels fires, the others never do: biases see to it, in the
one network that all runtimes are given. `--trained` is for trained networks, on Fashion-MNIST
unless `--data` says otherwise: it runs evaluation images and adds accuracy, activity and bytes; the
figure shows them.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import functools
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from qsdformer import create_model
from qsdformer.commands.exported_data import data_for, pixel_batches
from qsdformer.data.base import DataInfo
from qsdformer.graph.artifact import load_artifact
from qsdformer.graph.integer import IntegerGraph
from qsdformer.graph.lowering import lower
from qsdformer.graph.ops import IELIF, Array, Op, Rescale
from qsdformer.runtimes import native
from qsdformer.runtimes.bench import INTEGER, Subject, Timing, make_subjects, measure, timed

DENSE = "native, dense"


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


def dense(graph: IntegerGraph, threads: int) -> Subject:
    """The engine when it multiplies all groups."""
    os.environ["QSD_NATIVE_EVENTS"] = "never"
    run = functools.partial(timed, native.of_graph(graph, threads))
    del os.environ["QSD_NATIVE_EVENTS"]
    return Subject(network=INTEGER, runtime=DENSE, time=run)


def noise(graph: IntegerGraph, batch: int) -> Array:
    pre = graph.preprocessing
    shape = (batch, pre.channels, *pre.sides)
    return np.random.default_rng(0).integers(0, 256, shape, np.uint8)


def times(
    name: str, graph: IntegerGraph, pixels: Array, threads: int, runs: int
) -> dict[str, Timing]:
    """Timings by runtime, printed besides."""
    subjects = [s for s in make_subjects(None, graph, threads) if s.network == INTEGER]
    # Before each of the engine's turns comes another runtime, which leaves it cold caches.
    subjects.insert(2, dense(graph, threads))
    timings = {t.runtime: t for t in measure(subjects, pixels, runs, threads)}
    base, batch = timings["native"].median_ms, len(pixels)
    print(f"{name}, batch {batch}, {threads} thread(s)")
    for t in timings.values():
        print(f"  {t.runtime:14} {t.median_ms:8.3f} ms  {t.median_ms / base:5.2f} x", flush=True)
    return timings


def activity(graph: IntegerGraph, pixels: Array) -> tuple[float, float]:
    """Percent of the groups of 4 channels that fire, and of all elements, over all neurons."""
    model = native.of_graph(graph)
    model.reset_statistics()
    model(pixels)
    found = model.statistics().values()
    groups = sum(a.active_groups for a in found) / sum(a.groups for a in found)
    return 100 * groups, 100 * sum(a.active for a in found) / sum(a.elements for a in found)


def sweep(
    graph: IntegerGraph, name: str, percents: Sequence[float], options: argparse.Namespace
) -> list[dict[str, float]]:
    """Milliseconds of every runtime at every activity."""
    rows = []
    for percent in percents:
        silenced = masked(graph, percent)
        pixels = noise(graph, options.batch)
        found, _ = activity(silenced, pixels)
        label = f"{name}, {found:.0f} % of groups active"
        timings = times(label, silenced, pixels, options.threads, options.runs)
        rows.append({"active": found, **{k: t.median_ms for k, t in timings.items()}})
    return rows


def trained(path: str, graph: IntegerGraph, options: argparse.Namespace) -> dict[str, str | float]:
    """Accuracy, activity, bytes and milliseconds of a trained network."""
    keys = {"data.name": options.data, **({"data.root": options.root} if options.root else {})}
    data = data_for(path, graph, keys, batch_size=500)
    batches = [(x.numpy(), y.numpy()) for x, y in pixel_batches(data, None)]
    images, labels = (np.concatenate(parts) for parts in zip(*batches, strict=True))
    model = native.of_graph(graph)
    right = np.concatenate([model(x).argmax(1) for x, _ in batches])
    groups, elements = activity(graph, images[:500])
    pixels = images[: options.batch]
    name = Path(path).stem
    label = f"{name}, {groups:.0f} % of groups active"
    timings = times(label, graph, pixels, options.threads, options.runs)
    return {
        "name": name,
        "accuracy": 100 * float((right == labels).mean()),
        "active": groups,
        "firing": elements,
        "bytes": Path(path).stat().st_size,
        "batch": options.batch,
        **{k: t.median_ms for k, t in timings.items()},
    }


def draw(rows: Sequence[dict[str, float]], points: Sequence[dict[str, str]], path: Path) -> None:
    """Time against activity; the runtimes to which activity does not matter are level lines.
    Beside it, the time in that of dense products, also of trained networks.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, (axes, other) = plt.subplots(1, 2, figsize=(9, 3.6), constrained_layout=True)
    active = [row["active"] for row in rows]
    for runtime in rows[0]:
        if runtime in ("active", DENSE):
            continue
        values = [row[runtime] for row in rows]
        if runtime == "native":
            axes.plot(active, values, "o-", label="native engine")
        else:
            line = axes.axhline(float(np.median(values)), linestyle="--", label=runtime)
            line.set_color("tab:orange" if runtime == "OpenVINO" else "tab:green")
    axes.set(xlabel="groups of 4 channels that fire / %", ylabel="ms an image", ylim=(0, None))
    axes.set_xlim(0, 100)
    axes.legend(loc="center right", bbox_to_anchor=(1, 0.72))
    shares = [row["native"] / row[DENSE] for row in rows]
    other.plot(active, shares, "o-", label="15M, masks, untrained")
    for number, point in enumerate(points):
        share = float(point["native"]) / float(point[DENSE])
        marker = "sD^v<>Pp"[number % 8]
        other.plot(float(point["active"]), share, marker, label=point["name"])
    other.axhline(1, linestyle="--", color="grey")
    other.set(xlabel="groups of 4 channels that fire / %", ylabel="time, that of dense products 1")
    other.set(xlim=(0, 100), ylim=(0, 1.2))
    other.legend(fontsize=7)
    figure.savefig(path, dpi=120)


def add(path: Path, rows: Sequence[Mapping[str, str | float]]) -> None:
    """Appends to a CSV file, or begins one; one of other columns is left as it is."""
    if not rows:
        return
    columns = list(rows[0])
    new = not path.exists()
    if not new:
        with path.open(newline="") as file:
            known = csv.DictReader(file).fieldnames
        if known != columns:
            raise SystemExit(f"{path}: its columns are not {', '.join(columns)}; name another file")
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=columns)
        if new:
            writer.writeheader()
        writer.writerows(rows)


def read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="*", metavar="MODEL.qsd")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--runs", type=int, default=21)
    parser.add_argument("--activity", type=float, nargs="+", metavar="PERCENT", default=[])
    parser.add_argument("--tiny", action="store_true", help="metaspikeformer_tiny at 28 pixels")
    parser.add_argument("--csv", type=Path, help="where to add the times by activity, or read them")
    parser.add_argument("--trained", type=Path, metavar="CSV", help="the same of trained networks")
    parser.add_argument("--data", default="fashion_mnist", help="what networks were trained on")
    parser.add_argument("--root", help="the folder of that data")
    parser.add_argument("--figure", type=Path, help="draws what is in --csv, or was measured")
    options = parser.parse_args()
    graphs = {path: load_artifact(path) for path in options.models}
    if not graphs and not (options.figure and options.csv and options.csv.exists()):
        fields = ("metaspikeformer_tiny", 28, 1, 10) if options.tiny else ()
        size = "tiny" if options.tiny else "15M"
        graphs = {f"{size} fully spiking": untrained(True, *fields)}
        if not options.activity:
            graphs[f"{size} published"] = untrained(False, *fields)
    rows, points = [], []
    for name, graph in graphs.items():
        if options.activity:
            rows += sweep(graph, name, options.activity, options)
        elif options.trained:
            points.append(trained(name, graph, options))
        else:
            times(name, graph, noise(graph, options.batch), options.threads, options.runs)
    if options.csv:
        add(options.csv, rows)
    if options.trained:
        add(options.trained, points)
    if options.figure:
        if options.csv and options.csv.exists():
            rows = [{k: float(v) for k, v in row.items()} for row in read(options.csv)]
        known = read(options.trained) if options.trained and options.trained.exists() else []
        draw(sorted(rows, key=lambda row: row["active"]), known, options.figure)


if __name__ == "__main__":
    main()
