"""Random graphs over all operations in ONNX Runtime and OpenVINO: the counts of the executor."""

from __future__ import annotations

import numpy as np
import pytest
from graph.random_graphs import random_frames, random_graph

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from qsdformer.runtimes.onnx_export import onnx_model
from qsdformer.runtimes.sessions import onnxruntime_infer, openvino_infer

STARTS = {"onnxruntime": onnxruntime_infer, "openvino": openvino_infer}


def check(seed: int, arrangement: str, runtime: str) -> None:
    """Compares every count and output; all are exact in float32 by the graphs' construction.

    OpenVINO has counts / D between neurons and what reads them, which rounds where D is not a power
    of two: its real outputs, not its counts, may be off by float32's precision.
    """
    pytest.importorskip(runtime)
    graph = random_graph(seed)
    images = random_frames(graph, seed=seed)
    data = onnx_model(graph, arrangement, counts=True).SerializeToString()
    found = STARTS[runtime](data, 1)(images, None)
    names = [op.name for op in graph.neurons()]
    counts = graph.run_values(images, names)[0]
    for name in names:
        assert np.array_equal(found[name], counts[name]), name
    for name, real in graph.real_outputs(images).items():
        assert found[name].dtype == np.float32
        expected = real[:, :, 0, 0] if name == "logits" else real
        slack = 1e-6 * np.abs(expected).max() if runtime == "openvino" else 0.0
        assert np.abs(found[name] - expected).max() <= slack, name


@pytest.mark.parametrize("seed", range(40))
@pytest.mark.parametrize("arrangement", ["onnxruntime", "openvino"])
def test_onnx_runtime_gives_the_executors_integers(seed, arrangement):
    check(seed, arrangement, "onnxruntime")


@pytest.mark.parametrize("seed", range(40, 60))
def test_the_float_arrangement_gives_them_too(seed):
    check(seed, "float", "onnxruntime")


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("arrangement", ["onnxruntime", "openvino"])
def test_openvino_gives_them_too(seed, arrangement):
    check(seed, arrangement, "openvino")
