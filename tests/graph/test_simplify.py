from __future__ import annotations

import dataclasses

import numpy as np
from variants import info_for, random_pixels

from qsdformer.graph.lowering import lower
from qsdformer.graph.ops import Rescale
from qsdformer.graph.simplify import without_repetitions


def test_a_graph_without_repetitions_is_shorter_and_computes_the_same(lively):
    model = lively()
    graph = lower(model, info_for(model))
    shorter = dataclasses.replace(graph, ops=without_repetitions(graph.ops))
    pixels = random_pixels(model).numpy()
    assert np.array_equal(shorter.run(pixels), graph.run(pixels))
    # A downsampling convolution is read by a neuron and a shortcut, but in the stem.
    assert len(graph.ops) - len(shorter.ops) == 4


def test_rescalings_that_differ_are_kept(small_graph):
    changed = [
        dataclasses.replace(op, bias=op.bias + i) if isinstance(op, Rescale) else op
        for i, op in enumerate(small_graph.ops)
    ]
    assert len(without_repetitions(tuple(changed))) == len(changed)
