"""Random graphs over all operations in ONNX Runtime and OpenVINO: the counts of the executor."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from graph.random_graphs import FRACTION, random_frames, random_graph, standard_neuron

from qsdformer.data.preprocessing import Preprocessing
from qsdformer.graph.check import check_graph
from qsdformer.graph.integer import IntegerGraph, Output
from qsdformer.graph.ops import (
    IELIF,
    INT32_MAX,
    LIF,
    Conv,
    CountAdd,
    Normalise,
    Op,
    Repeat,
    Rescale,
    SpatialSum,
)

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from qsdformer.runtimes.onnx_export import onnx_model
from qsdformer.runtimes.sessions import onnxruntime_infer, openvino_infer

STARTS = {"onnxruntime": onnxruntime_infer, "openvino": openvino_infer}


def check(seed: int, arrangement: str, runtime: str) -> None:
    """Compares every count and output; all are exact in float32 by the graphs' construction.

    OpenVINO has counts / D between neurons and what reads them, which rounds where D is not a power
    of two: its real outputs, not its counts, may be off by float32's precision.
    """
    pytest.importorskip(runtime)
    graph = random_graph(seed)
    images = random_frames(graph, seed=seed)
    data = onnx_model(graph, arrangement, counts=True).SerializeToString()
    found = STARTS[runtime](data, 1)(images, None)
    names = [op.name for op in graph.neurons()]
    counts = graph.run_values(images, names)[0]
    for name in names:
        assert np.array_equal(found[name], counts[name]), name
    for name, real in graph.real_outputs(images).items():
        assert found[name].dtype == np.float32
        expected = real[:, :, 0, 0] if name == "logits" else real
        slack = 1e-6 * np.abs(expected).max() if runtime == "openvino" else 0.0
        assert np.abs(found[name] - expected).max() <= slack, name


@pytest.mark.parametrize("seed", range(40))
@pytest.mark.parametrize("arrangement", ["onnxruntime", "openvino"])
def test_onnx_runtime_gives_the_executors_integers(seed, arrangement):
    check(seed, arrangement, "onnxruntime")


@pytest.mark.parametrize("seed", range(40, 60))
def test_the_float_arrangement_gives_them_too(seed):
    check(seed, "float", "onnxruntime")


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("arrangement", ["onnxruntime", "openvino"])
def test_openvino_gives_them_too(seed, arrangement):
    check(seed, arrangement, "openvino")


PIXELS = np.arange(256, dtype=np.uint8).reshape(1, 1, 16, 16)


def graph_of(*ops: Op, outputs: tuple[str, ...]) -> IntegerGraph:
    """Operations on the pixels 0..255 themselves, named "pixel"."""
    table = np.arange(256, dtype=np.int32)[None]
    graph = IntegerGraph(
        ops=(Normalise(name="pixel", inputs=(), table=table, fraction=0), *ops),
        preprocessing=Preprocessing(image_size=16, channels=1, mean=(0.0,), std=(1 / 255,)),
        class_names=(),
        config={},
        membrane_bits=32,
        membrane_fraction=FRACTION,
        outputs=tuple(Output(name=f"{o} out", op=o, scale=(1.0,)) for o in outputs),
    )
    check_graph(graph)
    return graph


def scaled(name: str, x: str, factor: int, bias: int = 0) -> Rescale:
    return Rescale(
        name=name,
        inputs=(x,),
        multiplier=np.array([factor], np.int64),
        shift=np.zeros(1, np.int8),
        bias=np.array([bias], np.int64),
        limit=INT32_MAX,
        fraction=FRACTION,
    )


def ielif(name: str, x: str, levels: int, thresholds: tuple[int, ...] | None = None) -> IELIF:
    standard, resets = standard_neuron(FRACTION, levels)
    return IELIF(
        name=name,
        inputs=(x,),
        steps=1,
        limit=INT32_MAX,
        thresholds=standard if thresholds is None else thresholds,
        resets=resets,
        decay=0,
    )


def both(graph: IntegerGraph, images: np.ndarray, arrangement: str, runtime: str) -> None:
    pytest.importorskip(runtime)
    data = onnx_model(graph, arrangement, counts=True).SerializeToString()
    found = STARTS[runtime](data, 1)(images, None)
    names = [op.name for op in graph.neurons()]
    for name, value in graph.run_values(images, names)[0].items():
        assert np.array_equal(found[name], value), name
    for name, value in graph.real_outputs(images).items():
        assert np.abs(found[name] - value).max() <= 1e-6 * np.abs(value).max(), name


EVERYWHERE = pytest.mark.parametrize(
    ("arrangement", "runtime"),
    [(a, r) for a in ("onnxruntime", "openvino") for r in STARTS] + [("float", "onnxruntime")],
)


@EVERYWHERE
def test_sums_of_counts_grow_past_127_and_255(arrangement, runtime):
    """100, 200, 300, 600: from bytes that are safe in pairs to those that are not, to float32."""
    levels, factor = 100, 256
    ops: list[Op] = [scaled("u", "pixel", factor, 77), ielif("sum100", "u", levels)]
    for a, b in (("sum100", "sum100"), ("sum200", "sum100"), ("sum300", "sum300")):
        ops.append(CountAdd(name=f"sum{int(a[3:]) + int(b[3:])}", inputs=(a, b)))
    names = [op.name for op in ops[1:]]
    for name in names:
        codes = np.array([[[[-128]]], [[[127]]], [[[5]]]], np.int8)
        conv = Conv(
            name=f"{name} conv", inputs=(name,), codes=codes, bits=8, stride=1, padding=0, groups=1
        )
        real = scaled(f"{name} real", f"{name} conv", 64 * 16, 32768 + 8)
        real = dataclasses.replace(
            real, **{f: getattr(real, f).repeat(3) for f in ("multiplier", "shift", "bias")}
        )
        ops += [conv, real, ielif(f"{name} count", f"{name} real", 4)]
    ops.append(SpatialSum(name="total", inputs=("sum600",)))
    both(graph_of(*ops, outputs=(*names, "total")), PIXELS, arrangement, runtime)


@EVERYWHERE
def test_ties_go_to_the_even_count_where_thresholds_say_so(arrangement, runtime):
    """The neuron of E-SpikeFormer: round(clip(u, 0, 4)), halves to even; every tie is met."""
    up, _ = standard_neuron(FRACTION, 4)
    even = tuple(t + (k % 2 == 0) for k, t in enumerate(up))
    ops = (
        scaled("u", "pixel", 2**FRACTION // 64, -(2**FRACTION)),
        ielif("even", "u", 4, even),
        ielif("own", "u", 3, (-5, 0, 2**FRACTION + 1)),
    )
    both(graph_of(*ops, outputs=("u",)), PIXELS, arrangement, runtime)


@EVERYWHERE
def test_a_threshold_just_above_a_tie_stays_above_it_in_float32(arrangement, runtime):
    """2.5 and a unit of 2^-24 more are one number of float32, but two potentials."""
    fine = 24
    ups = [(2 * k - 1) << (fine - 1) for k in range(1, 5)]
    even = tuple(t + (k % 2 == 0) for k, t in enumerate(ups))
    ops = (
        dataclasses.replace(scaled("u", "pixel", 2**fine // 64), fraction=fine),
        ielif("even", "u", 4, even),
        LIF(name="lif", inputs=("u",), steps=1, limit=INT32_MAX, threshold=ups[2] + 1, leak=2**15),
    )
    both(graph_of(*ops, outputs=("u",)), PIXELS, arrangement, runtime)


@EVERYWHERE
@pytest.mark.parametrize("levels", [1, 4])
def test_ties_go_up_where_thresholds_say_so(arrangement, runtime, levels):
    """The mask of SDT v1 with IE-LIF: sums of counts times a power of two, many exactly half."""
    ops = (
        scaled("u", "pixel", 2**FRACTION // 64),
        ielif("up", "u", levels, standard_neuron(FRACTION, levels)[0]),
        Repeat(name="still", inputs=("pixel",), steps=2),
        scaled("v", "still", 2**FRACTION // 64),
        dataclasses.replace(
            ielif("again", "v", levels, standard_neuron(FRACTION, levels)[0]), steps=2
        ),
    )
    both(graph_of(*ops, outputs=("u", "v")), PIXELS, arrangement, runtime)


@EVERYWHERE
def test_the_or_neuron_of_sdt_v1_is_exact_over_time(arrangement, runtime):
    ops = (
        Repeat(name="still", inputs=("pixel",), steps=4),
        LIF(name="or", inputs=("still",), steps=4, limit=INT32_MAX, threshold=1, leak=2**15),
        LIF(name="slow", inputs=("still",), steps=4, limit=INT32_MAX, threshold=20, leak=2**13),
    )
    both(graph_of(*ops, outputs=("or", "slow")), PIXELS, arrangement, runtime)
