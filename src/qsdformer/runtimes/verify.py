"""Does every way of execution give the same answer? Measured side by side on the same pixels."""

from __future__ import annotations

import itertools
import math
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import Tensor, nn

import qsdformer.runtimes.native_executor
import qsdformer.runtimes.onnx_executors  # noqa: F401  registers ONNX Runtime and OpenVINO
from qsdformer.errors import UserError
from qsdformer.graph.artifact import graph_of
from qsdformer.graph.assumed import assumed_of
from qsdformer.graph.integer import IntegerGraph
from qsdformer.graph.lowering import lower
from qsdformer.graph.ops import LOGITS, Array
from qsdformer.nn.exact import exact_float32
from qsdformer.nn.taps import spiking_neurons
from qsdformer.runtimes.executors import (
    EXECUTORS,
    INTEGER,
    REFERENCE,
    Executor,
    Output,
    Results,
    Run,
    one_tracing,
    promised,
    to_pixels,
)

if TYPE_CHECKING:
    from rich.table import Table

    from qsdformer.data.base import DataInfo

SAME_VALUE = 0.01  # of the range of a map of one channel, which has no classes to compare
# Images, or places of maps, from which on the promised share of equal classes means something.
ENOUGH_COMPARED = 1000
# Of networks without logits: the least share of places of their maps with the same largest
# channel. Near a border between two of them a small difference decides.
PLACES_AGREEMENT = 0.99
LATENCY_RUNS = 9


@dataclass(frozen=True, kw_only=True)
class Row:
    """One way of execution against multi-bit evaluation.

    `agreement` is the share of images with the same class; of a network without logits that of
    the places of its maps at which the same channel is the largest, with `logit_difference` over
    all maps. `accuracy` is None without labels; `differing` spike counts out of `counts` are None
    where the executor has none. `latency_ms` is the median for one image. `broken` names a
    promise that does not hold; `promise` is the least agreement, None if there is none or too
    little was compared.
    """

    name: str
    accuracy: float | None
    agreement: float
    differing: int | None
    counts: int
    logit_difference: float
    latency_ms: float
    broken: str | None
    promise: float | None = None
    is_open: bool = False  # whether a promise of equal classes waits for more images

    @property
    def verdict(self) -> str:
        """What is broken, or that promises are kept, or cannot be told yet."""
        return self.broken or ("too few images" if self.is_open else "kept")


@dataclass(frozen=True, kw_only=True)
class Report:
    """What `verify` found on `images` images."""

    rows: tuple[Row, ...]
    images: int
    missing: tuple[str, ...]  # executors whose runtime is not installed
    assumed: str | None = None  # of the images, where neither model nor caller describes them
    membrane_bits: int = 32  # of the integer graph

    @property
    def ok(self) -> bool:
        """Whether every promise holds."""
        return all(row.broken is None for row in self.rows)

    @property
    def _promise(self) -> str | None:
        shares = sorted({row.promise for row in self.rows if row.promise is not None})
        if not shares:
            return None
        least = ", ".join(f"{share:.1%}" for share in shares)
        return f"promised with {self.membrane_bits}-bit membranes: {least} same class"

    def table(self) -> Table:
        """The rows as a rich table."""
        from rich.table import Table

        title = f"{self.images:,} images, latency for one image at a time"
        caption = "\n".join(filter(None, (self._promise, self.assumed))) or None
        table = Table(title=title, caption=caption)
        table.add_column("execution")
        for title in (
            "accuracy",
            "same class",
            "other counts",
            "logit diff.",
            "latency",
            "promise",
        ):
            table.add_column(title, justify="right")
        for row in self.rows:
            share = "-" if row.differing is None else _share(row.differing, row.counts)
            table.add_row(
                row.name,
                "-" if row.accuracy is None else f"{row.accuracy:.2%}",
                f"{row.agreement:.3%}",
                share,
                f"{row.logit_difference:.2g}",
                f"{row.latency_ms:.1f} ms",
                row.verdict,
            )
        return table


@dataclass
class _Tally:
    """Running sums for one executor."""

    executor: Executor
    run: Run
    correct: int = 0
    agreeing: int = 0
    compared: int = 0  # images, or places of maps
    differing: int | None = None
    counts: int = 0
    logit_difference: float = 0.0
    inexact: bool = False  # some count or result is not that of the integer executor

    def add(self, output: Output, reference: Output, labels: Tensor | None) -> None:
        results, counts = output
        expected = _named(reference[0])
        for name, found in _named(results).items():
            difference = np.abs(found.astype(np.float64) - expected[name])
            worst = float(difference.max())
            self.logit_difference = float(np.maximum(self.logit_difference, worst))  # NaN stays
            if found.shape[1] > 1:
                same = found.argmax(axis=1) == expected[name].argmax(axis=1)
            else:
                same = difference <= SAME_VALUE * np.ptp(expected[name])
            self.agreeing += int(same.sum())
            self.compared += same.size
        if labels is not None and not isinstance(results, dict):
            self.correct += int((results.argmax(axis=1) == labels.cpu().numpy()).sum())
        if counts is not None and reference[1] is not None:
            differing, total = count_differences(counts, reference[1])
            self.differing = (self.differing or 0) + differing
            self.counts += total

    def compare_exactly(self, output: Output, integers: Output) -> None:
        """Notes whether anything differs, which is too much for who promised the same integers."""
        same = _equal(_named(output[0]), _named(integers[0]))
        self.inexact |= not same or not _equal(output[1] or {}, integers[1] or {})


def verify(
    model: nn.Module | IntegerGraph,
    images: Tensor | Array | Iterable[Tensor | tuple[Tensor, Tensor]],
    info: DataInfo | None = None,
    *,
    executors: Sequence[str] | None = None,
    on_images: Callable[[int], None] | None = None,
    **options: Any,
) -> Report:
    """Run `model` in every way on `images` and compare with its ordinary evaluation.

    Of an integer graph there are only the ways that need no more, and its reference executor
    stands for the evaluation. `images` are (B, C, H, W), uint8 pixels or normalised floats;
    (T, B, C, H, W) with the option `frames`; or batches, with or without labels: (images, labels).
    `info` describes them; models read by `qsdformer.load` bring it. Where nothing does, floats
    from 0 to 1 are taken as pixels / 255, others as 256 steps between the least and the greatest
    of the first batch; the report says so.
    `executors` are names in `EXECUTORS`, all by default; `options` are those of `lower`;
    `on_images` is told the number of images after each batch.
    """
    batches, assumed, device = _batches(images), None, torch.device("cpu")
    if isinstance(model, IntegerGraph):
        graph = graph_of(model, options)
    else:
        device = _device(model)
        if info is None and getattr(model, "data_info", None) is None:
            ahead = list(itertools.islice(batches, 1))
            batches = itertools.chain(ahead, batches)
            info, assumed = assumed_of(model, ahead[0][0] if ahead else torch.empty(0, 1, 1, 1))
        graph = lower(model, info, **options)
    shown, missing = _prepare(model, graph, executors)
    tallies = _with_integers(shown, graph)
    place = {tally.executor.name: number for number, tally in enumerate(tallies)}
    axis, total, labelled = int(graph.takes_frames), 0, False
    first: Array | None = None
    for batch, labels in batches:
        pixels = to_pixels(batch, graph.preprocessing)
        graph.check_images(pixels)
        first = pixels.take([0], axis) if first is None else first
        with exact_float32(device):
            outputs = [tally.run(pixels, True) for tally in tallies]
        labelled = labels is not None and bool(graph.class_names)
        for tally, output in zip(tallies, outputs, strict=True):
            tally.add(output, outputs[0], labels)
            if tally.executor.exact:
                tally.compare_exactly(output, outputs[place[INTEGER]])
        total += pixels.shape[axis]
        if on_images is not None:
            on_images(pixels.shape[axis])
    if first is None:
        raise UserError("there are no images to verify on")
    neurons = [] if isinstance(model, IntegerGraph) else spiking_neurons(model).values()
    exact = all(_is_power_of_two(n.levels) and _is_power_of_two(n.time_steps) for n in neurons)
    rows = [_row(tally, total, labelled, graph, first, exact) for tally in shown]
    return Report(
        rows=tuple(rows),
        images=total,
        missing=tuple(missing),
        assumed=assumed,
        membrane_bits=graph.membrane_bits,
    )


def count_differences(counts: dict[str, Array], reference: dict[str, Array]) -> tuple[int, int]:
    """How many spike counts differ, and how many there are; both name the same neurons."""
    if set(counts) != set(reference):
        raise ValueError("the two executions have different neurons")
    differing = sum(
        int(np.count_nonzero(counts[name].reshape(r.shape) != r)) for name, r in reference.items()
    )
    return differing, sum(r.size for r in reference.values())


def _equal(found: dict[str, Array], expected: dict[str, Array]) -> bool:
    return found.keys() == expected.keys() and all(
        np.array_equal(found[name], value) for name, value in expected.items()
    )


def _named(results: Results) -> dict[str, Array]:
    """Results by name, also those of a classifier, which are its logits alone."""
    return results if isinstance(results, dict) else {LOGITS: results}


def _prepare(
    model: nn.Module | IntegerGraph, graph: IntegerGraph, names: Sequence[str] | None
) -> tuple[list[_Tally], list[str]]:
    alone = isinstance(model, IntegerGraph)
    every = [name for name, executor in EXECUTORS.items() if executor.of_graph or not alone]
    reference = INTEGER if alone else REFERENCE
    chosen = every if names is None else list(dict.fromkeys([reference, *names]))
    unknown = [name for name in chosen if name not in EXECUTORS]
    if unknown:
        raise UserError(f"unknown executor {unknown[0]!r}: choose from {', '.join(EXECUTORS)}")
    unable = [name for name in chosen if name not in every]
    if unable:
        raise UserError(f"executor {unable[0]!r} needs a checkpoint; choose {', '.join(every)}")
    tallies, missing = [], []
    whole = cast(nn.Module, model)  # executors of a graph do not look at it
    with one_tracing(whole):
        for name in chosen:
            run = EXECUTORS[name].factory(whole, graph)
            if run is None and names is not None:
                raise UserError(f"executor {name!r} is not installed: leave it out")
            if run is None:
                missing.append(name)
            else:
                tallies.append(_Tally(EXECUTORS[name], run))
    return tallies, missing


def _with_integers(tallies: list[_Tally], graph: IntegerGraph) -> list[_Tally]:
    """The same, and the integer executor where one of them is measured against it without it."""
    names = [tally.executor.name for tally in tallies]
    if INTEGER in names or not any(tally.executor.exact for tally in tallies):
        return tallies
    executor = EXECUTORS[INTEGER]
    run = executor.factory(cast(nn.Module, None), graph)  # which looks at the graph alone
    return [*tallies, _Tally(executor, cast(Run, run))]


def _device(model: nn.Module) -> torch.device:
    """Where the model is; a `UserError` for one that does not compute in float32."""
    first = next(model.parameters())
    if first.dtype != torch.float32:
        raise UserError(f"the model computes in {first.dtype}: call model.float() first")
    return first.device


def _batches(
    images: Tensor | Array | Iterable[Tensor | tuple[Tensor, Tensor]],
) -> Iterator[tuple[Tensor, Tensor | None]]:
    if isinstance(images, (Tensor, np.ndarray)):
        images = [torch.as_tensor(images)]
    for batch in images:
        if isinstance(batch, (Tensor, np.ndarray)):
            yield torch.as_tensor(batch), None
        else:
            yield batch


def _row(
    tally: _Tally, images: int, labelled: bool, graph: IntegerGraph, first: Array, exact: bool
) -> Row:
    agreement = tally.agreeing / tally.compared if tally.compared else 1.0
    least, broken = promised(tally.executor, graph.membrane_bits), None
    is_open = least is not None and tally.compared < ENOUGH_COMPARED
    if is_open:
        least = None
    if least is not None and not graph.class_names:
        least = min(least, PLACES_AGREEMENT)
    if not math.isfinite(tally.logit_difference):
        broken = "broken: results are not finite"
    elif tally.executor.equal_counts and exact and tally.differing != 0:
        broken = "broken: spike counts differ"
    elif tally.inexact:
        broken = "broken: not the integers of the reference"
    elif least is not None and agreement < least:
        broken = f"broken: below {least:.1%} same class"
    return Row(
        name=tally.executor.name,
        accuracy=tally.correct / images if labelled else None,
        agreement=agreement,
        differing=tally.differing,
        counts=tally.counts,
        logit_difference=tally.logit_difference,
        latency_ms=_latency(tally.run, first),
        broken=broken,
        promise=least,
        # Equal integers say more than equal classes.
        is_open=is_open and not (tally.executor.exact or (tally.executor.equal_counts and exact)),
    )


def _latency(run: Run, image: Array) -> float:
    """Median time in ms for one image, after a first run that does not count."""
    times = []
    with torch.inference_mode():
        for _ in range(LATENCY_RUNS + 1):
            begin = time.perf_counter()
            run(image, False)
            times.append(time.perf_counter() - begin)
    return 1e3 * statistics.median(times[1:])


def _share(part: int, whole: int) -> str:
    return "none" if part == 0 else f"{100 * part / whole:.2g} %"


def _is_power_of_two(value: int) -> bool:
    return value & (value - 1) == 0
