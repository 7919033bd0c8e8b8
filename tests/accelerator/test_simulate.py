"""The units of a design make exactly the numbers of the reference executor, on every network."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from graph.random_graphs import random_frames, random_graph

from accelerator.networks import FAMILIES, family_graph, pixels, small_design
from qsdformer.accelerator import machine
from qsdformer.accelerator.design import load_design
from qsdformer.accelerator.encoding import ENCODINGS
from qsdformer.accelerator.results import PARTS, figures, stage_figures
from qsdformer.accelerator.signals import signals
from qsdformer.accelerator.simulate import simulate
from qsdformer.accelerator.traffic import DRAM, Memory
from qsdformer.analysis.energy import add_energy, mult_energy
from qsdformer.graph.integer import IntegerGraph, Output
from qsdformer.graph.ops import IELIF, LIF, MaxPool, Multiply, Rescale
from qsdformer.graph.reference import EXECUTE

ADDERS = ("linear", "convolution")
SPARSE = [encoding for encoding in ENCODINGS if encoding != "dense"]


@pytest.mark.parametrize("levels", [1, 4])
@pytest.mark.parametrize("steps", [1, 4])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_spike_and_output_of_every_family_is_that_of_the_integer_graph(
    family: str, steps: int, levels: int
) -> None:
    graph = family_graph(family, levels=levels, time_steps=steps)
    images = pixels(2)
    for design in (small_design(), load_design("dense-int")):
        assert simulate(graph, design, images).differing == 0


@pytest.mark.parametrize("name", ["sdt-sparse", "dense-int"])
def test_frames_are_taken_where_an_image_would_be_repeated(name: str) -> None:
    graph = family_graph("sdt", levels=1, time_steps=4)
    design, image = small_design(name), pixels()
    still = simulate(graph, design, image)
    same = simulate(graph, design, np.stack([image] * 4))
    assert [s.spikes for s in same.stages] == [s.spikes for s in still.stages]
    assert figures(same).reads[DRAM] == 4 * figures(still).reads[DRAM]
    moving = simulate(graph, design, np.stack([pixels(seed=i) for i in range(4)]))
    assert moving.differing == 0
    assert [s.spikes for s in moving.stages] != [s.spikes for s in still.stages]


@pytest.mark.parametrize("order", ["gather", "scatter"])
@pytest.mark.parametrize("encoding", SPARSE)
def test_encodings_and_orders_give_the_same_spikes_and_additions(encoding: str, order: str) -> None:
    for family in ("sdt", "e-spikeformer"):
        graph = family_graph(family, levels=4, time_steps=1)
        shares = {f"units__{name}__shares_weights": order == "gather" for name in ADDERS}
        design = small_design(encoding=encoding, units__convolution__order=order, **shares)
        found = simulate(graph, design, pixels())
        plain = simulate(graph, load_design("dense-int"), pixels())
        assert found.differing == 0
        assert [s.synaptic for s in found.stages] == [s.synaptic for s in plain.stages]


@pytest.mark.parametrize("seed", range(40))
def test_random_graphs_over_all_operations_are_computed_exactly(seed: int) -> None:
    graph = random_graph(seed)
    images = random_frames(graph, batch=1)
    roomy = {f"buffers__{name}__kib": 4096.0 for name in ("accumulators", "spikes", "membranes")}
    for order, encoding in (("gather", "address"), ("scatter", "address+count")):
        design = small_design(encoding=encoding, units__convolution__order=order, **roomy)
        assert simulate(graph, design, images).differing == 0
    assert simulate(graph, load_design("dense-int"), images).differing == 0


def test_maps_of_a_dense_design_are_charged_by_what_they_compute() -> None:
    # Pools of 3x3 with stride 2 compare 2.25 times a value, counts of 3 bits; a product of two
    # counts up to 4 is one of 3 by 3 bits.
    design, image = load_design("dense-int"), pixels()
    graph = family_graph("sdt", levels=4, time_steps=1)
    known = signals(graph, design)
    run = machine.Machine(known, design, graph.membrane_bits)
    seen = set()
    for op in graph.ops:
        works = run.do(op, image.transpose(1, 0, 2, 3))
        if isinstance(op, MaxPool):
            bits = 3 if op.name in known.spikes else graph.membrane_bits
            expected = add_energy(bits) * op.kernel**2 / op.stride**2
        elif isinstance(op, Multiply) and not known.masks(op):
            expected = mult_energy((3, 3))
        else:
            continue
        seen.add((type(op), op.name in known.spikes))
        assert works[0].energy == pytest.approx(works[0].operations * expected)
    assert seen == {(MaxPool, True), (MaxPool, False), (Multiply, True)}


def test_spikes_in_two_layouts_are_read_in_the_one_that_a_unit_wants() -> None:
    graph = family_graph("spikformer", levels=4, time_steps=1)
    design = small_design(units__convolution__order="scatter")
    known = signals(graph, design)
    both = {op.name for op in graph.ops if len(known.layouts(op.name)) > 1}
    wants = {
        (name, layout)
        for op in graph.ops
        for name in {known.home(one) for one in op.inputs} & both
        for layout in known.layouts(name)
    }
    read: set[Any] = set()

    class Noting(Memory):
        def read(self, name: Any, bits: int, traffic: Any) -> None:
            read.add(name)
            super().read(name, bits, traffic)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("qsdformer.accelerator.simulate.Memory", Noting)
        simulate(graph, design, pixels())
    assert wants
    assert wants <= read


def with_thresholds(graph: IntegerGraph, value: int) -> IntegerGraph:
    """`graph` whose neurons fire from `value` on: never, or always."""
    ops: list[Any] = []
    for op in graph.ops:
        if isinstance(op, IELIF):
            op = dataclasses.replace(op, thresholds=(value,) * op.levels)
        if isinstance(op, LIF):
            op = dataclasses.replace(op, threshold=value)
        ops.append(op)
    return dataclasses.replace(graph, ops=tuple(ops))


@pytest.mark.parametrize("encoding", SPARSE)
@pytest.mark.parametrize("family", FAMILIES)
def test_an_image_without_spikes_and_one_where_everything_fires(family: str, encoding: str) -> None:
    graph = family_graph(family, levels=4, time_steps=1)
    design = small_design(encoding=encoding)
    silent = simulate(with_thresholds(graph, 2**15), design, pixels())
    loud = simulate(with_thresholds(graph, -(2**15)), design, pixels())
    assert silent.differing == loud.differing == 0
    assert sum(stage.synaptic for stage in silent.stages) == 0
    # Nothing to add, but the lengths of lists are read.
    assert figures(silent).cycles > 0
    assert all(stage.rate in (None, 0.0) for stage in silent.stages)
    assert all(stage.rate in (None, 1.0) for stage in loud.stages)


@pytest.mark.parametrize("name", ["sdt-sparse", "dense-int"])
def test_a_simulator_that_computes_something_else_is_an_error(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    exact = EXECUTE[Rescale]
    graph, design, image = family_graph("sdt", levels=4), small_design(name), pixels()
    monkeypatch.setattr(machine, "EXECUTE", {**EXECUTE, Rescale: lambda op, x: -exact(op, x)})
    with pytest.raises(RuntimeError, match=rf"{name}: \d+ values are not the reference's"):
        simulate(graph, design, image)
    assert simulate(graph, design, image, check=False).differing is None


def test_images_add_up_and_figures_are_means() -> None:
    graph, design, images = family_graph("sdt", levels=4), small_design(), pixels(3)
    together = figures(simulate(graph, design, images))
    alone = [figures(simulate(graph, design, images[i : i + 1])) for i in range(3)]
    assert together.cycles == pytest.approx(np.mean([f.cycles for f in alone]))
    assert together.synaptic == pytest.approx(np.mean([f.synaptic for f in alone]))
    assert together.total == pytest.approx(np.mean([f.total for f in alone]))


def test_the_parts_of_a_simulation_add_up_to_the_whole() -> None:
    found = simulate(family_graph("e-spikeformer", levels=4), small_design(), pixels())
    whole = figures(found)
    parts = [stage_figures(stage, found) for stage in found.stages]
    assert whole.cycles == sum(p.cycles for p in parts)
    assert whole.reads[DRAM] == sum(p.reads[DRAM] for p in parts)
    for part in PARTS:
        assert whole.energy[part] == pytest.approx(sum(p.energy[part] for p in parts))
    assert whole.total == pytest.approx(sum(whole.energy.values()))
    design = found.design
    assert whole.microseconds == pytest.approx(whole.cycles / design.clock_mhz)
    moved = {name: whole.reads[name] + whole.writes[name] for name in whole.reads}
    assert whole.energy["dram"] == pytest.approx(moved[DRAM] * 1300 / 64)  # 1.3 nJ for 64 bits
    buffers = design.buffers.named()
    expected = sum(moved[name] * buffer.pj_per_bit for name, buffer in buffers.items())
    assert whole.energy["buffers"] == pytest.approx(expected)
    microwatts = design.leakage_uw_per_kib * design.kib
    microwatts += design.leakage_uw_per_adder * design.adders
    assert whole.energy["leakage"] == pytest.approx(microwatts * whole.microseconds)
    assert min(whole.energy.values()) > 0
    assert whole.gsops == pytest.approx(whole.synaptic * whole.frames_per_second / 1e9)
    assert whole.gsops_per_watt == pytest.approx(whole.gsops / (whole.milliwatts / 1e3))
    assert all(0 <= share <= 1 for share in (*whole.busy.values(), *whole.used.values()))


def test_the_image_comes_from_dram_and_the_logits_go_there() -> None:
    graph = family_graph("sdt", levels=4)
    found = figures(simulate(graph, small_design(), pixels()))
    assert found.reads[DRAM] == pixels()[0].size * 8
    assert found.writes[DRAM] > 0


@pytest.mark.parametrize("name", ["stem.neurons.1", "blocks.0.add1"])
def test_an_output_that_is_read_later_costs_what_it_costs_and_the_way_to_dram(name: str) -> None:
    graph = family_graph("sdt", levels=4)
    output = Output(name="map", op=name, scale=(1.0,))
    shown = dataclasses.replace(graph, outputs=(output,))
    plain, found = (figures(simulate(g, small_design(), pixels())) for g in (graph, shown))
    moved = found.writes[DRAM] - plain.writes[DRAM]
    assert moved > 0
    assert found.reads == plain.reads
    assert found.writes == {**plain.writes, DRAM: plain.writes[DRAM] + moved}
    # Its room is free again after its last reader.
    tight = small_design(buffers__spikes__kib=1.0, buffers__membranes__kib=1.0)
    plain, found = (figures(simulate(g, tight, pixels())) for g in (graph, shown))
    assert found.writes[DRAM] == plain.writes[DRAM] + moved


def test_weights_that_do_not_fit_come_from_dram_for_every_image() -> None:
    graph = family_graph("sdt", levels=4)
    design = small_design(buffers__weights__kib=1.0)
    found = simulate(graph, design, pixels())
    assert not found.resident
    extra = figures(found).reads[DRAM] - pixels()[0].size * 8
    assert extra == found.weight_bits


def test_spikes_and_potentials_that_do_not_fit_are_spilled_and_the_sums_stay() -> None:
    graph = family_graph("sdt", levels=4)
    small = small_design(buffers__spikes__kib=0.2, buffers__membranes__kib=1.0)
    found, plain = (simulate(graph, d, pixels()) for d in (small, small_design()))
    assert found.differing == 0
    assert figures(found).writes[DRAM] > figures(plain).writes[DRAM]
    assert figures(found).cycles >= figures(plain).cycles


def test_a_stage_lasts_as_long_as_its_slowest_unit_or_its_dram() -> None:
    graph = family_graph("sdt", levels=4)
    tight = {"buffers__spikes__kib": 0.2, "buffers__membranes__kib": 1.0}
    found = simulate(graph, small_design(**tight, dram_bits=1), pixels())
    for stage in found.stages:
        moved = stage.traffic.reads[DRAM] + stage.traffic.writes[DRAM]
        busy = max(unit.cycles for unit in stage.units.values())
        assert stage.cycles == max(moved, busy)
        assert stage.dram_stalls == stage.cycles - busy
        assert stage.stalls == stage.dram_stalls + stage.units[stage.head].stalls
    whole = figures(found)
    assert whole.dram_stalls > 0
    assert whole.stalls > whole.dram_stalls  # engines wait for each other, too
    assert whole.cycles > figures(simulate(graph, small_design(**tight), pixels())).cycles
