"""`qsd bench CKPT`."""

from __future__ import annotations

import argparse
import dataclasses
import functools
import tempfile
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import Progress

from qsdformer.commands.arguments import positive
from qsdformer.errors import UserError
from qsdformer.graph.artifact import export
from qsdformer.graph.integer import IntegerGraph
from qsdformer.graph.lowering import lower
from qsdformer.models.checkpoint import load_checkpoint
from qsdformer.nn.taps import spiking_neurons
from qsdformer.runtimes.bench import make_subjects, measure, peak_memory, table, write_csv
from qsdformer.runtimes.onnx_export import export_onnx


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `qsd bench`."""
    parser.add_argument("checkpoint", metavar="CKPT", help="a checkpoint of qsd train")
    parser.add_argument(
        "--batch-size",
        type=positive,
        nargs="+",
        default=[1, 32],
        metavar="N",
        help="images at a time (default: 1 32)",
    )
    parser.add_argument(
        "--threads", type=positive, default=2, metavar="N", help="processor threads (default: 2)"
    )
    parser.add_argument(
        "--runs", type=positive, default=20, metavar="N", help="runs to take (default: 20)"
    )
    parser.add_argument(
        "--image-size",
        type=positive,
        metavar="N",
        help="side of the images in pixels (default: that of training)",
    )
    parser.add_argument("--no-ann", action="store_true", help="leave the ANN out")
    parser.add_argument("--csv", metavar="FILE", help="also write the timings to FILE")


def run(options: argparse.Namespace) -> int:
    """Print how fast the network is in each runtime, and what memory each path needs."""
    loaded = load_checkpoint(options.checkpoint)
    info = loaded.info
    if options.image_size is not None and info is not None:
        info = dataclasses.replace(info, image_size=options.image_size)
    if not spiking_neurons(loaded.model):
        raise UserError(f"{options.checkpoint} is an ANN: bench compares a spiking network with it")
    graph = lower(loaded.model, info)
    subjects = make_subjects(loaded.model, graph, options.threads, ann=not options.no_ann)
    pre = graph.preprocessing
    generator = np.random.default_rng(0)
    timings = []
    with Progress(console=Console(stderr=True), transient=True) as progress:
        for batch in options.batch_size:
            task = progress.add_task(f"batch {batch}", total=options.runs)
            shape = (batch, pre.channels, pre.image_size, pre.image_size)
            pixels = generator.integers(0, 256, shape).astype(np.uint8)
            advance = functools.partial(progress.advance, task)
            timings += measure(subjects, pixels, options.runs, options.threads, advance)
    Console(width=110).print(table(timings))
    if options.csv:
        write_csv(timings, options.csv)
    _print_memory(options.checkpoint, graph)
    return 0


def _print_memory(checkpoint: str, graph: IntegerGraph) -> None:
    """Peak memory of a process that classifies one image, from each kind of file."""
    pre = graph.preprocessing
    shape = (pre.channels, pre.image_size, pre.image_size)
    with tempfile.TemporaryDirectory() as folder:
        artifact, onnx = Path(folder) / "model.qsd", Path(folder) / "model.onnx"
        export(graph, artifact)
        export_onnx(graph, onnx)
        peaks = {
            "PyTorch": peak_memory("checkpoint", checkpoint, shape),
            "artifact": peak_memory("artifact", artifact, shape),
            "ONNX Runtime": peak_memory("onnx", onnx, shape),
        }
    shown = ", ".join(f"{name} {mib:.0f} MiB" for name, mib in peaks.items())
    print(f"peak memory of a process that classifies one image: {shown}")
