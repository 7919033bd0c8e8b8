"""ONNX Runtime and OpenVINO among the executors of `qsd verify`; importing this registers them."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from qsdformer.graph.integer import IntegerGraph
from qsdformer.graph.ops import LOGITS, Array
from qsdformer.runtimes.executors import Executor, Output, Run, register
from qsdformer.runtimes.sessions import RUNTIMES, Arrangement, Infer

if TYPE_CHECKING:
    import onnx


def runtime_run(
    graph: IntegerGraph, arrangement: Arrangement, start: Callable[[bytes, int], Infer]
) -> Run:
    """Runs `graph` in a runtime, from a model arranged for it, on as many threads as PyTorch."""
    from qsdformer.runtimes.onnx_export import onnx_models

    neurons = [op.name for op in graph.neurons()]
    models: dict[bool, onnx.ModelProto] = {}
    sessions: dict[bool, Infer] = {}

    def run(pixels: Array, collect: bool) -> Output:
        if collect not in sessions:  # reading counts costs time, so there is a model without them
            if not models:
                models.update(onnx_models(graph, arrangement))
            sessions[collect] = start(
                models.pop(collect).SerializeToString(), torch.get_num_threads()
            )
        found = sessions[collect](pixels, None)
        counts = {name: found[name] for name in neurons} if collect else None
        if graph.class_names:
            return found[LOGITS].astype(np.float64), counts
        return {output.name: found[output.name] for output in graph.outputs}, counts

    return run


def _executor(name: str) -> Executor:
    package, start = RUNTIMES[name]

    def factory(model: nn.Module, graph: IntegerGraph) -> Run | None:
        needed = ("onnx", package)
        if any(importlib.util.find_spec(module) is None for module in needed):
            return None
        return runtime_run(graph, package, start)

    return Executor(name=name, factory=factory, agreement=0.999, of_graph=True)


for _name in RUNTIMES:
    register(_executor(_name))
