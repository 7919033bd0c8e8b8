"""Networks of every family, and of users, have the integers of the reference in the engine."""

from __future__ import annotations

import functools

import pytest
from graph import user_networks
from graph.test_families import (
    EVENT_FRAMES,
    EVENTS,
    FAMILIES,
    INFO,
    NEURONS,
    event_network,
    settled,
)
from variants import LIF, info_for

from qsdformer.data.base import DataInfo
from qsdformer.graph.integer import IntegerGraph
from qsdformer.graph.lowering import lower
from qsdformer.runtimes import native
from runtimes.test_native import assert_same, noise

pytestmark = pytest.mark.skipif(not native.available(), reason="the native engine was not built")


@functools.cache
def family_graph(family: str, neuron: str, steps: int, bits: int = 32) -> IntegerGraph:
    name, fields = FAMILIES[family]
    model = settled(name, **fields, **NEURONS[neuron], time_steps=steps)
    return lower(model, INFO, membrane_bits=bits)


@functools.cache
def event_graph(name: str) -> IntegerGraph:
    model, info = event_network(name)
    return lower(model, info, frames=True)


@functools.cache
def user_graph(name: str) -> IntegerGraph:
    makers = {**user_networks.CLASSIFIERS, "feature maps": user_networks.Pyramid}
    info = user_networks.INFO
    return lower(user_networks.settled(makers[name]), info)


@pytest.mark.parametrize("steps", [1, 4])
@pytest.mark.parametrize("neuron", NEURONS)
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_neuron_and_number_of_time_steps(
    isa: str,
    family: str,
    neuron: str,
    steps: int,
):
    graph = family_graph(family, neuron, steps)
    assert_same(graph, noise(3, 3, 16, 16), threads=1)
    assert_same(graph, noise(1, 3, 16, 16), threads=2)


@pytest.mark.parametrize("steps", [1, 4])
@pytest.mark.parametrize("family", FAMILIES)
def test_potentials_of_16_bits(isa: str, family: str, steps: int):
    graph = family_graph(family, "D4", steps, 16)
    assert_same(graph, noise(3, 3, 16, 16), threads=1)
    assert_same(graph, noise(1, 3, 16, 16), threads=2)


def test_potentials_of_16_bits_take_less_memory():
    narrow, wide = (
        native.of_graph(family_graph("e-spikeformer", "D4", 1, bits)).info.scratch_bytes
        for bits in (16, 32)
    )
    assert narrow < wide


@pytest.mark.parametrize("name", EVENTS)
def test_event_frames_of_two_channels(isa: str, name: str):
    graph = event_graph(name)
    assert_same(graph, EVENT_FRAMES.numpy(), threads=1)
    assert_same(graph, EVENT_FRAMES.numpy()[:, :1], threads=2)


@pytest.mark.parametrize("name", [*user_networks.CLASSIFIERS, "feature maps"])
def test_networks_of_users(isa: str, name: str):
    pixels = user_networks.pixels().numpy()
    assert_same(user_graph(name), pixels, threads=1)
    assert_same(user_graph(name), pixels[:1], threads=2)


@pytest.mark.parametrize("fields", [{}, {"fully_spiking": True}, {**LIF, "time_steps": 4}])
@pytest.mark.parametrize("size", [33, 47])
def test_odd_image_sizes(isa: str, fields, size: int, make_model, settle):
    graph = lower(settle(make_model(**fields), size), info_for(make_model(**fields), size))
    assert_same(graph, noise(2, 3, size, size), threads=2)


@pytest.mark.parametrize("family", FAMILIES)
def test_odd_image_sizes_of_other_families(isa: str, family: str):
    name, fields = FAMILIES[family]
    info = DataInfo(**{**vars(INFO), "image_size": 35})
    assert_same(lower(settled(name, **fields), info), noise(2, 3, 35, 35), threads=2)
