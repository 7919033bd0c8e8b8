"""Small graphs by hand, of shapes that networks seldom have, in the native engine."""

from __future__ import annotations

import ctypes
import dataclasses
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from graph.test_artifact import NO_NAMES, PLACES, misnamed
from torch import Tensor, nn

import qsdformer as qsd
from qsdformer.data.base import DataInfo
from qsdformer.data.preprocessing import Preprocessing
from qsdformer.errors import UserError
from qsdformer.graph.artifact import to_bytes
from qsdformer.graph.check import check_graph
from qsdformer.graph.integer import IntegerGraph, Output
from qsdformer.graph.ops import (
    IELIF,
    INT32_MAX,
    Add,
    Conv,
    Multiply,
    Normalise,
    Op,
    Repeat,
    Rescale,
    SpatialSum,
    TimeSum,
)
from qsdformer.nn import LIF, QuantConv2d, QuantLinear, TimeInput, TimeMean
from qsdformer.runtimes import native
from runtimes.test_native import assert_same, noise

pytestmark = pytest.mark.skipif(not native.available(), reason="the native engine was not built")


def table(channels: int = 3) -> Normalise:
    values = np.random.default_rng(1).integers(-300, 300, (channels, 256)).astype(np.int32)
    return Normalise(name="table", inputs=(), table=values, fraction=0)


def conv(name: str, x: str, codes: tuple[int, int, int], groups: int = 1) -> Conv:
    """A convolution that keeps the sides; `codes` are its outputs, inputs and kernel."""
    out, inputs, kernel = codes
    shape = (out, inputs // groups, kernel, kernel)
    values = np.random.default_rng(len(name)).integers(-8, 8, shape).astype(np.int8)
    fields = {"stride": 1, "padding": kernel // 2, "groups": groups, "bits": 4}
    return Conv(name=name, inputs=(x,), codes=values, **fields)


def scaled(name: str, x: str, channels: int, factor: int = 1) -> Rescale:
    multiplier, none = np.full(channels, factor, np.int64), np.zeros(channels, np.int64)
    fields = {"multiplier": multiplier, "shift": none.astype(np.int8), "bias": none}
    return Rescale(name=name, inputs=(x,), **fields, limit=INT32_MAX, fraction=0)


def spikes(name: str, x: str, steps: int = 1) -> IELIF:
    fields = {"thresholds": (93, 193, 293, 393), "resets": (0, 100, 200, 300, 400)}
    return IELIF(name=name, inputs=(x,), **fields, steps=steps, decay=2**14, limit=INT32_MAX)


def graph_of(
    ops: Sequence[Op], size: int, channels: int, outputs: Sequence[str], classes: str = ""
) -> IntegerGraph:
    """A graph whose `outputs` are called after the operations whose values they are."""
    pre = Preprocessing(
        image_size=size,
        channels=channels,
        mean=(0.5,) * channels,
        std=(0.5,) * channels,
        interpolation="bilinear",
        crop_pct=1.0,
    )
    graph = IntegerGraph(
        ops=tuple(ops),
        preprocessing=pre,
        class_names=tuple(classes),
        config={},
        membrane_bits=32,
        membrane_fraction=16,
        outputs=tuple(Output(name=f"of {op}", op=op, scale=(1.0,)) for op in outputs),
    )
    check_graph(graph)
    return graph


class Grey(nn.Module):
    """A network of images whose first convolution follows the repeat."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.input, self.mean = TimeInput(2, channels), TimeMean(2)
        self.stem = QuantConv2d(channels, 16, 3, padding=1, bits=4)
        self.neuron, self.head = LIF(2, threshold=0.2), QuantLinear(16, 10, bits=8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.neuron(self.stem(self.input(x)))
        return self.mean(self.head(x.mean(dim=(2, 3))))


@pytest.mark.parametrize("channels", [1, 3])
def test_an_image_network_takes_pixels_and_frames(isa: str, channels: int, tmp_path):
    torch.manual_seed(0)
    info = DataInfo(
        image_size=16,
        channels=channels,
        class_names=tuple("abcdefghij"),
        mean=(0.5,) * channels,
        std=(0.25,) * channels,
    )
    qsd.export(Grey(channels).eval(), tmp_path / "model.qsd", info=info)
    graph = qsd.load(tmp_path / "model.qsd").reference
    assert_same(graph, noise(3, channels, 16, 16))
    assert_same(graph, noise(2, 3, channels, 16, 16))


def test_a_convolution_that_nothing_reads_is_harmless(isa: str):
    ops = [
        table(),
        conv("stem", "table", (16, 3, 3)),
        scaled("potential", "stem", 16),
        spikes("first", "potential"),
        conv("unread", "first", (16, 16, 3)),
        conv("window", "first", (16, 16, 3)),
        scaled("end", "window", 16),
    ]
    assert_same(graph_of(ops, 6, 3, ["end"]), noise(2, 3, 6, 6))


def test_what_is_stored_as_bytes_is_found_in_one_pass():
    """Every product reads the one before twice: 2^60 ways lead back to the neuron."""
    first = IELIF(
        name="x0",
        inputs=("table",),
        thresholds=(1,),
        resets=(0, 1),
        steps=1,
        decay=0,
        limit=INT32_MAX,
    )
    ops = [table(1), first]
    ops += [Multiply(name=f"x{i + 1}", inputs=(f"x{i}", f"x{i}")) for i in range(60)]
    assert_same(graph_of(ops, 4, 1, ["x60"]), noise(2, 1, 4, 4))


@pytest.mark.parametrize("place", PLACES)
def test_a_name_that_c_or_utf_8_cannot_hold_is_refused(small_graph: IntegerGraph, place: str):
    for name in NO_NAMES:
        with pytest.raises(UserError, match="has a zero byte or half a character in its name"):
            native.NativeModel(misnamed(small_graph, place, name))
    for name in ("caf\xe9", "\U0001f408"):
        model = native.NativeModel(misnamed(small_graph, place, name))
        found, counts = model.run_results(noise(1, 3, 32, 32))
        assert place != "output" or name in found
        assert len(counts) == model.info.neurons


def logits_past_the_repeat() -> IntegerGraph:
    ops = [
        table(),
        Repeat(name="repeat", inputs=("table",), steps=4),
        spikes("spikes", "repeat", steps=4),
        SpatialSum(name="pixels", inputs=("table",)),
        scaled("logits", "pixels", 3),
    ]
    return graph_of(ops, 6, 3, ["spikes"], classes="abc")


def values_before_and_after_time() -> IntegerGraph:
    ops = [
        table(),
        conv("stem", "table", (4, 3, 3)),
        scaled("potential", "stem", 4),
        Repeat(name="repeat", inputs=("potential",), steps=2),
        spikes("spikes", "repeat", steps=2),
        TimeSum(name="sum", inputs=("spikes",), steps=2),
        Add(name="end", inputs=("sum", "potential"), limit=INT32_MAX),
    ]
    return graph_of(ops, 6, 3, ["end"])


@pytest.mark.parametrize("made", [logits_past_the_repeat, values_before_and_after_time])
@pytest.mark.parametrize("batch", [1, 4])
def test_frames_are_refused_where_time_does_not_fit_together(made, batch: int):
    graph = made()
    frames = noise(graph.time_steps, batch, 3, 6, 6)
    assert_same(graph, noise(batch, 3, 6, 6))
    model = native.of_graph(graph)
    for run in (graph.run_outputs, graph.check_images, model.run_outputs, model):
        with pytest.raises(UserError, match="does not take a frame for each time step"):
            run(frames)
    model.run_outputs(noise(batch, 3, 6, 6))  # and nothing is broken


def test_the_interface_says_that_frames_are_not_taken():
    """No message where loading succeeds, a status where there is nothing to describe."""
    data, library = to_bytes(logits_past_the_repeat()), native.library()
    loaded, message = native.Pointer(), ctypes.create_string_buffer(b"old", 100)
    place = (ctypes.byref(loaded), message, len(message))
    assert library.qsd_load(data, len(data), None, *place) == 0
    assert message.value == b""
    value, found = native._Value(), np.full(64, -1, np.int32)
    for describe in (library.qsd_output, library.qsd_neuron):
        assert describe(loaded, 0, 0, ctypes.byref(value)) == 0
        assert describe(loaded, 0, 1, ctypes.byref(value)) == 4
    frames = noise(4, 2, 3, 6, 6)
    arguments = (frames.ctypes.data, 2, 1, found.ctypes.data, None, None, message, len(message))
    assert library.qsd_run(loaded, *arguments) == 4
    assert (found == -1).all()
    library.qsd_free(loaded)


def test_the_most_memory_bounds_the_description_and_the_plans_together():
    ops = [table(), conv("stem", "table", (16, 3, 3)), scaled("end", "stem", 16)]
    graph = graph_of(ops, 512, 3, ["end"])
    info = native.of_graph(graph).info
    most = info.weight_bytes + info.scratch_bytes + 2**20

    def status(config: dict[str, object]) -> int:
        data = to_bytes(dataclasses.replace(graph, config=config))
        library, loaded = native.library(), native.Pointer()
        options = native._Options(1, None, most)
        place = (ctypes.byref(options), ctypes.byref(loaded), None, 0)
        found = library.qsd_load(data, len(data), *place)
        library.qsd_free(loaded)
        return found

    assert status({}) == 0
    assert status({"long": [0] * 100_000}) == native.TOO_LARGE  # some 10 MB, of which it may have 1


@pytest.mark.parametrize("size", [14, 15, 33])
@pytest.mark.parametrize("kernel", [3, 7])
def test_depthwise_rows_with_a_shortcut_of_bytes(isa: str, kernel: int, size: int):
    """Spikes as a shortcut: rows wider than a tile are then done piece by piece."""
    ops = [
        table(),
        conv("stem", "table", (16, 3, 3)),
        scaled("potential", "stem", 16),
        spikes("first", "potential"),
        conv("depthwise", "first", (16, 16, kernel), groups=16),
        scaled("made", "depthwise", 16, factor=3),
        Add(name="end", inputs=("made", "first"), limit=INT32_MAX),
        spikes("last", "end"),
    ]
    assert_same(graph_of(ops, size, 3, ["end"]), noise(1, 3, size, size))


@pytest.mark.parametrize("width", [64, 80])
def test_frames_divide_channels_otherwise_than_pixels(isa: str, width: int):
    """A 1x1 convolution on a narrow map is one row where its value has no border.

    With frames the repeat makes no copy, and what reads it wants a border of that value itself.
    """
    ops = [
        table(),
        conv("stem", "table", (64, 3, 3)),
        scaled("potential", "stem", 64),
        spikes("first", "potential"),
        conv("point", "first", (width, 64, 1)),
        scaled("made", "point", width),
        Repeat(name="repeat", inputs=("made",), steps=2),
        conv("window", "repeat", (16, width, 3)),
        scaled("end", "window", 16),
        TimeSum(name="sum", inputs=("end",), steps=2),
    ]
    graph = graph_of(ops, 6, 3, ["sum"])
    assert_same(graph, noise(2, 3, 6, 6))
    assert_same(graph, noise(2, 2, 3, 6, 6))


def test_a_shortcut_beyond_32_bits_saturates() -> None:
    values = np.full((1, 256), 1_500_000_000, np.int32)
    values[:, 128:] *= -1
    ops = [
        dataclasses.replace(table(1), table=values),
        scaled("a", "table", 1),
        scaled("b", "table", 1),
        Add(name="end", inputs=("a", "b"), limit=INT32_MAX),
    ]
    graph, pixels = graph_of(ops, 8, 1, ["end"]), noise(2, 1, 8, 8)
    expected = np.where(pixels < 128, INT32_MAX, -INT32_MAX)
    found = graph.run_outputs(pixels)
    assert np.array_equal(next(iter(found.values())), expected)
    assert_same(graph, pixels)
