"""Latency and throughput of a network's executors, measured side by side.

Subjects take turns, so that whatever else the machine does hits all of them alike. Beside wall
time there is the processor time of the whole process, which other processes disturb less. PyTorch
runs in a process of its own: beside the runtimes' threads its own take up to three times as long.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import json
import multiprocessing
import os
import pickle
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from qsdformer import files
from qsdformer.data.preprocessing import Preprocessing
from qsdformer.errors import UserError
from qsdformer.graph.integer import IntegerGraph
from qsdformer.graph.ops import Array
from qsdformer.runtimes import native
from qsdformer.runtimes.ann_onnx import ann_model, has_ann, quantised_ann
from qsdformer.runtimes.executors import normalised
from qsdformer.runtimes.onnx_export import onnx_model
from qsdformer.runtimes.onnx_predict import load_onnx
from qsdformer.runtimes.sessions import RUNTIMES, Arrangement, Infer

if TYPE_CHECKING:
    from rich.table import Table

# Runs a network once on pixels (B, C, H, W): seconds of wall time and of processor time.
Timer = Callable[[Array], tuple[float, float]]

WARM_UP = 2
EAGER, INTEGER, FLOAT = "spiking, fake-quantised", "spiking, integer", "spiking, fp32"
EXPORTED = "as exported"


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A way to run a network on uint8 pixels."""

    network: str
    runtime: str
    time: Timer


def timed(run: Callable[[Array], object], pixels: Array) -> tuple[float, float]:
    """Seconds of wall time and of this process's processor time that `run` takes."""
    begin, begin_cpu = time.perf_counter(), time.process_time()
    run(pixels)
    return time.perf_counter() - begin, time.process_time() - begin_cpu


@dataclass(frozen=True, kw_only=True)
class Timing:
    """Milliseconds for one batch: median and quartiles of wall time, median of processor time."""

    network: str
    runtime: str
    batch: int
    threads: int
    runs: int
    median_ms: float
    lower_ms: float
    upper_ms: float
    cpu_ms: float
    images_per_second: float


def make_subjects(
    model: nn.Module | None, graph: IntegerGraph, threads: int, *, ann: bool = True
) -> list[Subject]:
    """Everything to compare; a runtime that is not installed is left out, and an ANN not known.

    Without the `model`, of an artifact, there are neither PyTorch nor the ANN. Raises `UserError`
    for a network of frames.
    """
    _require_images("this network", graph.takes_frames)
    pre = graph.preprocessing
    names = _installed()
    found = []
    if model is not None:
        found.append(Subject(network=EAGER, runtime="PyTorch", time=_eager(model, pre, threads)))
    if native.available():
        run = native.of_graph(graph, threads)
        time_native = functools.partial(timed, run)
        found.append(Subject(network=INTEGER, runtime="native", time=time_native))
    for name in names:
        arrangement, start = RUNTIMES[name]
        kinds: dict[str, Arrangement] = {INTEGER: arrangement, FLOAT: "float"}
        for label, kind in kinds.items():
            data = onnx_model(graph, kind).SerializeToString()
            found.append(Subject(network=label, runtime=name, time=_pixels(start(data, threads))))
    if model is None or not ann or not has_ann(model):
        return found
    shape = (pre.channels, *pre.sides)
    data = ann_model(model, shape)
    contents = {"ANN, fp32": data}
    if importlib.util.find_spec("onnxruntime"):
        contents["ANN, int8"] = quantised_ann(data, shape)
    for label, content in contents.items():
        for name in names:
            infer = RUNTIMES[name][1](content, threads)
            found.append(Subject(network=label, runtime=name, time=_normalised(infer, pre)))
    return found


def onnx_subjects(path: str | os.PathLike[str], threads: int) -> list[Subject]:
    """An exported ONNX file in every runtime that is installed; `UserError` for one of frames."""
    _require_images(os.fspath(path), load_onnx(path, threads).takes_frames)
    data = Path(path).read_bytes()
    return [
        Subject(network=EXPORTED, runtime=name, time=_pixels(RUNTIMES[name][1](data, threads)))
        for name in _installed()
    ]


def _require_images(name: str, takes_frames: bool) -> None:
    if takes_frames:
        raise UserError(
            f"{name} takes a frame for each time step: bench times networks that take images"
        )


def _installed() -> list[str]:
    names = [n for n, (package, _) in RUNTIMES.items() if importlib.util.find_spec(package)]
    if not names:
        raise UserError(
            "no runtime to measure: pip install 'qsdformer[export]' for ONNX Runtime and OpenVINO"
        )
    return names


def measure(
    subjects: Sequence[Subject],
    pixels: Array,
    runs: int,
    threads: int,
    on_run: Callable[[], None] | None = None,
) -> list[Timing]:
    """Timings of all subjects on one batch of `pixels`, taking turns `runs` times."""
    wall: list[list[float]] = [[] for _ in subjects]
    cpu: list[list[float]] = [[] for _ in subjects]
    for number in range(WARM_UP + runs):
        for i, subject in enumerate(subjects):
            seconds, cpu_seconds = subject.time(pixels)
            if number >= WARM_UP:
                cpu[i].append(1e3 * cpu_seconds)
                wall[i].append(1e3 * seconds)
        if on_run is not None:
            on_run()
    return [
        _timing(subject, len(pixels), threads, wall[i], cpu[i])
        for i, subject in enumerate(subjects)
    ]


def table(timings: Sequence[Timing]) -> Table:
    """The timings as a rich table."""
    from rich.table import Table

    threads = timings[0].threads
    shown = Table(title=f"{threads} thread{'s' * (threads > 1)}, {timings[0].runs} runs each")
    shown.add_column("network")
    shown.add_column("runtime")
    for title in ("batch", "median", "quartiles", "CPU time", "images/s"):
        shown.add_column(title, justify="right")
    for t in timings:
        shown.add_row(
            t.network,
            t.runtime,
            str(t.batch),
            f"{t.median_ms:.1f} ms",
            f"{t.lower_ms:.1f} - {t.upper_ms:.1f}",
            f"{t.cpu_ms:.1f} ms",
            f"{t.images_per_second:.0f}",
        )
    return shown


def write_csv(timings: Sequence[Timing], path: str | os.PathLike[str]) -> None:
    """The timings as a CSV file, whole or not at all."""
    rows = [
        {name: f"{v:.3f}" if isinstance(v, float) else v for name, v in vars(timing).items()}
        for timing in timings
    ]
    files.write_csv(path, list(Timing.__dataclass_fields__), rows)


# Each prints the peak memory of a fresh process that runs one image.
_PEAK = """
import json, sys, numpy as np
kind, path, shape = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
pixels = np.zeros((1, *shape), np.uint8)
if kind == "checkpoint":
    import torch
    from qsdformer.models.checkpoint import load_checkpoint
    from qsdformer.tasks.deployment import deployable
    torch.set_num_threads(1)
    with torch.inference_mode():
        loaded = load_checkpoint(path)
        deployable(loaded.model, loaded.info).part(torch.from_numpy(pixels).float())
elif kind == "native":
    from qsdformer.runtimes import native
    native.load(path)(pixels)
elif kind == "artifact":
    from qsdformer.graph.artifact import load_artifact
    load_artifact(path).run_outputs(pixels)
else:
    from qsdformer.runtimes.onnx_predict import load_onnx
    load_onnx(path, 1).outputs(pixels)
try:
    with open("/proc/self/status") as status:
        kib = next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))
except OSError:
    import resource
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    kib = peak / 1024 if sys.platform == "darwin" else peak  # macOS counts bytes
print(kib / 1024)
"""


def peak_memory(kind: str, path: str | os.PathLike[str], shape: tuple[int, int, int]) -> float:
    """Peak resident MiB of a process that loads a file and runs one image (C, H, W).

    `kind` is "checkpoint", "artifact" (the reference), "native" (the native engine) or "onnx".
    """
    # Not ru_maxrss where it can be helped: it starts from the parent's peak.
    done = subprocess.run(
        [sys.executable, "-c", _PEAK, kind, os.fspath(path), json.dumps(shape)],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise UserError(f"cannot measure the memory of {path}: {reason}")
    return float(done.stdout)


def _eager(model: nn.Module, pre: Preprocessing, threads: int) -> Timer:
    """Times `model` in a process of its own, which ends with this one."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    context.Process(target=_serve, args=(theirs, threads), daemon=True).start()
    theirs.close()
    # Not an argument of the process: one that ends before it has read those is waited for forever.
    with _ended():
        ours.send_bytes(pickle.dumps((model, pre)))

    def time_once(pixels: Array) -> tuple[float, float]:
        with _ended():
            ours.send(pixels)
            found: tuple[float, float] = ours.recv()
            return found

    return time_once


@contextlib.contextmanager
def _ended() -> Iterator[None]:
    try:
        yield
    except (EOFError, BrokenPipeError, ConnectionResetError) as error:
        raise UserError(
            "PyTorch's process has ended: is there too little memory, or is this called from a "
            'program without `if __name__ == "__main__":`, which that process runs again?'
        ) from error


def _serve(pipe: Connection, threads: int) -> None:
    torch.set_num_threads(threads)
    try:
        model, pre = pickle.loads(pipe.recv_bytes())
    except (EOFError, KeyboardInterrupt):
        return

    def run(pixels: Array) -> object:
        with torch.inference_mode():
            return model(normalised(pixels, pre))

    while True:
        try:
            pipe.send(timed(run, pipe.recv()))
        except (EOFError, KeyboardInterrupt):
            return


def _pixels(infer: Infer) -> Timer:
    return functools.partial(timed, lambda pixels: infer(pixels, None))


def _normalised(infer: Infer, pre: Preprocessing) -> Timer:
    mean, std = (np.array(v, np.float32).reshape(-1, 1, 1) for v in (pre.mean, pre.std))
    scale, offset = 1 / (255 * std), mean / std
    return functools.partial(timed, lambda pixels: infer(pixels * scale - offset, None))


def _timing(
    subject: Subject, batch: int, threads: int, wall: list[float], cpu: list[float]
) -> Timing:
    middle = statistics.median(wall)
    lower, upper = np.quantile(wall, (0.25, 0.75))
    return Timing(
        network=subject.network,
        runtime=subject.runtime,
        batch=batch,
        threads=threads,
        runs=len(wall),
        median_ms=middle,
        lower_ms=float(lower),
        upper_ms=float(upper),
        cpu_ms=statistics.median(cpu),
        images_per_second=1e3 * batch / middle,
    )
