"""Units in hardware description: the integer graph's sums, in the simulator's cycles."""

from __future__ import annotations

import gc
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch.nn import functional as F

import qsdformer as qsd
from qsdformer.accelerator.encoding import Encoding, Spikes, encode
from qsdformer.accelerator.units.attention import FILL as MERGE_FILL
from qsdformer.accelerator.units.attention import merge_walk
from qsdformer.accelerator.units.encoder import FILL as ENCODER_FILL
from qsdformer.accelerator.units.encoder import encoder_walk
from qsdformer.accelerator.units.linear import FILL as LINEAR_FILL
from qsdformer.accelerator.units.linear import linear_walk
from qsdformer.accelerator.units.work import walk
from qsdformer.data.base import DataInfo
from qsdformer.graph.integer import IntegerGraph
from qsdformer.graph.ops import Array, Conv, Neuron

pytest.importorskip("amaranth")

from qsdformer.accelerator.hardware.assemblies import EncodedLinear, EncodedMaskAdd
from qsdformer.accelerator.hardware.encoder import SpikeEncoder
from qsdformer.accelerator.hardware.entries import spike_layout
from qsdformer.accelerator.hardware.linear import SparseLinear
from qsdformer.accelerator.hardware.lists import SpikeLists
from qsdformer.accelerator.hardware.mask_add import MaskAdd
from qsdformer.accelerator.hardware.running import channel_thresholds, run_linear, run_mask_add

Trained = tuple[IntegerGraph, dict[str, Array]]
RATES = (0.0, 0.05, 0.5, 1.0)
WORD = 64  # of bitmaps, which the units here do not read


def random_counts(rng: Any, rate: float, shape: tuple[int, int], levels: int) -> Array:
    return (rng.random(shape) < rate) * rng.integers(1, levels + 1, shape)


def by_pixel(counts: Array, levels: int) -> Spikes:
    """Counts (pixels, channels) as the simulator has them."""
    return encode(np.ascontiguousarray(counts.T)[:, None, None, :], levels, "pixel")


def by_channel(counts: Array, levels: int) -> Spikes:
    """Counts (channels, tokens) as the simulator has them."""
    return encode(counts[:, None, None, :], levels, "channel")


def encoding_cycles(
    spikes: Spikes, lanes: int, ports: int = 1, encoding: Encoding = "address+count"
) -> int:
    return int(encoder_walk(spikes, lanes, ports, encoding).on(1)[0]) + ENCODER_FILL


def linear_cycles(spikes: Spikes, outputs: int, lanes: int, encoding: Encoding) -> int:
    return linear_walk(spikes, outputs, lanes, encoding, WORD).on(1)[0] + LINEAR_FILL


def mask_add_cycles(q: Spikes, k: Spikes, v: Spikes) -> dict[str, int]:
    encoding: Encoding = "address+count"
    return {
        "merging": merge_walk(k, v, encoding, WORD).on(1)[0] + MERGE_FILL,
        "filtering": walk(q, 1, encoding, WORD).on(1)[0] + MERGE_FILL,
    }


@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize(
    ("inputs", "outputs", "lanes", "levels", "encoder_lanes", "ports"),
    [(10, 24, 8, 1, 4, 1), (7, 5, 8, 4, 1, 1), (6, 8, 4, 3, 16, 4), (13, 10, 4, 3, 4, 2)],
)
def test_the_linear_unit_has_the_simulators_sums_and_cycles(
    rate: float,
    inputs: int,
    outputs: int,
    lanes: int,
    levels: int,
    encoder_lanes: int,
    ports: int,
) -> None:
    rng = np.random.default_rng(0)
    counts = random_counts(rng, rate, (6, inputs), levels)
    codes = rng.integers(-8, 8, (outputs, inputs))
    linear = SparseLinear(inputs=inputs, outputs=outputs, pixels=6, lanes=lanes, levels=levels)
    unit = EncodedLinear(linear, encoder_lanes=encoder_lanes, ports=ports)
    found = run_linear(unit, codes, counts)
    assert np.array_equal(found.result, counts @ codes.T)
    spikes = by_pixel(counts, levels)
    assert found.cycles["busy"] == linear_cycles(spikes, outputs, lanes, "address+count")
    assert found.cycles["encoding"] == encoding_cycles(spikes, encoder_lanes, ports)


@pytest.mark.parametrize("rate", RATES)
def test_a_linear_unit_of_several_passes_adds_spikes_one_by_one(rate: float) -> None:
    rng = np.random.default_rng(1)
    counts = random_counts(rng, rate, (5, 9), 3)
    codes = rng.integers(-8, 8, (12, 9))
    linear = SparseLinear(inputs=9, outputs=12, pixels=5, lanes=8, passes=3)
    found = run_linear(EncodedLinear(linear, encoder_lanes=4, ports=2), codes, counts)
    assert np.array_equal(found.result, counts @ codes.T)
    spikes = by_pixel(counts, 3)
    assert found.cycles["busy"] == linear_cycles(spikes, 12, 8, "address")
    assert found.cycles["encoding"] == encoding_cycles(spikes, 4, 2, "address")


@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("levels", [1, 4])
def test_the_mask_add_unit_has_the_simulators_masks_and_cycles(rate: float, levels: int) -> None:
    rng = np.random.default_rng(2)
    q, k, v = (random_counts(rng, rate, (15, 20), levels) for _ in range(3))
    thresholds = rng.integers(0, 3 * levels, 15)
    mask_add = MaskAdd(channels=15, tokens=20, levels=levels)
    unit = EncodedMaskAdd(mask_add, encoder_lanes=8, ports=2)
    found = run_mask_add(unit, q, k, v, thresholds)
    fires = (k * v).sum(axis=1) >= thresholds
    assert np.array_equal(found.result, q * fires[:, None])
    spikes = [by_channel(x, levels) for x in (q, k, v)]
    written = max(encoding_cycles(one, 8, 2) for one in spikes)  # side by side
    expected = {**mask_add_cycles(*spikes), "encoding": written}
    assert found.cycles == expected


@pytest.mark.parametrize("tokens", [14, 15])
def test_a_channel_that_never_fires_lets_nothing_pass(tokens: int) -> None:
    ones = np.ones((3, tokens), np.int64)
    unit = EncodedMaskAdd(MaskAdd(channels=3, tokens=tokens), encoder_lanes=4)
    found = run_mask_add(unit, ones, ones, ones, np.array([tokens + 1, tokens, tokens + 1]))
    assert found.result.sum(axis=1).tolist() == [0, tokens, 0]


def test_results_that_are_not_taken_at_once_stay_the_same() -> None:
    rng = np.random.default_rng(3)
    counts, codes = random_counts(rng, 0.4, (6, 10), 1), rng.integers(-8, 8, (20, 10))
    linear = SparseLinear(inputs=10, outputs=20, pixels=6, lanes=8)
    unit = EncodedLinear(linear, encoder_lanes=4)
    found = run_linear(unit, codes, counts, accepts=lambda cycle: cycle % 3 == 0)
    assert np.array_equal(found.result, counts @ codes.T)
    q, k, v = (random_counts(rng, 0.4, (15, 16), 1) for _ in range(3))
    masks = EncodedMaskAdd(MaskAdd(channels=15, tokens=16), encoder_lanes=4)
    taken = run_mask_add(masks, q, k, v, np.full(15, 2), accepts=lambda cycle: cycle % 3 == 0)
    assert np.array_equal(taken.result, q * ((k * v).sum(axis=1) >= 2)[:, None])


@pytest.fixture(scope="module")
def trained() -> Trained:
    """A small SDT that has learned from digits, as integers, and an image's values in it."""
    pixels, labels = load_digits(return_X_y=True)
    images = torch.tensor(pixels.reshape(-1, 1, 8, 8) / 4 - 2, dtype=torch.float32)
    torch.manual_seed(0)
    shape: dict[str, Any] = {"width": 16, "depth": 1, "heads": 2, "pooling": "0001"}
    model = qsd.create_model(
        "sdt_tiny", **shape, in_channels=1, num_classes=10, levels=4, attention_norm=True
    ).train()
    optimiser = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for step in range(30):
        batch = slice(32 * step, 32 * (step + 1))
        loss = F.cross_entropy(model(images[batch]), torch.tensor(labels[batch]))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    names = tuple(str(digit) for digit in range(10))
    info = DataInfo(image_size=8, channels=1, class_names=names, mean=(0.5,), std=(0.25,))
    graph = qsd.lower(model.eval(), info)
    image = (pixels[1500].reshape(1, 1, 8, 8) * 255 / 16).astype(np.uint8)
    return graph, graph.run_values(image, {op.name for op in graph.ops})[0]


def test_a_layer_of_a_network_has_the_integer_graphs_sums(
    trained: Trained,
) -> None:
    graph, values = trained
    conv = next(op for op in graph.ops if op.name.endswith("attention.q.conv"))
    assert isinstance(conv, Conv)
    codes, spikes = conv.codes[:, :, 0, 0].astype(int), values[conv.inputs[0]]
    outputs, inputs = codes.shape
    counts = spikes[0].reshape(inputs, -1).T
    assert 0 < np.count_nonzero(counts) < counts.size
    linear = SparseLinear(inputs=inputs, outputs=outputs, pixels=len(counts), lanes=8, levels=4)
    found = run_linear(EncodedLinear(linear, encoder_lanes=8), codes, counts)
    assert np.array_equal(found.result.T, values[conv.name][0].reshape(outputs, -1))
    expected = linear_cycles(by_pixel(counts, 4), outputs, 8, "address+count")
    assert found.cycles["busy"] == expected


def test_attention_of_a_network_has_the_integer_graphs_spikes(
    trained: Trained,
) -> None:
    graph, values = trained
    start, end = (
        next(i for i, op in enumerate(graph.ops) if op.name.endswith(name))
        for name in ("core.sum", "mask_neuron")
    )
    ops = graph.ops[start + 1 : end + 1]
    assert isinstance(ops[-1], Neuron)
    q, k, v = (
        next(
            x[0].reshape(len(x[0]), -1) for n, x in values.items() if n.endswith(f".{name}_neuron")
        )
        for name in "qkv"
    )
    thresholds = channel_thresholds(ops, len(q), 16 * q.shape[1])
    unit = EncodedMaskAdd(MaskAdd(channels=len(q), tokens=q.shape[1], levels=4), encoder_lanes=8)
    found = run_mask_add(unit, q, k, v, thresholds)
    masked = next(x for name, x in values.items() if name.endswith("core.mul2"))
    assert 0 < np.count_nonzero(found.result) < np.count_nonzero(q)
    assert np.array_equal(found.result, masked[0].reshape(q.shape))
    spikes = [by_channel(x, 4) for x in (q, k, v)]
    assert {name: found.cycles[name] for name in ("merging", "filtering")} == mask_add_cycles(
        *spikes
    )


@pytest.mark.filterwarnings("ignore:.*created but never used")
def test_sizes_that_make_no_circuit_are_refused() -> None:
    with pytest.raises(ValueError, match="lanes=0"):
        SparseLinear(inputs=4, outputs=4, pixels=1, lanes=0)
    with pytest.raises(ValueError, match="sum_bits=16: sums of 100 inputs may need 17 bits"):
        SparseLinear(inputs=100, outputs=4, pixels=1, lanes=4, weight_bits=8, levels=4)
    with pytest.raises(ValueError, match="lanes=6: must be a power of two"):
        SpikeEncoder(positions=8, lanes=6)
    with pytest.raises(ValueError, match=r"ports=9: must be in 1\.\.8"):
        SpikeEncoder(positions=8, lanes=8, ports=9)
    with pytest.raises(ValueError, match="ports=3: must be a power of two"):
        SpikeLists(positions=8, lists=2, ports=3)
    with pytest.raises(ValueError, match="levels=0"):
        spike_layout(4, 0)
    gc.collect()  # what was refused is forgotten here, with Amaranth's warning about it


def test_mask_neurons_that_remember_have_no_threshold(
    trained: Trained,
) -> None:
    graph, _ = trained
    (neuron, *_) = (op for op in graph.ops if isinstance(op, Neuron))
    with pytest.raises(ValueError, match="binary neuron of one time step"):
        channel_thresholds([neuron], 4, 10)
