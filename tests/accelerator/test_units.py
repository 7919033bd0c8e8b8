"""Units against plain loops: what they compute, and how many cycles their docstrings promise."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest

from accelerator.networks import small_design
from qsdformer.accelerator.design import AdderUnit, load_design
from qsdformer.accelerator.encoding import (
    Encoding,
    Layout,
    Spikes,
    address_bits,
    encode,
    list_bits,
    stored_bits,
)
from qsdformer.accelerator.units import (
    attention,
    convolution,
    dense,
    encoder,
    linear,
    pool,
    product,
)
from qsdformer.accelerator.units.convolution import window_of
from qsdformer.accelerator.units.work import walk
from qsdformer.analysis.energy import add_energy, mult_energy
from qsdformer.graph.ops import Array, Conv, MaxPool
from qsdformer.graph.reference import EXECUTE

SHAPE = (5, 2, 4, 6)
LEVELS = 3


def counts(seed: int, rate: float = 0.4, shape: tuple[int, ...] = SHAPE) -> Array:
    rng = np.random.default_rng(seed)
    return ((rng.random(shape) < rate) * rng.integers(1, LEVELS + 1, shape)).astype(np.int32)


def entry_lists(spikes: Spikes, encoding: str) -> list[list[list[int]]]:
    """The addresses of each pass of each list, as a unit reads them."""
    found = []
    for index in range(spikes.list_count):
        mine = spikes.lists == index
        pairs = list(zip(spikes.addresses[mine], spikes.counts[mine], strict=True))
        if encoding == "address+count":
            found.append([[int(a) for a, _ in pairs]])
        else:
            found.append([[int(a) for a, c in pairs if c > d] for d in range(spikes.levels)])
    return found


@pytest.mark.parametrize("layout", ["pixel", "channel"])
def test_lists_hold_the_counts_in_order_and_give_them_back(layout: Layout) -> None:
    for rate in (0.0, 0.3, 1.0):
        x = counts(1, rate)
        spikes = encode(x, LEVELS, layout)
        np.testing.assert_array_equal(spikes.decode(), x)
        keys = spikes.lists * spikes.length + spikes.addresses
        assert (np.diff(keys) > 0).all()
        assert spikes.spikes == x.sum()
        other: Layout = "pixel" if layout == "channel" else "channel"
        np.testing.assert_array_equal(spikes.in_layout(other).decode(), x)


def test_bits_of_lists_are_those_of_their_passes() -> None:
    spikes = encode(counts(2), LEVELS, "channel")  # 24 positions: 5 bits, lengths 0..24: 5 bits
    assert address_bits(24) == 5
    passes = entry_lists(spikes, "address")
    expected = [sum(5 + 5 * len(entries) for entries in each) for each in passes]
    assert list_bits(spikes, "address").tolist() == expected
    pairs = [5 + (5 + 2) * len(each[0]) for each in entry_lists(spikes, "address+count")]
    assert list_bits(spikes, "address+count").tolist() == pairs
    assert stored_bits(spikes, "bitmap") == spikes.list_count * 24 * LEVELS
    assert stored_bits(spikes, "dense") == spikes.list_count * 24 * 2


@pytest.mark.parametrize("encoding", ["address", "address+count"])
@pytest.mark.parametrize(("lanes", "engines"), [(1, 1), (3, 1), (4, 3)])
def test_linear_cycles_are_the_entries_times_words_of_the_busiest_engine(
    encoding: Encoding, lanes: int, engines: int
) -> None:
    outputs = 7
    spikes = encode(counts(3), LEVELS, "pixel")
    loads = [0] * engines
    for index, passes in enumerate(entry_lists(spikes, encoding)):
        for entries in passes:
            loads[index % engines] += max(1, len(entries) * -(-outputs // lanes))
    unit = AdderUnit(lanes=lanes, engines=engines, shares_weights=False)
    work = linear.linear_work("x", outputs, 4, 12, spikes, unit, small_design(encoding=encoding))
    assert work.cycles == max(loads) + 2
    # Every addition reads a weight of 4 bits, and multiplies it by the count where there is one.
    each = add_energy(12) + (mult_energy((4, 2)) if encoding == "address+count" else 0)
    assert work.weights == work.operations * 4
    assert work.energy == pytest.approx(work.operations * each)
    codes = np.random.default_rng(0).integers(-8, 8, (outputs, SHAPE[0]))
    sums = linear.linear_sums(codes, spikes)
    table = spikes.decode().transpose(1, 2, 3, 0).reshape(-1, SHAPE[0])
    np.testing.assert_array_equal(sums, table @ codes.T)


@pytest.mark.parametrize("encoding", ["address", "address+count"])
def test_engines_in_step_take_the_addresses_that_any_of_their_lists_holds(
    encoding: Encoding,
) -> None:
    outputs, lanes, engines = 7, 3, 5
    spikes = encode(counts(11, 0.2), LEVELS, "pixel")
    design = small_design(encoding=encoding)
    lists = entry_lists(spikes, encoding)
    steps = read = 0
    for start in range(0, len(lists), engines):
        for passes in zip(*lists[start : start + engines], strict=True):
            union = {address for entries in passes for address in entries}
            steps, read = steps + max(1, len(union)), read + len(union)
    own, shared = (
        linear.linear_work(
            "x",
            outputs,
            4,
            12,
            spikes,
            AdderUnit(lanes=lanes, engines=engines, shares_weights=shares),
            design,
        )
        for shares in (False, True)
    )
    assert shared.cycles == steps * 3 + 2
    assert shared.weights == read * outputs * 4 < own.weights
    assert shared.operations == own.operations
    # A 1x1 convolution that gathers is the same work.
    codes = np.ones((outputs, SHAPE[0], 1, 1), np.int8)
    op = Conv(name="x", inputs=("s",), codes=codes, bits=4, stride=1, padding=0, groups=1)
    unit = AdderUnit(lanes=lanes, engines=engines, shares_weights=True)
    gathered = linear.gather_work(op, 12, spikes, unit, design)
    assert (gathered.cycles, gathered.weights) == (shared.cycles, shared.weights)


def test_a_bitmap_costs_a_cycle_for_every_word() -> None:
    spikes = encode(counts(4), LEVELS, "channel")
    word, cost = 5, 2
    expected = []
    for passes in entry_lists(spikes, "bitmap"):
        words = [sum(a // word == w for a in entries) for entries in passes for w in range(5)]
        expected.append(sum(max(1, cost * n) for n in words))
    assert walk(spikes, cost, "bitmap", word).cycles.tolist() == expected


def test_entries_that_reach_nothing_take_a_cycle_and_are_idle() -> None:
    spikes = encode(counts(5), LEVELS, "channel")
    walked = walk(spikes, np.zeros(len(spikes.lists), np.int64), "address+count", 8)
    entries = np.bincount(spikes.lists, minlength=spikes.list_count)
    assert walked.cycles.tolist() == np.maximum(1, entries).tolist()
    assert (walked.idle == walked.cycles).all()


@pytest.mark.parametrize("encoding", ["address", "address+count"])
def test_the_merge_counts_the_comparisons_of_a_loop(encoding: Encoding) -> None:
    for seed, rate in itertools.product(range(5), (0.0, 0.1, 0.5, 1.0)):
        x, y = counts(seed, rate), counts(seed + 50, 0.4)
        a, b = (encode(v, LEVELS, "channel") for v in (x, y))
        lists = zip(entry_lists(a, encoding), entry_lists(b, encoding), strict=True)
        expected = [
            sum(max(1, compared(p, q)) for p in passes_a for q in passes_b)
            for passes_a, passes_b in lists
        ]
        assert attention.merge_walk(a, b, encoding, 8).cycles.tolist() == expected
        both = attention.intersection(a, b)
        np.testing.assert_array_equal(both.decode(), x * y)


@pytest.mark.parametrize("encoding", ["address", "address+count"])
def test_a_coincidence_costs_an_addition_that_holds_all_and_a_product_of_two_counts(
    encoding: Encoding,
) -> None:
    # One channel of 8 tokens; k and v meet at tokens 1 and 5, after 5 comparisons of 3-bit
    # addresses. Sums of up to 8 * 3 * 3 = 72 need 7 bits, counts up to 3 need 2.
    k = encode(np.array([0, 1, 0, 1, 0, 1, 0, 0]).reshape(1, 1, 2, 4), 3, "channel")
    v = encode(np.array([1, 1, 0, 0, 0, 1, 1, 1]).reshape(1, 1, 2, 4), 3, "channel")
    design = small_design(encoding=encoding)
    unit = design.units.mask_add
    assert unit is not None
    work = attention.merge_work(k, v, attention.intersection(k, v), unit, design)
    # Of the passes of further levels, which are empty, none compares anything.
    each = add_energy(7) + (mult_energy((2, 2)) if encoding == "address+count" else 0)
    assert work.operations == 4
    assert work.energy == pytest.approx(4 * add_energy(3) + 2 * each)


def test_a_depthwise_layer_reads_its_inputs_once_and_others_for_every_tile() -> None:
    unit = load_design("dense-int").units.array
    assert unit is not None
    sizes = {"pixels": 10, "fan_in": 9, "outputs": 4 * unit.columns, "times": 1, "nonzero": 1.0}
    bits = {"weight_bits": 4, "input_bits": 3, "sum_bits": 16, "inputs": (768,)}
    for depthwise, expected in ((True, 768), (False, 4 * 768)):
        products = dense.Products(**sizes, **bits, depthwise=depthwise)
        assert dense.dense_work(products, unit).inputs == (expected,)


def test_the_dense_array_takes_a_cycle_a_product_of_each_tile_and_pays_for_inputs_not_0() -> None:
    unit = load_design("dense-int").units.array
    assert unit is not None
    assert unit.gates_zeros
    rows, columns = unit.rows, unit.columns
    products = dense.Products(
        pixels=rows + 1,  # two tiles
        fan_in=9,
        outputs=columns,
        times=2,
        nonzero=0.25,
        weight_bits=4,
        input_bits=3,
        sum_bits=16,
        inputs=(768,),
    )
    work = dense.dense_work(products, unit)
    assert work.cycles == rows + columns - 2 + 2 * 2 * 9
    assert work.weights == 2 * 2 * 9 * columns * 4
    assert work.operations == 2 * (rows + 1) * columns * 9
    each = add_energy(16) + mult_energy((4, 3))
    assert work.energy == pytest.approx(work.operations * 0.25 * each)
    plain = dense.dense_work(products, dataclasses.replace(unit, gates_zeros=False))
    assert plain.energy == pytest.approx(work.operations * each)


def compared(a: list[int], b: list[int]) -> int:
    """Comparisons of a merge that ends with the shorter list."""
    i = j = steps = 0
    while i < len(a) and j < len(b):
        steps += 1
        i, j = i + (a[i] <= b[j]), j + (b[j] <= a[i])
    return steps


def test_the_mask_filters_lists_by_channel() -> None:
    q = encode(counts(6), LEVELS, "pixel")
    mask = np.random.default_rng(1).integers(0, 2, SHAPE[:2])
    found = attention.masked(q, mask, LEVELS)
    np.testing.assert_array_equal(found.decode(), q.decode() * mask[:, :, None, None])


@pytest.mark.parametrize("ports", [1, 3])
@pytest.mark.parametrize("encoding", ["address", "address+count", "bitmap"])
def test_the_encoder_takes_a_cycle_for_every_group_and_more_where_many_fired(
    encoding: Encoding, ports: int
) -> None:
    spikes, lanes = encode(counts(7), LEVELS, "channel"), 5
    expected = []
    for passes in entry_lists(spikes, encoding):
        cycles = 0
        for entries in [[]] if encoding == "bitmap" else passes:
            for group in range(5):
                written = sum(a // lanes == group for a in entries)
                cycles += max(1, -(-written // ports))
        expected.append(cycles)
    assert encoder.encoder_walk(spikes, lanes, ports, encoding).cycles.tolist() == expected


CONVS = [
    (kernel, stride, padding, groups)
    for kernel, stride, padding in [(3, 1, 1), (3, 2, 1), (2, 2, 0), (1, 2, 0), (4, 3, 2)]
    for groups in (1, 2, 6)
]


@pytest.mark.parametrize(("kernel", "stride", "padding", "groups"), CONVS)
def test_convolutions_add_what_spikes_reach(
    kernel: int, stride: int, padding: int, groups: int
) -> None:
    x = counts(8, 0.3, (6, 2, 5, 7))
    outputs = 6 if groups == 6 else 4
    rng = np.random.default_rng(2)
    codes = rng.integers(-8, 8, (outputs, 6 // groups, kernel, kernel)).astype(np.int8)
    op = Conv(
        name="x",
        inputs=("s",),
        codes=codes,
        bits=4,
        stride=stride,
        padding=padding,
        groups=groups,
    )
    spikes = encode(x, LEVELS, "channel")
    np.testing.assert_array_equal(convolution.convolution_sums(op, spikes), EXECUTE[Conv](op, x))
    # An addition for every spike, tap and output: a convolution of ones.
    ones = Conv(**{**vars(op), "codes": np.ones_like(codes)})
    additions = int(EXECUTE[Conv](ones, x).sum())
    unit = small_design().units.convolution
    assert unit is not None
    scattered = convolution.convolution_work(op, 12, spikes, unit, small_design())
    assert scattered.synaptic == scattered.operations == additions
    # Each addition reads and writes a sum of 12 bits; at the end all are read once more.
    sides = window_of(op, 5, 7).sides
    assert scattered.writes == additions * 12
    assert scattered.reads == scattered.writes + outputs * 2 * sides[0] * sides[1] * 12
    assert scattered.energy == pytest.approx(additions * add_energy(12))
    # A channel's weights stay in the lanes for a pass through its list, if they fit.
    per_group = outputs // groups
    taken = sum(bool(one) for passes in entry_lists(spikes, "address") for one in passes)
    held = kernel**2 * per_group <= unit.lanes * (unit.engines // min(groups, unit.engines))
    fetched = taken * kernel**2 * per_group if held else additions
    assert scattered.weights == fetched * 4
    if groups == 1:
        gathered = linear.gather_work(op, 12, spikes.in_layout("pixel"), unit, small_design())
        assert gathered.synaptic == gathered.operations == additions


def test_scattering_takes_the_additions_of_each_spike_in_words_of_all_lanes() -> None:
    x = counts(9, 0.3, (2, 1, 5, 5))
    op = Conv(
        name="x",
        inputs=("s",),
        codes=np.ones((4, 2, 3, 3), np.int8),
        bits=4,
        stride=2,
        padding=1,
        groups=1,
    )
    design = small_design(encoding="address+count")
    unit = design.units.convolution
    assert unit is not None
    expected = 0
    for channel in x[:, 0]:
        cycles = 0
        for y, z in np.argwhere(channel):
            reached = sum(
                (y + 1 - i) % 2 == 0 == (z + 1 - j) % 2
                and 0 <= (y + 1 - i) // 2 < 3
                and 0 <= (z + 1 - j) // 2 < 3
                for i in range(3)
                for j in range(3)
            )
            cycles += max(1, -(-4 * reached // unit.total))
        expected += max(1, cycles)
    work = convolution.convolution_work(op, 12, encode(x, LEVELS, "channel"), unit, design)
    assert work.cycles == expected + 2


@pytest.mark.parametrize(("kernel", "stride", "padding"), [(3, 2, 1), (2, 2, 0), (3, 1, 1)])
def test_pools_keep_the_largest_count(kernel: int, stride: int, padding: int) -> None:
    op = MaxPool(name="p", inputs=("s",), kernel=kernel, stride=stride, padding=padding)
    x = counts(10, 0.2)
    made = pool.pooled(op, encode(x, LEVELS, "channel"))
    np.testing.assert_array_equal(made.decode(), EXECUTE[MaxPool](op, x))


def test_products_are_those_of_attention_and_count_pairs() -> None:
    heads = 2
    q, k, v = (counts(s, 0.3, (4 if s < 22 else 6, 2, 3, 3)) for s in (20, 21, 22))
    lists = [encode(x, LEVELS, "pixel") for x in (q, k, v)]
    sums = product.product_sums(*lists, heads)
    pairs = 0
    for b, h, n in itertools.product(range(2), range(heads), range(9)):
        keys = k.reshape(heads, 2, 2, 9)[h, :, b, n]
        values = v.reshape(heads, 3, 2, 9)[h, :, b, n]
        pairs += int(keys.sum() * values.sum())
    assert product.spike_additions(*lists, heads) == (pairs, int(q.sum()) * 3)
    expected = np.zeros((heads, 3, 2, 9), np.int64)
    for b, h in itertools.product(range(2), range(heads)):
        q_h, k_h = (x.reshape(heads, 2, 2, 9)[h, :, b] for x in (q, k))
        v_h = v.reshape(heads, 3, 2, 9)[h, :, b]
        expected[h, :, b] = (k_h @ v_h.T).T @ q_h
    np.testing.assert_array_equal(sums, expected.reshape(6, 2, 3, 3))
