"""Published designs: their reference results from our networks' shapes, and small cases by hand."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from graph.random_graphs import random_frames, random_graph
from torch import nn

import qsdformer as qsd
from qsdformer.accelerator.published.design import (
    estimate,
    load_published,
    parse_published,
    published_designs,
)
from qsdformer.accelerator.published.formulas import Prosperity, Ptb, paired_inputs, window_patterns
from qsdformer.accelerator.published.reference import Reference, peaks, references
from qsdformer.accelerator.published.workload import (
    Layer,
    Neurons,
    Workload,
    graph_workload,
    published_workload,
)
from qsdformer.data.base import DataInfo
from qsdformer.errors import UserError
from qsdformer.graph.integer import IntegerGraph
from qsdformer.graph.ops import Array, Conv, ConvTranspose
from qsdformer.graph.ops import Attention as IntegerAttention
from qsdformer.nn.neurons import IELIF
from qsdformer.parsing import load_yaml

DOC = Path(__file__).parents[2] / "docs" / "accelerator-published.md"
REFERENCES = {reference.name: reference for reference in references()}
NUMBERS: dict[str, Any] = {
    "adders": 8,
    "neuron_lanes": 4,
    "row_lanes": 2,
    "tile_rows": 4,
    "tile_inputs": 4,
    "weight_bits": 8,
    "dram_bits": 1024,
}


def layer(spikes: Array, outputs: int) -> Layer:
    steps, positions, inputs = spikes.shape
    return Layer(
        name="layer",
        steps=steps,
        positions=positions,
        inputs=inputs,
        outputs=outputs,
        kernel=1,
        matrix=lambda: spikes,
    )


def workload(spikes: Array, outputs: int) -> Workload:
    one = layer(spikes, outputs)
    neurons = Neurons(size=one.positions * outputs, steps=one.steps)
    return Workload(layers=(one,), attentions=(), neurons=(neurons,))


def test_mint_takes_the_published_time_for_sdt_on_cifar10() -> None:
    reference = REFERENCES["SDT, CIFAR-10"]
    found = estimate(load_published("mint"), reference.workload())
    assert found.milliseconds == pytest.approx(17.57, abs=0.01)
    assert reference.workload().dense_additions == 6_543_114_240


@pytest.mark.parametrize("name", REFERENCES)
@pytest.mark.parametrize("design", ["mint", "eyeriss"])
def test_time_and_energy_follow_from_shapes_and_density(design: str, name: str) -> None:
    reference = REFERENCES[name]
    found = estimate(load_published(design), reference.workload())
    # Densities have four digits, but the share of each layer is not published.
    tolerance = 0.007 if design == "mint" else 5e-4
    assert found.milliseconds == pytest.approx(reference.results[design][0], rel=tolerance)
    assert found.millijoules == pytest.approx(reference.results[design][1], rel=tolerance)


@pytest.mark.parametrize("name", REFERENCES)
def test_traffic_to_dram_is_prosperitys_to_the_bit(name: str) -> None:
    reference: Reference = REFERENCES[name]
    found = estimate(load_published("mint"), reference.workload())
    assert found.prosperity_dram_bits == reference.dram_bits


@pytest.mark.parametrize("name", REFERENCES)
@pytest.mark.parametrize("design", ["eyeriss", "ptb", "sato", "mint", "prosperity"])
def test_energies_follow_from_published_times(design: str, name: str) -> None:
    reference = REFERENCES[name]
    milliseconds, millijoules = reference.results[design]
    found = load_published(design).millijoules(milliseconds, reference.dram_bits)
    assert found == pytest.approx(millijoules, rel=1e-3)


def test_prosperitys_energy_of_sdt_on_cifar10_is_exact() -> None:
    found = load_published("prosperity").millijoules(6.0588, 241_565_696)
    assert round(found, 4) == 5.7127


@pytest.mark.parametrize("peak", peaks(), ids=lambda peak: peak.name)
def test_peaks_are_lanes_times_clock(peak: Any) -> None:
    assert peak.derived == pytest.approx(peak.gsops)
    if peak.milliwatts is not None:
        assert peak.watts * 1e3 == pytest.approx(peak.milliwatts, rel=1e-3)


def test_every_number_of_every_published_design_has_a_source() -> None:
    assert set(published_designs()) == {"eyeriss", "mint", "prosperity", "ptb", "sato"}
    for name in published_designs():
        sources = load_published(name).sources
        assert len(sources) > 3
        assert all(source.strip() for source in sources.values())


def test_sato_deals_rows_to_the_element_with_least_to_do() -> None:
    # Rows of 4, 3, 2, 1 spikes on 128 elements: one each, the fullest decides.
    spikes = np.tri(4, dtype=bool)[None]
    found = estimate(load_published("sato"), workload(spikes, 10))
    assert found.layers == {"layer": 40}
    assert found.neurons == 40  # log2 of one step is 0


def test_ptb_pairs_inputs_that_never_spike_at_the_same_position() -> None:
    spikes = np.zeros((4, 8, 5), bool)
    spikes[0, :4, 0] = True  # shares a pass with input 1
    spikes[3, 4:, 1] = True
    spikes[1, :, 2] = True  # everywhere: alone
    spikes[2, 0, 3] = True  # fits with nothing that is left; input 4 is silent
    active = window_patterns(spikes, 4, 8)
    assert active.shape == (1, 5, 8)
    assert paired_inputs(active) == 3
    numbers = {"rows": 16, "columns": 8, "window": 4, "dram_bits": 1024}
    assert Ptb(**numbers).layer(layer(spikes, 20)) == 3 * 2 * 4 + 8 * 16 * 2 + 1


def test_prosperity_adds_only_what_a_contained_row_lacks() -> None:
    rows = [[1, 1, 0, 0], [1, 1, 1, 0], [1, 1, 1, 0], [0, 0, 0, 1]]
    spikes = np.array(rows, bool)[None]
    found = Prosperity(**NUMBERS)
    # 2 of the first, 1 of the second, none of its copy, and a row of one spike reuses nothing.
    assert found.reuse(spikes) == (4, 1, 3)
    cycles = (4 + 1) * 2  # two tiles of outputs
    first = 4 * 8 * 8 + 4 * 4
    assert first < found.dram_bits
    assert found.layer(layer(spikes, 16)) == cycles


@pytest.mark.parametrize("rate", [0.0, 0.2, 0.6, 1.0])
def test_prosperitys_reuse_is_what_a_search_row_by_row_finds(rate: float) -> None:
    spikes = np.random.default_rng(0).random((2, 5, 7)) < rate
    new = same = searched = 0
    rows = np.pad(spikes.transpose(1, 0, 2).reshape(10, 7), ((0, 2), (0, 1)))
    for tile in (rows[i : i + 4, j : j + 4] for i in range(0, 12, 4) for j in (0, 4)):
        for i, row in enumerate(tile):
            usable = [
                other.sum()
                for j, other in enumerate(tile)
                if not (other & ~row).any() and not ((other == row).all() and j >= i)
            ]
            reused = max(usable, default=0) if row.sum() > 1 else 0
            new += row.sum() - reused
            same += row.sum() > 0 and reused == row.sum()
            searched += row.sum() > 1
    assert Prosperity(**NUMBERS).reuse(spikes) == (new, same, searched)


def settled(name: str, size: int, **fields: Any) -> tuple[nn.Module, IntegerGraph, Array]:
    """A small network with statistics of random images, its integers, and an image."""
    torch.manual_seed(0)
    model = qsd.create_model(name, heads=2, num_classes=5, **fields).train()
    with torch.no_grad():
        for _ in range(5):
            model(torch.randn(6, 3, size, size))
    info = DataInfo(
        image_size=size, channels=3, class_names=tuple("abcde"), mean=(0.5,) * 3, std=(0.25,) * 3
    )
    image = torch.randint(0, 256, (1, 3, size, size), dtype=torch.uint8).numpy()
    return model, qsd.lower(model.eval(), info), image


NETWORKS: dict[str, dict[str, Any]] = {
    "sdt_tiny": {"width": 16, "depth": 1},
    "metaspikeformer_tiny": {"dims": (4, 6, 8, 8), "depth": 2, "fully_spiking": True},
}


@pytest.mark.parametrize("name", NETWORKS)
def test_a_matrix_of_a_graph_has_the_spikes_of_its_layer(name: str) -> None:
    _, graph, image = settled(name, 16, **NETWORKS[name], levels=2, time_steps=2)
    made = graph_workload(graph, image)
    values, _ = graph.run_values(image, {op.name for op in graph.ops})
    convs = {op.name: op for op in graph.ops if isinstance(op, Conv)}
    assert len(made.layers) + len(made.left_out) == len(convs)
    for one in made.layers:
        op, expected = convs[one.name], values[one.name]
        codes = op.codes.reshape(op.groups, one.outputs, one.inputs).astype(int)
        spikes = one.spikes().reshape(one.steps, op.groups, -1, one.inputs)
        sums = np.einsum("sgpk,gnk->sgnp", spikes, codes).reshape(one.steps, *expected.shape[1:])
        assert np.array_equal(sums.reshape(len(expected), -1, *sums.shape[1:]).sum(1), expected)
    for design in published_designs():
        found = estimate(load_published(design), made)
        assert found.cycles > 0
        assert found.millijoules > 0


@pytest.mark.parametrize("dvs_mode", [False, True])
def test_a_graph_has_the_additions_of_its_networks_published_workload(dvs_mode: bool) -> None:
    fields: dict[str, Any] = {"width": 16, "depth": 1, "levels": 2, "time_steps": 2}
    model, graph, image = settled("sdt_tiny", 16, **fields, dvs_mode=dvs_mode)
    made, listed = graph_workload(graph, image), published_workload(model, (3, 16, 16), 0.1)
    assert made.left_out == listed.left_out == ("stem.convs.0.conv", "head")
    assert made.dense_additions == 2 * listed.dense_additions  # two levels
    (of_graph,), (of_model,) = made.attentions, listed.attentions
    assert of_graph.kind == of_model.kind == "mask"
    assert of_graph.steps == 2 * of_model.steps


def test_transposed_convolutions_are_left_out_and_named() -> None:
    graph = random_graph(1)
    names = [op.name for op in graph.ops if isinstance(op, ConvTranspose)]
    assert names
    left_out = graph_workload(graph, random_frames(graph, batch=1)).left_out
    assert set(names) <= set(left_out)
    up = nn.ConvTranspose2d(4, 4, 2, 2)
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3), IELIF(), up, IELIF(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), IELIF()
    )
    model.append(nn.Linear(4, 2))
    assert published_workload(model, (1, 8, 8), 0.1).left_out == ("0", "2")


def test_the_documented_function_gives_a_time_for_each_design() -> None:
    _, graph, image = settled("sdt_tiny", 16, width=16, depth=1)
    (example,) = re.findall(r"```python\n(.*?)```", DOC.read_text(encoding="utf-8"), re.DOTALL)
    scope: dict[str, Any] = {"__name__": "example"}
    exec(compile(example, str(DOC), "exec"), scope)
    assert set(scope["published_milliseconds"](graph, image)) == set(published_designs())


@pytest.mark.parametrize("size", [8, 16])
def test_attention_by_products_costs_prosperity_cycles(size: int) -> None:
    fields: dict[str, Any] = {"width": 16, "depth": 1, "levels": 2, "pooling": "0001"}
    _, graph, image = settled("spikformer_tiny", size, **fields)
    made = graph_workload(graph, image)
    (attention,) = made.attentions
    assert attention.products is not None
    additions = sum(x.ones() * x.outputs for x in attention.products())
    values, _ = graph.run_values(image, {op.name for op in graph.ops})
    (op,) = (op for op in graph.ops if isinstance(op, IntegerAttention))
    q, k, v = (values[n][0].reshape(2, 8, -1).astype(int) for n in op.inputs)
    tokens = q.shape[2]
    # Rows are added for spikes of k and q, of length d, or of k and v, of length N.
    expected = (k.sum() + q.sum()) * 8 if tokens > 8 else (k.sum() + v.sum()) * tokens
    assert additions == expected
    assert estimate(load_published("prosperity"), made).attention > 0


def test_a_design_that_needs_spikes_says_so() -> None:
    with pytest.raises(ValueError, match="only a density is known"):
        estimate(load_published("ptb"), REFERENCES["SDT, CIFAR-10"].workload())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("formula: abacus", "formula='abacus': must be one of mint"),
        ("adders: {value: 0, source: x}", "numbers.adders=0: must be above 0"),
    ],
)
def test_bad_published_designs_are_refused_in_one_line(change: str, message: str) -> None:
    text = published_designs()["mint"].read_text(encoding="utf-8")
    key = change.split(":")[0]
    lines = [
        line[: len(line) - len(line.lstrip())] + change if line.strip().startswith(key) else line
        for line in text.splitlines()
    ]
    with pytest.raises(UserError, match=message):
        parse_published(load_yaml("\n".join(lines), "design"), "bad")
