"""Integer graphs that the fastest runtime here executes: the native engine where it is there.

Without it there are OpenVINO and ONNX Runtime, and otherwise the reference.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
import os
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from qsdformer.errors import UserError
from qsdformer.graph.integer import IntegerGraph
from qsdformer.graph.ops import LOGITS, Array
from qsdformer.runtimes import native
from qsdformer.runtimes.sessions import RUNTIMES

MOST_THREADS = 16  # more share little work
SUBSTITUTES = ("OpenVINO", "ONNX Runtime")  # for the native engine, the faster one first


class Engine(Protocol):
    """What executes a graph; the methods are those of `IntegerGraph`."""

    def run_with_counts(
        self, images: Array, collect: bool = True
    ) -> tuple[Array, dict[str, Array]]: ...

    def run_results(
        self, images: Array, collect: bool = True
    ) -> tuple[dict[str, Array], dict[str, Array]]: ...


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class RunnableGraph(IntegerGraph):
    """An integer graph with `run`, and all that is made of it, in the fastest runtime here.

    That works on `threads`, by default on all cores up to 16, or on fewer where memory does not
    suffice for so many. The native engine gives the integers of the `reference`; so do others but
    for a count now and then, and only where not `exact`.
    """

    threads: int | None = None
    exact: bool = True

    @property
    def reference(self) -> IntegerGraph:
        """The graph alone."""
        return IntegerGraph(**_fields(self))

    def __eq__(self, other: object) -> bool:
        """Whether the networks are the same, whatever runs them."""
        return isinstance(other, IntegerGraph) and self.reference == other.reference

    __hash__ = None  # type: ignore[assignment]

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_started"}

    @property
    def engine(self) -> Engine:
        """What runs the graph, a `NativeModel` where there can be one; made at first use."""
        return self._started[0]

    @property
    def runtime(self) -> str:
        """What runs the graph and why, on one line."""
        return self._started[1]

    @functools.cached_property
    def _started(self) -> tuple[Engine, str]:
        return _start(self.reference, self.threads, self.exact)

    def run_with_counts(
        self, images: Array, collect: bool = True
    ) -> tuple[Array, dict[str, Array]]:
        """As `IntegerGraph.run_with_counts`."""
        return self.engine.run_with_counts(images, collect)

    def run_results(
        self, images: Array, collect: bool = True
    ) -> tuple[dict[str, Array], dict[str, Array]]:
        """As `IntegerGraph.run_results`."""
        return self.engine.run_results(images, collect)


def runnable(
    graph: IntegerGraph, threads: int | None = None, *, exact: bool = True
) -> RunnableGraph:
    """`graph` with the fastest runtime here; see `RunnableGraph`."""
    return RunnableGraph(**_fields(graph), threads=threads, exact=exact)


def _fields(graph: IntegerGraph) -> dict[str, Any]:
    return {field.name: getattr(graph, field.name) for field in dataclasses.fields(IntegerGraph)}


class _Exported:
    """A graph in OpenVINO or ONNX Runtime, whose real results are rounded to integers.

    Counts and a frame for each time step of an image network are left to the reference.
    """

    def __init__(self, graph: IntegerGraph, runtime: str, threads: int) -> None:
        from qsdformer.runtimes.onnx_export import onnx_model

        arrangement, start = RUNTIMES[runtime]
        self._graph = graph
        self._infer = start(onnx_model(graph, arrangement).SerializeToString(), threads)

    def run_with_counts(
        self, images: Array, collect: bool = True
    ) -> tuple[Array, dict[str, Array]]:
        if not self._graph.class_names:
            return self._graph.run_with_counts(images, collect)  # which says that there are none
        values, counts = self.run_results(images, collect)
        return values[LOGITS][:, :, 0, 0], counts

    def run_results(
        self, images: Array, collect: bool = True
    ) -> tuple[dict[str, Array], dict[str, Array]]:
        if collect or images.ndim != 4 + self._graph.takes_frames:
            return self._graph.run_results(images, collect)
        self._graph.check_images(images)
        results = self._graph.results
        found = self._infer(images, [output.name for output in results])
        values = {}
        for output in results:
            real = found[output.name].astype(np.float64)
            real = real.reshape(*real.shape[:2], *(real.shape[2:] or (1, 1)))
            scale = np.array(output.scale).reshape(-1, 1, 1)
            values[output.name] = np.rint(real / scale).astype(np.int32)
        return values, {}


def _start(graph: IntegerGraph, given: int | None, exact: bool) -> tuple[Engine, str]:
    """What runs `graph` on the threads that are `given`, and its name with the reason."""
    absent = native.absence()
    if absent is None:
        if given:
            model = native.of_graph(graph, given)
        else:
            model = native.of_graph_within_memory(graph, _cores())
        return model, f"the native engine ({model.isa}, {_many(model.info.threads)})"
    if exact:
        return graph, f"the reference, in NumPy: {absent}"
    threads, reasons = given or _cores(), [absent]
    for name in SUBSTITUTES:
        missing = [p for p in ("onnx", RUNTIMES[name][0]) if importlib.util.find_spec(p) is None]
        if missing:
            reasons.append(f"{name} needs the package {' and '.join(missing)}")
            continue
        try:
            return _Exported(graph, name, threads), f"{name} ({_many(threads)}): {absent}"
        except UserError as error:
            reasons.append(str(error))
    return graph, f"the reference, in NumPy: {'; '.join(reasons)}"


def _many(threads: int) -> str:
    return f"{threads} thread{'s' * (threads > 1)}"


def _cores() -> int:
    """The processor cores that this process may use, up to the most threads that are of use."""
    if hasattr(os, "sched_getaffinity"):
        return min(len(os.sched_getaffinity(0)), MOST_THREADS)
    return min(os.cpu_count() or 1, MOST_THREADS)
