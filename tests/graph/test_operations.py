"""The operations one by one: against PyTorch, at their bounds, and what is refused."""

from __future__ import annotations

import dataclasses
from fractions import Fraction

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from graph.random_graphs import random_frames, random_graph
from qsdformer.data.preprocessing import Preprocessing
from qsdformer.errors import UserError
from qsdformer.graph.check import Shape, check_graph, result_shape
from qsdformer.graph.integer import IntegerGraph, Output
from qsdformer.graph.ops import (
    INT32_MAX,
    LIF,
    Add,
    Attention,
    Concat,
    ConvTranspose,
    CountAdd,
    Frames,
    MaxPool,
    Multiply,
    Normalise,
    Op,
    Repeat,
    Rescale,
    Reshape,
    SpatialSum,
    TimeSum,
    Upsample,
)
from qsdformer.graph.reference import EXECUTE

PRE = Preprocessing(image_size=8, channels=2, mean=(0.0, 0.0), std=(1.0, 1.0))
IDENTITY = np.arange(256, dtype=np.int32)[None].repeat(2, axis=0)


def integers(seed: int, *shape: int, low: int = -50, high: int = 50) -> np.ndarray:
    return np.random.default_rng(seed).integers(low, high, shape).astype(np.int32)


def executed(op: Op, *inputs: np.ndarray) -> np.ndarray:
    """What the executor makes of (B, C, H, W) values."""
    return EXECUTE[type(op)](op, *(x.swapaxes(0, 1) for x in inputs)).swapaxes(0, 1)


def shaped(channels: int = 4, side: int = 8, bound: float = 1.0, **fields) -> Shape:
    return Shape(
        height=side, width=side, **{"steps": 1, "bound": np.full(channels, bound), **fields}
    )


@pytest.mark.parametrize(("kernel", "stride", "padding"), [(3, 2, 1), (3, 1, 1), (2, 2, 0)])
@pytest.mark.parametrize("side", [7, 8])
def test_a_pool_is_that_of_pytorch_on_negative_values_too(kernel, stride, padding, side):
    op = MaxPool(name="p", inputs=("x",), kernel=kernel, stride=stride, padding=padding)
    x = integers(0, 2, 3, side, side, low=-50, high=-10)
    expected = F.max_pool2d(torch.tensor(x).double(), kernel, stride, padding)
    assert np.array_equal(executed(op, x), expected.numpy())
    assert result_shape(op, [shaped(side=side)], PRE).size == (4, *expected.shape[2:])


@pytest.mark.parametrize("mode", ["nearest", "bilinear"])
@pytest.mark.parametrize("size", [(1, 1), (1, 4), (5, 3)])
def test_upsampling_is_that_of_pytorch(mode, size):
    x = integers(1, 2, 3, *size)
    options = {"align_corners": False} if mode == "bilinear" else {}
    real = F.interpolate(torch.tensor(x).double(), scale_factor=2, mode=mode, **options)
    found = executed(Upsample(name="u", inputs=("x",), mode=mode), x)
    assert np.array_equal(found, real.numpy() * (16 if mode == "bilinear" else 1))


def test_bilinear_upsampling_counts_in_sixteenths():
    shape = result_shape(
        Upsample(name="u", inputs=("x",), mode="bilinear"), [shaped(bound=7.0, fraction=3)], PRE
    )
    assert (shape.size, shape.fraction, set(shape.bound)) == ((4, 16, 16), 7, {112.0})


def test_a_transposed_convolution_is_that_of_pytorch():
    codes = integers(2, 5, 3, 2, 2, low=-8, high=8).astype(np.int8)
    op = ConvTranspose(name="t", inputs=("x",), codes=codes, bits=4)
    x = integers(3, 2, 5, 4, 3)
    expected = F.conv_transpose2d(*(torch.tensor(a).double() for a in (x, codes)), stride=2)
    assert np.array_equal(executed(op, x), expected.numpy())
    bound = result_shape(op, [shaped(channels=5, bound=50.0)], PRE).bound
    sums = 50 * np.abs(codes.astype(int)).sum(axis=0).max(axis=(1, 2))
    assert np.array_equal(bound, sums)


def test_a_wide_v_is_split_into_heads_like_q_and_k():
    q, k = integers(4, 2, 6, 3, 3, low=0, high=5), integers(5, 2, 6, 3, 3, low=0, high=5)
    v = integers(6, 2, 24, 3, 3, low=0, high=5)
    op = Attention(name="a", inputs=("q", "k", "v"), heads=3)
    qs, ks, vs = (
        torch.tensor(x).double().flatten(2).unflatten(1, (3, -1)).transpose(2, 3) for x in (q, k, v)
    )  # (B, heads, N, d)
    expected = (qs @ (ks.transpose(2, 3) @ vs)).transpose(2, 3).reshape(2, 24, 3, 3)
    assert np.array_equal(executed(op, q, k, v), expected.numpy())


def test_sums_products_and_joins_have_the_bounds_of_their_worst_case():
    x, y, one = shaped(bound=100.0), shaped(bound=200.0), shaped(side=1, bound=30.0)
    pair = ("x", "y")
    assert result_shape(CountAdd(name="s", inputs=pair), [x, y], PRE).bound.max() == 300
    assert result_shape(SpatialSum(name="s", inputs=("x",)), [x], PRE).bound.max() == 6400
    for inputs in ([x, one], [one, x]):
        shape = result_shape(Multiply(name="m", inputs=pair), inputs, PRE)
        assert (shape.size, shape.bound.max()) == ((4, 8, 8), 3000)
    joined = result_shape(Concat(name="c", inputs=("x", "y", "x")), [x, y, x], PRE)
    assert joined.bound.tolist() == [100.0] * 4 + [200.0] * 4 + [100.0] * 4
    wide = result_shape(
        Attention(name="a", inputs=("q", "k", "v"), heads=2), [x, x, shaped(16, bound=3.0)], PRE
    )
    assert wide.bound.tolist() == [64 * 2 * 100.0 * 100.0 * 3.0] * 16
    steps = [shaped(bound=100.0, steps=3)]
    assert result_shape(TimeSum(name="t", inputs=("x",), steps=3), steps, PRE).bound.max() == 300


def pair(kind: type[Op], **fields) -> Op:
    return kind(name="op", inputs=("x", "y"), **fields)


HUGE = shaped(bound=float(INT32_MAX))
REFUSED = {
    "a sum past 32 bits": (pair(CountAdd), [HUGE, shaped()], "could leave 32 bits"),
    "a product past 32 bits": (pair(Multiply), [shaped(bound=7e4)] * 2, "could leave 32 bits"),
    "a reduction past 32 bits": (
        SpatialSum(name="s", inputs=("x",)),
        [shaped(bound=4e7)],
        "could leave 32 bits",
    ),
    "an interpolation past 32 bits": (
        Upsample(name="u", inputs=("x",), mode="bilinear"),
        [shaped(bound=2e8)],
        "could leave 32 bits",
    ),
    "counts on different grids": (pair(CountAdd), [shaped(), shaped(side=4)], "equal shapes"),
    "a sum of formats": (pair(CountAdd), [shaped(), shaped(fraction=4)], "one format"),
    "a membrane sum of formats": (
        pair(Add, limit=9),
        [shaped(fraction=5), shaped(fraction=4)],
        "one format",
    ),
    "a join of formats": (pair(Concat), [shaped(), shaped(fraction=4)], "one format"),
    "a join of grids": (pair(Concat), [shaped(), shaped(side=4)], "one height"),
    "a join of one": (Concat(name="c", inputs=("x",)), [shaped()], "1 inputs"),
    "a join without end": (pair(Concat), [shaped(40_000)] * 2, "65536 channels"),
    "a product of grids": (pair(Multiply), [shaped(), shaped(side=4)], "of one pixel"),
    "a product of channels": (pair(Multiply), [shaped(), shaped(3, side=1)], "of one pixel"),
    "heads that do not divide v": (
        Attention(name="a", inputs=("q", "k", "v"), heads=2),
        [shaped(), shaped(), shaped(5)],
        "heads that divide",
    ),
    "a pool larger than its input": (
        MaxPool(name="p", inputs=("x",), kernel=5, stride=1, padding=0),
        [shaped(side=4)],
        "as large as its kernel",
    ),
    "a shape of another size": (
        Reshape(name="r", inputs=("x",), channels=4, height=8, width=9),
        [shaped()],
        "number of elements",
    ),
    "a shape of too many channels": (
        Reshape(name="r", inputs=("x",), channels=2**17, height=2**5, width=1),
        [shaped(side=2**10)],
        "number of elements",
    ),
    "a map without end": (
        Upsample(name="u", inputs=("x",), mode="nearest"),
        [shaped(side=2**16)],
        "at most 65536",
    ),
    "a second time axis": (
        Frames(name="f", inputs=("x",), steps=2),
        [shaped(steps=2)],
        "time axis",
    ),
    "products of many fractions": (
        pair(Multiply),
        [shaped(bound=0.0, fraction=500)] * 2,
        "1000 fractional bits",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_does_not_fit_is_refused_in_one_line(name):
    op, inputs, message = REFUSED[name]
    with pytest.raises(ValueError, match=message) as caught:
        result_shape(op, inputs, PRE)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        (MaxPool, {"kernel": 3, "stride": 2, "padding": 2}),
        (MaxPool, {"kernel": 3, "stride": 0, "padding": 1}),
        (Upsample, {"mode": "bicubic"}),
        (Reshape, {"channels": 0, "height": 1, "width": 1}),
        (Frames, {"steps": 0}),
        (ConvTranspose, {"codes": np.zeros((2, 2, 3, 3), np.int8), "bits": 4}),
        (ConvTranspose, {"codes": np.full((2, 2, 2, 2), 9, np.int8), "bits": 4}),
    ],
)
def test_fields_out_of_range_are_refused(kind, fields):
    with pytest.raises(ValueError, match=r"must be|must have|do not fit"):
        kind(name="op", inputs=("x",), **fields)


def graph_of(*ops: Op, outputs: tuple[Output, ...] = (), classes: tuple[str, ...] = ()):
    table = Normalise(name="table", inputs=(), table=IDENTITY, fraction=0)
    return IntegerGraph(
        ops=(table, *ops),
        preprocessing=PRE,
        class_names=classes,
        config={},
        membrane_bits=32,
        membrane_fraction=16,
        outputs=outputs,
    )


def test_frames_are_required_and_keep_their_order():
    graph = graph_of(
        Frames(name="frames", inputs=("table",), steps=3),
        TimeSum(name="sum", inputs=("frames",), steps=3),
        outputs=(
            Output(name="all", op="frames", scale=(1.0,)),
            Output(name="total", op="sum", scale=(0.5, 2.0)),
        ),
    )
    check_graph(graph)
    assert graph.takes_frames
    assert graph.time_steps == 3
    frames = integers(7, 3, 2, 2, 8, 8, low=0, high=256).astype(np.uint8)
    found = graph.run_outputs(frames)
    assert np.array_equal(found["all"], frames.reshape(6, 2, 8, 8))
    assert np.array_equal(found["total"], frames.astype(np.int32).sum(axis=0))
    real = graph.real_outputs(frames)["total"]
    assert np.array_equal(real, found["total"] * np.array([0.5, 2.0]).reshape(-1, 1, 1))
    for images in (frames[0], frames[:2]):
        with pytest.raises(UserError, match=r"shape \(3 time steps, B, 2, 8, 8\)"):
            graph.run_outputs(images)


def test_a_network_without_logits_says_what_it_has():
    graph = graph_of(
        SpatialSum(name="sum", inputs=("table",)),
        outputs=(Output(name="features", op="sum", scale=(1.0,)),),
    )
    pixels = np.zeros((1, 2, 8, 8), np.uint8)
    for use in (graph.run, graph.predict, lambda _: graph.logit_scale):
        with pytest.raises(UserError, match="no logits; its outputs are features"):
            use(pixels)
    assert list(graph.run_outputs(pixels)) == ["features"]


def test_a_classifier_has_its_logits_among_the_outputs():
    graph = next(g for g in map(random_graph, range(50)) if g.class_names and g.outputs)
    images = random_frames(graph)
    found = graph.run_outputs(images)
    assert np.array_equal(found["logits"][:, :, 0, 0], graph.run(images))
    assert [*found][:-1] == [o.name for o in graph.outputs]
    real = graph.real_outputs(images)["logits"]
    assert np.array_equal(real, found["logits"] * graph.logit_scale)


SUM = SpatialSum(name="sum", inputs=("table",))


@pytest.mark.parametrize(
    ("graph", "message"),
    [
        (graph_of(SUM), "neither logits nor"),
        (graph_of(SUM, classes=("a", "b")), "does not give logits"),
        (graph_of(SUM, outputs=(Output(name="", op="sum", scale=(1.0,)),)), "no name of its own"),
        (graph_of(SUM, outputs=(Output(name="logits", op="sum", scale=(1.0,)),)), "no name of"),
        (graph_of(SUM, outputs=(Output(name="a", op="no", scale=(1.0,)),)), "does not exist"),
        (graph_of(SUM, outputs=(Output(name="a", op="sum", scale=(1.0,) * 3),)), "3 scales"),
        (graph_of(SUM, outputs=(Output(name="a", op="sum", scale=(0.0,)),)), "zero or not finite"),
        (graph_of(SUM, outputs=(Output(name="a", op="sum", scale=(1.0,)),) * 2), "no name of its"),
        (
            graph_of(
                Frames(name="f", inputs=("table",), steps=2),
                Repeat(name="r", inputs=("table",), steps=2),
            ),
            "disagree about the time axis",
        ),
        (
            graph_of(SUM, Frames(name="f", inputs=("sum",), steps=2)),
            "'sum': 'frames' alone reads the table",
        ),
    ],
)
def test_a_graph_whose_parts_do_not_fit_is_refused(graph, message):
    with pytest.raises(ValueError, match=message):
        check_graph(graph)


def exact_lif(inputs: list[int], theta: int) -> tuple[list[int], list[Fraction]]:
    """Spikes and potentials of a LIF neuron with tau 2, without any rounding."""
    v, spikes, potentials = Fraction(0), [], []
    for x in inputs:
        h = v + (x - v) / 2
        potentials.append(h)
        spikes.append(int(h >= theta))
        v = Fraction(0) if h >= theta else h
    return spikes, potentials


@pytest.mark.parametrize("steps", [1, 4, 16])
def test_lif_halves_exactly_while_bits_last_and_errs_by_less_than_a_unit_beyond(steps):
    theta = 1 << 20
    rng = np.random.default_rng(steps)
    x = rng.integers(-theta, 2 * theta, (steps, 1, 1, 40)).astype(np.int32)
    op = LIF(name="n", inputs=("x",), steps=steps, limit=INT32_MAX, threshold=theta, leak=2**15)
    for inputs in (x >> steps << steps, x):
        found = executed(op, inputs)
        for j in range(40):
            column = [int(v) for v in inputs[:, 0, 0, j]]
            spikes, potentials = exact_lif(column, theta)
            if inputs is x:  # equal wherever no potential is within a unit of the threshold
                near = [abs(h - theta) <= 1 for h in potentials]
                end = near.index(True) if any(near) else steps
                assert found[:end, 0, 0, j].tolist() == spikes[:end]
            else:
                assert found[:, 0, 0, j].tolist() == spikes


def test_lif_never_leaves_32_bits_however_long_it_runs():
    extreme = np.array([INT32_MAX, -INT32_MAX] * 8, np.int32).reshape(16, 1, 1, 1)
    for x in (extreme, np.abs(extreme), -np.abs(extreme)):
        for leak in (1, 2**15, 2**16):
            op = LIF(
                name="n", inputs=("x",), steps=16, limit=INT32_MAX, threshold=INT32_MAX, leak=leak
            )
            v, spikes = 0, []
            for value in (int(u) for u in x.ravel()):  # Python integers have no limit
                h = v + (((value - v) * leak + 2**15) >> 16)
                assert min(v, value) <= h <= max(v, value)
                spikes.append(int(h >= INT32_MAX))
                v = 0 if spikes[-1] else h
            assert executed(op, x).ravel().tolist() == spikes


@pytest.mark.parametrize("steps", [1, 4])
def test_the_attention_neuron_of_sdt_v1_is_an_or_without_state(steps):
    """Threshold 0.5 and tau 2 on a count: one fires at once, none keeps the potential 0."""
    counts = integers(8, 2 * steps, 3, 1, 1, low=0, high=4)
    op = LIF(name="g", inputs=("x",), steps=steps, limit=INT32_MAX, threshold=1, leak=2**15)
    assert np.array_equal(executed(op, counts), counts > 0)


def test_the_mean_of_two_heads_is_a_rescale_and_a_sum():
    half = Rescale(
        name="half",
        inputs=("x",),
        multiplier=np.full(4, 1, np.int64),
        shift=np.full(4, 1, np.int8),
        bias=np.zeros(4, np.int64),
        limit=INT32_MAX,
        fraction=16,
    )
    a, b = (integers(seed, 2, 4, 1, 1) * 2 for seed in (9, 10))
    add = Add(name="mean", inputs=("a", "b"), limit=INT32_MAX)
    assert np.array_equal(executed(add, executed(half, a), executed(half, b)), (a + b) // 2)
    shapes = [dataclasses.replace(shaped(side=1), fraction=16)] * 2
    assert result_shape(add, shapes, PRE).fraction == 16
