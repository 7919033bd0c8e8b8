"""Break-evens, and what the ledger's memory model and the simulator agree on."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

import qsdformer as qsd
from accelerator.networks import INFO, SIZE, family_graph, pixels, small_design
from qsdformer.accelerator.breakeven import (
    Layer,
    compare,
    crossing,
    layer_costs,
    random_spikes,
    storage_break_even,
)
from qsdformer.accelerator.design import changed, load_design
from qsdformer.accelerator.encoding import address_bits, encode, stored_bits
from qsdformer.accelerator.ledger import traffic_lines
from qsdformer.accelerator.machine import Machine
from qsdformer.accelerator.results import figures
from qsdformer.accelerator.signals import VIEWS, signals
from qsdformer.accelerator.simulate import simulate
from qsdformer.accelerator.units.convolution import window_of
from qsdformer.analysis.ledger import make_ledger
from qsdformer.analysis.measure import measure
from qsdformer.graph.ops import Conv
from qsdformer.runtimes.executors import normalised

LAYER = Layer(inputs=64, outputs=64, side=6)


@pytest.mark.parametrize("levels", [1, 4])
@pytest.mark.parametrize("encoding", ["address", "address+count"])
def test_lists_are_as_large_as_bitmaps_at_the_break_even_of_storage(
    encoding: str, levels: int
) -> None:
    layer = Layer(inputs=256, outputs=1, side=16)
    rate = storage_break_even(256, levels, encoding)
    sizes = {}
    for factor in (0.8, 1.0, 1.2):
        spikes = random_spikes(rate * factor, levels, layer)
        sizes[factor] = stored_bits(spikes, encoding) / stored_bits(spikes, "bitmap")
    assert sizes[0.8] < 1 < sizes[1.2]
    assert sizes[1.0] == pytest.approx(1, abs=0.02)
    # The lengths of lists take a little from the rule of thumb, a rate of 1 / address bits.
    assert rate == pytest.approx(1 / address_bits(256), rel=0.1)


def test_spikes_save_cycles_while_the_mean_count_is_below_one() -> None:
    sparse, dense = load_design("sdt-sparse"), load_design("dense-int")
    layer = Layer(inputs=256, outputs=256, side=12)  # 6 tiles of 24 pixels
    rates = [0.02, 0.1, 0.2, 0.3, 0.5]
    ratios = compare(rates, 4, layer, sparse, dense, lambda c: c.cycles)
    assert ratios == sorted(ratios)
    found = crossing(rates, ratios)
    assert found is not None
    assert found * 4 == pytest.approx(1, abs=0.1)
    counted = changed(sparse, "encoding", "address+count")
    assert all(r < 1 for r in compare(rates, 4, layer, counted, dense, lambda c: c.cycles))


def test_engines_that_share_weights_save_energy_and_take_longer() -> None:
    own = load_design("sdt-sparse")
    shared = changed(own, "units.linear.shares_weights", True)
    for rate, levels in ((0.05, 1), (0.3, 1), (0.1, 4)):
        spikes = random_spikes(rate, levels, LAYER)
        one, other = (layer_costs(spikes, LAYER, design) for design in (own, shared))
        assert other.compute == one.compute
        assert other.buffers < one.buffers
        assert other.cycles > one.cycles


def test_a_crossing_is_found_between_the_rates_and_nowhere_else() -> None:
    assert crossing([0.0, 1.0], [0.5, 1.5]) == pytest.approx(0.5)
    assert crossing([0.0, 1.0], [0.1, 0.9]) is None
    assert crossing([0.0, 1.0], [1.1, 2.0]) is None


def test_counts_cost_a_multiplication_and_save_additions() -> None:
    sparse = load_design("sdt-sparse")
    counted = changed(sparse, "encoding", "address+count")
    for levels, cheaper in ((1, False), (4, True)):
        spikes = random_spikes(0.5, levels, LAYER)
        one, other = (layer_costs(spikes, LAYER, d) for d in (sparse, counted))
        assert (other.cycles < one.cycles) == cheaper
        assert (other.energy < one.energy) == cheaper


def test_the_ledgers_memory_model_is_a_bitmap_read_once() -> None:
    torch.manual_seed(0)
    fields = {"dims": (4, 6, 8, 8), "depth": 2, "heads": 2, "num_classes": 5, "levels": 1}
    model = qsd.create_model("metaspikeformer_tiny", **fields, fully_spiking=True).train()
    with torch.no_grad():
        for _ in range(5):
            model(torch.randn(6, 3, SIZE, SIZE))
    graph = qsd.lower(model.eval(), INFO, membrane_bits=16)
    images = normalised(pixels(), graph.preprocessing)
    measured = measure(model, [(images, torch.zeros(1).long())])
    ledger = make_ledger("m", model, measured)
    wide = {"units__linear__lanes": 4096, "units__convolution__lanes": 4096}
    design = small_design(encoding="bitmap", units__convolution__order="scatter", **wide)
    simulation = simulate(graph, design, pixels())
    lines = {line.what: line for line in traffic_lines(ledger, model, measured, simulation)}
    assert lines["spikes read"].simulated == lines["spikes read"].ledger
    assert lines["spikes written"].simulated == lines["spikes written"].ledger
    assert lines["weights read"].ledger == simulation.weight_bits
    assert lines["sums in accumulators"].simulated > 0  # which the ledger knows nothing of
    synaptic = sum(stage.synaptic for stage in simulation.stages)
    assert synaptic == pytest.approx(ledger.synaptic_operations, rel=1e-3)


@pytest.mark.parametrize("family", ["sdt", "sdt, dvs mode"])
@pytest.mark.parametrize("order", ["gather", "scatter"])
def test_every_bit_of_spikes_is_written_once_and_read_by_each_of_its_readers(
    order: str, family: str
) -> None:
    graph = family_graph(family, levels=1)
    wide = {f"units__{name}__lanes": 4096 for name in ("linear", "convolution")}
    design = small_design(encoding="bitmap", units__convolution__order=order, **wide)
    known = signals(graph, design)
    sizes = {name: math.prod(shape.size) for name, shape in known.shapes.items()}
    read = written = 0
    for op in graph.ops:
        if isinstance(op, VIEWS):
            continue
        for name in op.inputs:
            on_the_fly = known.stages[known.home(name)] == known.stages[op.name]
            if name not in known.spikes or on_the_fly:
                continue
            shape = known.shapes[name]
            times = np.ones(shape.height * shape.width, int)
            if isinstance(op, Conv) and order == "gather":
                times = window_of(op, shape.height, shape.width).reached(np.arange(len(times)))
            read += shape.channels * int(times.sum())
        if op.name in known.spikes and known.is_kept(op.name):
            written += sizes[op.name] * len(known.layouts(op.name))
    found = figures(simulate(graph, design, pixels()))
    assert found.reads["spikes"] == read
    assert found.writes["spikes"] == written


def test_spikes_that_are_in_no_layout_that_is_read_are_an_error() -> None:
    graph, design = family_graph("sdt", levels=1), small_design()
    known = signals(graph, design)
    machine = Machine(known, design, 16)
    shape = known.shapes["stem.pools.1"]
    counts = np.zeros((shape.channels, 1, shape.height, shape.width), np.int32)
    machine.lists["stem.pools.1"] = {"channel": encode(counts, 1, "channel")}
    with pytest.raises(RuntimeError, match=r"stem.pools.1: its spikes are in no layout"):
        machine.stored_bits("stem.pools.1")


def test_a_silent_layer_has_nothing_but_the_lengths_of_its_lists() -> None:
    silent = encode(np.zeros((64, 1, 6, 6), np.int32), 4, "pixel")
    costs = layer_costs(silent, LAYER, load_design("sdt-sparse"))
    assert costs.compute == 0
    assert costs.stored == 36 * 4 * 7  # four passes of a length 0..64 for every pixel
    assert family_graph("sdt", levels=4).time_steps == 1
