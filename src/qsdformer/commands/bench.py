"""`qsd bench MODEL`."""

from __future__ import annotations

import argparse
import dataclasses
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from qsdformer.commands.arguments import image_size, positive, thread_count
from qsdformer.commands.outputs import check_outputs
from qsdformer.errors import UserError
from qsdformer.terminal import table_console

if TYPE_CHECKING:
    from qsdformer.data.preprocessing import Preprocessing
    from qsdformer.graph.integer import IntegerGraph
    from qsdformer.runtimes.bench import Subject


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `qsd bench`."""
    parser.add_argument(
        "model",
        metavar="MODEL",
        help="a checkpoint of qsd train, or a .qsd or .onnx file of qsd export",
    )
    parser.add_argument(
        "--batch-size",
        type=positive,
        nargs="+",
        default=[1, 32],
        metavar="N",
        help="images at a time (default: 1 32)",
    )
    parser.add_argument(
        "--threads",
        type=thread_count,
        nargs="+",
        default=[2],
        metavar="N",
        help="processor threads (default: 2)",
    )
    parser.add_argument(
        "--runs", type=positive, default=20, metavar="N", help="runs to take (default: 20)"
    )
    parser.add_argument(
        "--image-size",
        type=image_size,
        metavar="N",
        help="of a checkpoint: side of the images in pixels, or height,width "
        "(default: that of training)",
    )
    parser.add_argument("--no-ann", action="store_true", help="leave the ANN out")
    parser.add_argument("--csv", metavar="FILE", help="also write the timings to FILE")


def run(options: argparse.Namespace) -> int:
    """Print how fast the network is in each runtime, and what memory each path needs."""
    import numpy as np

    from qsdformer.commands.running import progress_bar
    from qsdformer.runtimes.bench import measure, table, write_csv

    check_outputs([options.csv], [options.model])
    with tempfile.TemporaryDirectory() as folder:
        subjects_on, files, pre = _prepare(options, Path(folder))
        generator = np.random.default_rng(0)
        timings = []
        for threads in options.threads:
            subjects, found = subjects_on(threads), []
            with progress_bar() as progress:
                for batch in options.batch_size:
                    task = progress.add_task(f"batch {batch}", total=options.runs)
                    shape = (batch, pre.channels, *pre.sides)
                    pixels = generator.integers(0, 256, shape).astype(np.uint8)
                    advance = partial(progress.advance, task)
                    found += measure(subjects, pixels, options.runs, threads, advance)
            table_console().print(table(found))
            timings += found
        if options.csv:
            write_csv(timings, options.csv)
        _print_memory(files, pre)
    return 0


def _prepare(
    options: argparse.Namespace, folder: Path
) -> tuple[Callable[[int], list[Subject]], dict[str, Path], Preprocessing]:
    """What to time on so many threads, files by the kind whose memory to measure, their images."""
    from qsdformer.data.base import as_image_size, size_text
    from qsdformer.graph.integer import IntegerGraph
    from qsdformer.graph.lowering import lower
    from qsdformer.models.checkpoint import load_checkpoint
    from qsdformer.nn.taps import spiking_neurons
    from qsdformer.runtimes.bench import make_subjects, onnx_subjects
    from qsdformer.runtimes.exported import load_exported
    from qsdformer.tasks.deployment import deployable
    from qsdformer.tasks.stored import SIZE, described_inputs

    path = Path(options.model)
    exported = load_exported(path)
    if exported is not None:
        own = as_image_size(options.image_size)
        if own not in (None, exported.preprocessing.image_size):
            size = size_text(exported.preprocessing.image_size)
            raise UserError(f"{path} takes images of {size} pixels: leave out --image-size")
        if not isinstance(exported, IntegerGraph):
            return partial(onnx_subjects, path), {"onnx": path}, exported.preprocessing
        _note_heads(len(exported.heads))
        graph = dataclasses.replace(exported, post=None, heads={})
        return partial(make_subjects, None, graph), _export(graph, folder), graph.preprocessing
    loaded = load_checkpoint(path)
    if not spiking_neurons(loaded.model):
        raise UserError(f"{path} is an ANN: bench compares a spiking network with it")
    keys = {} if options.image_size is None else {SIZE: str(options.image_size)}
    info = described_inputs(loaded, path, keys)
    found = deployable(loaded.model, info)
    if found.left_out is not None:
        print(f"timed is what becomes integers: all but its {found.left_out}")
    _note_heads(len(found.heads))
    graph = lower(found.part, info, multiple=found.multiple)
    subjects_on = partial(make_subjects, found.part, graph, ann=not options.no_ann)
    return subjects_on, {"checkpoint": path, **_export(graph, folder)}, graph.preprocessing


def _note_heads(count: int) -> None:
    if count:
        print("timed is what runs once for an image: all but the heads for its regions")


def _export(graph: IntegerGraph, folder: Path) -> dict[str, Path]:
    from qsdformer.graph.artifact import export
    from qsdformer.runtimes import native
    from qsdformer.runtimes.onnx_export import export_onnx

    packed, onnx = folder / "model.qsd", folder / "model.onnx"
    export(graph, packed)
    export_onnx(graph, onnx)
    files = {"native": packed} if native.available() else {}
    return {**files, "artifact": packed, "onnx": onnx}


def _print_memory(files: dict[str, Path], pre: Preprocessing) -> None:
    """Peak memory of a process that runs one image, from each kind of file."""
    from qsdformer.runtimes.bench import peak_memory

    titles = {
        "checkpoint": "PyTorch",
        "artifact": "reference",
        "native": "native engine",
        "onnx": "ONNX Runtime",
    }
    shape = (pre.channels, *pre.sides)
    peaks = {titles[kind]: peak_memory(kind, file, shape) for kind, file in files.items()}
    shown = ", ".join(f"{name} {mib:.0f} MiB" for name, mib in peaks.items())
    print(f"peak memory of a process that runs one image: {shown}")
