"""Random graphs over all operations: the executor against a plain one, bounds, the artifact."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from graph import numpy_executor, numpy_reader
from graph.random_graphs import random_frames, random_graph
from qsdformer.graph.artifact import export, load_artifact
from qsdformer.graph.check import check_graph
from qsdformer.graph.ops import OP_INPUTS, Neuron, Normalise

SEEDS = range(60)


@pytest.mark.parametrize("seed", SEEDS)
def test_every_value_is_that_of_the_plain_executor_and_within_its_bound(seed, tmp_path: Path):
    graph = random_graph(seed)
    images = random_frames(graph, seed=seed)
    export(graph, tmp_path / "model.qsd")
    expected = numpy_executor.run(numpy_reader.read(tmp_path / "model.qsd"), images)
    values, counts = graph.run_values(images, [op.name for op in graph.ops], collect=True)
    shapes = check_graph(graph)
    for op, value in zip(graph.ops, expected, strict=True):
        found, shape = values[op.name], shapes[op.name]
        assert found.dtype == np.int32
        assert np.array_equal(found, value), op
        assert found.shape[1:] == shape.size
        if not isinstance(op, Normalise):  # which comes before the time axis has a name
            assert len(found) == shape.steps * images.shape[-4]
        assert (np.abs(value).max(axis=(0, 2, 3)) <= shape.bound).all(), op
        if isinstance(op, Neuron):
            assert np.array_equal(counts[op.name], value)


@pytest.mark.parametrize("seed", SEEDS)
def test_an_artifact_gives_back_the_graph_and_its_outputs(seed, tmp_path: Path):
    graph = random_graph(seed)
    images = random_frames(graph, seed=seed)
    export(graph, tmp_path / "model.qsd")
    loaded = load_artifact(tmp_path / "model.qsd")
    assert loaded == graph
    content = numpy_reader.read(tmp_path / "model.qsd")
    outputs = [(o["name"], content["ops"][o["op"]]["name"]) for o in content["outputs"]]
    assert outputs == [(o.name, o.op) for o in graph.outputs]
    found = graph.run_outputs(images)
    assert list(found) == [o.name for o in graph.results]
    for name, value in loaded.run_outputs(images).items():
        assert np.array_equal(value, found[name])


def test_the_graphs_hold_every_operation_often_and_are_alive():
    graphs = [random_graph(seed) for seed in SEEDS]
    for kind in OP_INPUTS:
        assert sum(any(isinstance(op, kind) for op in g.ops) for g in graphs) >= 5, kind
    assert sum(not g.class_names for g in graphs) >= 5
    assert sum(g.takes_frames and g.time_steps > 1 for g in graphs) >= 5
    firing = []
    for graph in graphs:
        counts = graph.run_values(random_frames(graph), (), collect=True)[1]
        firing += [len(np.unique(c)) > 1 for c in counts.values()]
    assert np.mean(firing) > 0.6


def test_the_same_seed_gives_the_same_graph():
    assert random_graph(3) == random_graph(3)
    assert random_graph(3) != random_graph(4)
