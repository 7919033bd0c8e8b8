"""The native engine among the executors of `qsd verify`; importing this registers it."""

from __future__ import annotations

import torch
from torch import nn

from qsdformer.graph.integer import IntegerGraph
from qsdformer.graph.ops import Array
from qsdformer.runtimes import native
from qsdformer.runtimes.executors import Executor, Output, Run, register
from qsdformer.runtimes.runnable import MOST_THREADS

NATIVE = "native"


def _factory(model: nn.Module, graph: IntegerGraph) -> Run | None:
    if not native.available():
        return None
    loaded = native.of_graph_within_memory(graph, min(torch.get_num_threads(), MOST_THREADS))

    def run(pixels: Array, collect: bool) -> Output:
        values, counts = loaded.run_results(pixels, collect=collect)
        return graph.real_results(values), counts if collect else None

    return run


register(Executor(name=NATIVE, factory=_factory, agreement=0.999, of_graph=True, exact=True))
