"""From the integer graph to a standard ONNX model whose convolutions run on integer kernels.

Input `pixels` uint8 (batch, C, H, W), normalised inside; output `logits` float32 (batch,
classes). Weights are int8 codes, biases of quantised convolutions int32, spike counts uint8.

- A convolution, its norm and a neuron are one quantised convolution (`onnx_thresholds.py`), with
  the very counts of the integer graph.
- A convolution of counts that feeds a membrane potential has an integer kernel with float32
  output. Runtimes find that in different shapes: ONNX Runtime fuses dequantised matrix products,
  OpenVINO dequantised convolutions. The arrangement says which one the model is written for; every
  arrangement gives the same counts in either runtime, only at another speed.
- Membrane potentials are float32. A convolution of real numbers (the stem; inside RepConv and
  SepConv as published) computes in float32 from int8 codes, which runtimes unpack when they load.
- Sums of counts above 255, products and reductions are float32 whole numbers, exact up to 2^24;
  further outputs (feature maps) are float32 (T * batch, C, H, W) under their names.
- A network of frames has `pixels` uint8 (T, batch, C, H, W).
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, get_args

import numpy as np

from qsdformer.errors import UserError
from qsdformer.files import atomic_path
from qsdformer.graph.check import check_graph
from qsdformer.graph.integer import IntegerGraph, Output
from qsdformer.graph.ops import (
    Add,
    Array,
    Attention,
    Concat,
    Conv,
    ConvTranspose,
    CountAdd,
    Frames,
    MaxPool,
    Multiply,
    Neuron,
    Normalise,
    Op,
    Repeat,
    Rescale,
    Reshape,
    SpatialMean,
    SpatialSum,
    TimeSum,
    Upsample,
)
from qsdformer.graph.simplify import without_repetitions
from qsdformer.runtimes.onnx_convs import ConvNodes, as_convolution
from qsdformer.runtimes.onnx_maps import MapNodes, channel_offsets
from qsdformer.runtimes.onnx_metadata import HeadFile, head_path, metadata, sign
from qsdformer.runtimes.onnx_neurons import NeuronNodes
from qsdformer.runtimes.onnx_nodes import FLOAT, INT64, UINT8, Nodes, Value, conv_shape
from qsdformer.runtimes.onnx_thresholds import factor_and_bias, often_ties
from qsdformer.runtimes.sessions import Arrangement

if TYPE_CHECKING:
    import onnx

PIXELS = "pixels"


def export_onnx(
    graph: IntegerGraph, path: str | os.PathLike[str], arrangement: Arrangement = "onnxruntime"
) -> list[Path]:
    """Write `graph` as an ONNX file, whole or not at all; `UserError` if that is not possible.

    An ONNX file holds one graph: those for regions become files beside it (`head_path`). None takes
    its place before all are written, and the first the last, so that a file never names others
    that are not there. Returns the files written.
    """
    heads: dict[str, HeadFile] = {}
    files: dict[Path, bytes] = {}
    for name, head in graph.heads.items():
        data = sign(onnx_model(head, arrangement).SerializeToString())
        files[head_path(path, name)] = data
        heads[name] = HeadFile(hashlib.sha256(data).hexdigest(), head.input_thresholds)
    whole = _translated(graph, arrangement).model(counts=False, heads=heads)
    files[Path(path)] = sign(whole.SerializeToString())
    with ExitStack() as stack:
        for file, data in reversed(files.items()):
            stack.enter_context(atomic_path(file)).write_bytes(data)
    return list(files)


def onnx_model(
    graph: IntegerGraph, arrangement: Arrangement = "onnxruntime", *, counts: bool = False
) -> onnx.ModelProto:
    """The ONNX model of `graph`, checked.

    With `counts`, every neuron's spike counts are outputs too, under the neuron's name:
    uint8 (T * batch, C, H, W).
    """
    return _translated(graph, arrangement).model(counts=counts)


def onnx_models(graph: IntegerGraph, arrangement: Arrangement) -> dict[bool, onnx.ModelProto]:
    """The models of `onnx_model` without and with counts, translated once."""
    translation = _translated(graph, arrangement)
    return {counts: translation.model(counts=counts) for counts in (False, True)}


def _translated(graph: IntegerGraph, arrangement: Arrangement) -> _Translation:
    if arrangement not in get_args(Arrangement):
        allowed = ", ".join(get_args(Arrangement))
        raise ValueError(f"arrangement={arrangement!r}: must be one of {allowed}")
    if PIXELS in {*(output.name for output in graph.outputs), *(op.name for op in graph.neurons())}:
        raise UserError(f"an ONNX file calls its images {PIXELS!r}: name that output otherwise")
    kept = {output.op for output in graph.results}
    graph = dataclasses.replace(graph, ops=without_repetitions(graph.ops, kept))
    translation = _Translation(graph, arrangement)
    for op in graph.ops:
        translation.translate(op)
    translation.finish()
    return translation


class _Translation:
    """Turns operations into nodes, in order.

    A convolution waits until its rescaling is known, and that until its neuron is.
    """

    def __init__(self, graph: IntegerGraph, arrangement: Arrangement) -> None:
        self.graph = graph
        self.quantised = arrangement != "float"
        products = arrangement == "onnxruntime"  # sums for membranes as matrix products
        self.nodes = Nodes()
        self.neurons = NeuronNodes(nodes=self.nodes, quantised=self.quantised, clip_bytes=products)
        self.convs = ConvNodes(nodes=self.nodes, quantised=self.quantised, products=products)
        self.maps = MapNodes(
            nodes=self.nodes, quantised=self.quantised, layout="NHWC" if products else "NCHW"
        )
        self.values: dict[str, Value] = {}
        self.results: dict[str, tuple[int, list[str | int]]] = {}  # type and shape by name
        self.ops = {op.name: op for op in graph.ops}
        self.uses = Counter(name for op in graph.ops for name in op.inputs)
        self.uses.update(output.op for output in graph.results)

    def translate(self, op: Op) -> None:
        """Add the nodes of `op`, or leave that to the one that reads it."""
        if isinstance(op, (Conv, ConvTranspose)):
            return
        if isinstance(op, Rescale):
            if self._readers(op, Neuron) and self.uses[op.name] == 1:
                return
            self.values[op.name] = self._rescaled(op)
        elif isinstance(op, Neuron):
            self.values[op.name] = self._neuron(op)
        elif isinstance(op, Normalise):
            self.values[op.name] = self._normalised(op)
        else:
            inputs = [self._value(name) for name in op.inputs]
            self.values[op.name] = self._mapped(op, *inputs)

    def finish(self) -> None:
        """Name the results, once every operation is translated."""
        shapes = check_graph(self.graph)
        if self.graph.class_names:
            classes = len(self.graph.class_names)
            self._named("logits", "Flatten", self.values[self.graph.ops[-1].name].name)
            self.results["logits"] = (FLOAT, ["batch", classes])
        for output in self.graph.outputs:
            value = self._real_output(output)
            self._named(output.name, "Identity", self.nodes.to(value, "NCHW"))
            over_time = shapes[output.op].steps
            batch = f"{over_time}*batch" if over_time > 1 else "batch"
            self.results[output.name] = (FLOAT, [batch, *value.shape])

    def model(
        self, *, counts: bool, heads: Mapping[str, HeadFile] | None = None
    ) -> onnx.ModelProto:
        """The finished model; one with counts is asked for last, as their nodes are added to it."""
        pre, steps = self.graph.preprocessing, self.graph.time_steps
        outputs = dict(self.results)
        for op in self.graph.neurons() if counts else ():
            value = self.values[op.name]
            kind = UINT8 if self.quantised else FLOAT
            self._named(op.name, "Identity", self.nodes.to(value, "NCHW"))
            outputs[op.name] = (kind, [f"{steps}*batch", *value.shape])
        pixels: list[str | int] = ["batch", pre.channels, *pre.sides]
        if self.graph.takes_frames:
            pixels.insert(0, steps)
        return self.nodes.model({PIXELS: (UINT8, pixels)}, outputs, metadata(self.graph, heads))

    def _named(self, output: str, kind: str, value: str) -> None:
        self.nodes.add(kind, value)
        self.nodes.nodes[-1].output[0] = output

    def _real_output(self, output: Output) -> Value:
        x = self._value(output.op)
        factor = np.broadcast_to(np.array(output.scale) / x.unit, x.shape[0])
        name = self.maps.real(x)
        if (factor != 1).any():
            name = self.nodes.add("Mul", name, self.nodes.per_channel(factor, x.layout))
        return dataclasses.replace(x, name=name)

    def _readers(self, op: Op, kind: type[Op]) -> bool:
        return any(isinstance(o, kind) and op.name in o.inputs for o in self.graph.ops)

    def _value(self, name: str) -> Value:
        """The tensor of an operation, made now if it waited."""
        if name not in self.values:
            op = self.ops[name]
            if isinstance(op, (Conv, ConvTranspose)):  # sums that are read as they are
                one = np.ones(len(as_convolution(op).codes))
                self.values[name] = self._conv(op, one, 0 * one)
            else:
                assert isinstance(op, Rescale)
                self.values[name] = self._rescaled(op)
        return self.values[name]

    def _normalised(self, op: Normalise) -> Value:
        pre = self.graph.preprocessing
        mean, std = np.array(pre.mean), np.array(pre.std)
        shape = (pre.channels, *pre.sides)
        unit = 2.0**-op.fraction
        x = PIXELS
        if self.graph.takes_frames:
            x = self.nodes.add("Reshape", x, self.nodes.integers(-1, *shape))
        line = (np.arange(256) / 255 - mean[:, None]) / std[:, None]
        if np.abs(line - op.table * unit).max() > unit:  # not the pixels normalised: look it up
            x = self.nodes.add("Cast", x, to=INT64)
            x = self.nodes.add("Add", x, self.nodes.constant(channel_offsets(pre.channels)))
            x = self.nodes.add("Gather", self.nodes.reals(op.table.reshape(-1) * unit), x)
            return Value(name=x, layout="NCHW", shape=shape, unit=unit)
        x = self.nodes.add("Cast", x, to=FLOAT)
        # Without effect on values. It keeps OpenVINO from taking this for a quantised input, whose
        # zero point it would round.
        x = self.nodes.add("Clip", x, self.nodes.reals(0.0), self.nodes.reals(255.0))
        x = self.nodes.add("Mul", x, self.nodes.per_channel(1 / (255 * std), "NCHW"))
        x = self.nodes.add("Add", x, self.nodes.per_channel(-mean / std, "NCHW"))
        return Value(name=x, layout="NCHW", shape=shape, unit=unit)

    def _rescaled(self, op: Rescale) -> Value:
        """Real numbers: the convolution with its norm, or any other value times a factor."""
        factor, bias = factor_and_bias(op)
        before = self.ops[op.inputs[0]]
        if isinstance(before, (Conv, ConvTranspose)):
            y = self._conv(before, factor, bias)
        else:
            x = self._value(op.inputs[0])
            factors = self.nodes.per_channel(factor / x.unit, x.layout)
            name = self.nodes.add("Mul", self.maps.real(x), factors)
            name = self.nodes.add("Add", name, self.nodes.per_channel(bias, x.layout))
            y = dataclasses.replace(x, name=name)
        return dataclasses.replace(y, unit=2.0**-op.fraction, levels=None)

    def _conv(self, op: Conv | ConvTranspose, factor: Array, bias: Array) -> Value:
        """factor * convolution + bias as real numbers."""
        conv = as_convolution(op)
        times = len(conv.codes) // len(factor)
        factor, bias = factor.repeat(times), bias.repeat(times)
        y = self.convs.real(conv, self._value(op.inputs[0]), factor, bias)
        return self.maps.squares(y) if isinstance(op, ConvTranspose) else y

    def _neuron(self, op: Neuron) -> Value:
        before = self.ops[op.inputs[0]]
        if isinstance(before, Rescale) and op.inputs[0] not in self.values:
            fused = self._fused(op, before)
            if fused is not None:
                return fused
        x = self._value(op.inputs[0])
        potential = self.maps.real(x)
        made = self.neurons.counts if op.steps == 1 else self.neurons.over_time
        name = made(op, potential, x.unit, ties=often_ties(before))
        return dataclasses.replace(x, name=name, unit=1.0, levels=op.levels)

    def _fused(self, op: Neuron, rescale: Rescale) -> Value | None:
        """Convolution, norm and neuron as one; None where they are not of that kind."""
        conv = self.ops[rescale.inputs[0]]
        if op.steps > 1 or not isinstance(conv, Conv):
            return None
        x = self._value(conv.inputs[0])
        name = self.convs.fused(conv, rescale, op, x)
        if name is None:
            return None
        name = self.neurons.of_levels(name, op.levels)
        return Value(name=name, layout="NCHW", shape=conv_shape(conv, x), levels=op.levels)

    def _mapped(self, op: Op, *x: Value) -> Value:
        """An operation of values that are made already."""
        maps = self.maps
        if isinstance(op, Repeat):
            name = self.nodes.add("Tile", x[0].name, self.nodes.integers(op.steps, 1, 1, 1))
            return dataclasses.replace(x[0], name=name)
        if isinstance(op, Attention):
            return maps.attention(op, *x)
        if isinstance(op, Concat):
            return maps.concat(x)
        if isinstance(op, MaxPool):
            return maps.pool(op, x[0])
        if isinstance(op, Upsample):
            return maps.upsample(op, x[0])
        if isinstance(op, Reshape):
            return maps.reshape(op, x[0])
        if isinstance(op, TimeSum):
            return maps.time_sum(op.steps, x[0])
        simple: dict[type[Op], Callable[..., Value]] = {
            Add: maps.add,
            CountAdd: maps.add_counts,
            Multiply: maps.multiply,
            SpatialMean: maps.mean,
            SpatialSum: maps.total,
            Frames: lambda frames: frames,  # pixels have their time axis folded in
        }
        return simple[type(op)](*x)
