"""Reordered channels leave the network as it is, and more groups silent."""

from __future__ import annotations

import numpy as np
import pytest
from variants import VARIANTS, info_for, random_pixels

from graph.random_graphs import random_frames, random_graph
from qsdformer.graph.check import check_graph
from qsdformer.graph.grouping import group_channels
from qsdformer.graph.integer import IntegerGraph
from qsdformer.graph.lowering import lower
from qsdformer.graph.ops import Array


def assert_same(graph: IntegerGraph, pixels: Array) -> IntegerGraph:
    """Logits and outputs are the same after grouping, and so are the sums of spikes."""
    grouped = group_channels(graph, pixels)
    check_graph(grouped)
    expected, found = graph.run_outputs(pixels), grouped.run_outputs(pixels)
    for name, value in expected.items():
        assert np.array_equal(found[name], value), name
    _, before = graph.run_with_counts(pixels)
    _, after = grouped.run_with_counts(pixels)
    for name, count in before.items():
        assert count.sum() == after[name].sum(), name
        assert np.array_equal(np.sort(count, axis=1), np.sort(after[name], axis=1)), name
    return grouped


def active_groups(graph: IntegerGraph, pixels: Array) -> int:
    """Groups of 4 channels that fire."""
    total = 0
    for count in graph.run_with_counts(pixels)[1].values():
        if count.shape[1] % 4 == 0:
            total += count.reshape(len(count), -1, 4, *count.shape[2:]).any(axis=2).sum()
    return int(total)


def test_random_graphs_stay_the_same():
    compared = 0
    for seed in range(60):
        graph = random_graph(seed)
        if graph.class_names:
            assert_same(graph, random_frames(graph, batch=2, seed=seed))
            compared += 1
    assert compared > 20


@pytest.mark.parametrize("name", VARIANTS)
def test_every_variant_stays_the_same(name: str, lively):
    model = lively(**VARIANTS[name])
    assert_same(lower(model, info_for(model)), random_pixels(model, 2).numpy())


def test_fewer_groups_fire(lively):
    model = lively(dims=(16, 32, 48, 64), heads=4, fully_spiking=True)
    graph = lower(model, info_for(model))
    pixels = random_pixels(model, 2).numpy()
    grouped = group_channels(graph, pixels)
    assert active_groups(grouped, pixels) < active_groups(graph, pixels)
