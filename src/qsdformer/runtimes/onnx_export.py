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
"""

from __future__ import annotations

import dataclasses
import os
from collections import Counter
from typing import TYPE_CHECKING, get_args

import numpy as np

from qsdformer.files import atomic_path
from qsdformer.graph.integer import IntegerGraph
from qsdformer.graph.ops import (
    IELIF,
    Add,
    Array,
    Attention,
    Conv,
    Neuron,
    Normalise,
    Op,
    Repeat,
    Rescale,
    SpatialMean,
    TimeSum,
)
from qsdformer.graph.simplify import without_repetitions
from qsdformer.runtimes.onnx_metadata import metadata
from qsdformer.runtimes.onnx_neurons import NeuronNodes
from qsdformer.runtimes.onnx_nodes import FLOAT, UINT8, Nodes, Value, conv_attributes, conv_shape
from qsdformer.runtimes.onnx_thresholds import factor_and_bias, membrane_thresholds, threshold_conv
from qsdformer.runtimes.sessions import Arrangement

if TYPE_CHECKING:
    import onnx

MAX_BYTE = 255


def export_onnx(
    graph: IntegerGraph, path: str | os.PathLike[str], arrangement: Arrangement = "onnxruntime"
) -> None:
    """Write `graph` as an ONNX file, whole or not at all; `UserError` if that is not possible."""
    data = onnx_model(graph, arrangement).SerializeToString()
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)


def onnx_model(
    graph: IntegerGraph, arrangement: Arrangement = "onnxruntime", *, counts: bool = False
) -> onnx.ModelProto:
    """The ONNX model of `graph`, checked.

    With `counts`, every neuron's spike counts are outputs too, under the neuron's name:
    uint8 (T * batch, C, H, W).
    """
    if arrangement not in get_args(Arrangement):
        allowed = ", ".join(get_args(Arrangement))
        raise ValueError(f"arrangement={arrangement!r}: must be one of {allowed}")
    graph = dataclasses.replace(graph, ops=without_repetitions(graph.ops))
    translation = _Translation(graph, arrangement)
    for op in graph.ops:
        translation.translate(op)
    return translation.finish(counts)


class _Translation:
    """Turns operations into nodes, in order.

    A convolution waits until its rescaling is known, and that until its neuron is.
    """

    def __init__(self, graph: IntegerGraph, arrangement: Arrangement) -> None:
        self.graph = graph
        self.quantised = arrangement != "float"
        self.products = arrangement == "onnxruntime"  # sums for membranes as matrix products
        self.membranes = "NHWC" if self.products else "NCHW"
        self.nodes = Nodes()
        self.neurons = NeuronNodes(
            nodes=self.nodes,
            quantised=self.quantised,
            clip_bytes=self.products,
            fraction=graph.membrane_fraction,
        )
        self.values: dict[str, Value] = {}
        self.ops = {op.name: op for op in graph.ops}
        self.uses = Counter(name for op in graph.ops for name in op.inputs)

    def translate(self, op: Op) -> None:
        """Add the nodes of `op`, or leave that to the one that reads it."""
        if isinstance(op, Conv):
            return
        if isinstance(op, Rescale):
            if self._readers(op, Neuron) and self.uses[op.name] == 1:
                return
            self.values[op.name] = self._rescaled(op)
        elif isinstance(op, Neuron):
            self.values[op.name] = self._neuron(op)
        elif isinstance(op, Normalise):
            self.values[op.name] = self._normalised(op)
        elif isinstance(op, Add):
            self.values[op.name] = self._sum(op)
        elif isinstance(op, Attention):
            self.values[op.name] = self._attention(op)
        elif isinstance(op, SpatialMean):
            self.values[op.name] = self._mean(op)
        elif isinstance(op, Repeat):
            x = self._value(op.inputs[0])
            name = self.nodes.add("Tile", x.name, self.nodes.integers(op.steps, 1, 1, 1))
            self.values[op.name] = dataclasses.replace(x, name=name)
        elif isinstance(op, TimeSum):
            self.values[op.name] = self._time_sum(op)
        else:
            raise AssertionError(f"{type(op).__name__} has no translation")

    def finish(self, counts: bool) -> onnx.ModelProto:
        """The model, once every operation is translated."""
        pre = self.graph.preprocessing
        classes = len(self.graph.class_names)
        last = self.values[self.graph.ops[-1].name]
        self.nodes.add("Flatten", last.name)
        self.nodes.nodes[-1].output[0] = "logits"
        outputs: dict[str, tuple[int, list[str | int]]] = {"logits": (FLOAT, ["batch", classes])}
        for op in self.graph.neurons() if counts else ():
            value = self.values[op.name]
            name = self.nodes.to(value, "NCHW")
            kind = UINT8 if self.quantised else FLOAT
            self.nodes.add("Identity", name)
            self.nodes.nodes[-1].output[0] = op.name
            outputs[op.name] = (kind, [f"{self.graph.time_steps}*batch", *value.shape])
        size = pre.image_size
        return self.nodes.model(
            {"pixels": (UINT8, ["batch", pre.channels, size, size])}, outputs, metadata(self.graph)
        )

    def _readers(self, op: Op, kind: type[Op]) -> bool:
        return any(isinstance(o, kind) and op.name in o.inputs for o in self.graph.ops)

    def _value(self, name: str) -> Value:
        """The tensor of an operation, made now if it waited."""
        if name not in self.values:
            op = self.ops[name]
            if isinstance(op, Conv):  # sums that another convolution reads as they are
                one = np.ones(len(op.codes))
                self.values[name] = self._conv(op, one, 0 * one)
            else:
                assert isinstance(op, Rescale)
                self.values[name] = self._rescaled(op)
        return self.values[name]

    def _normalised(self, op: Normalise) -> Value:
        pre = self.graph.preprocessing
        mean, std = np.array(pre.mean), np.array(pre.std)
        x = self.nodes.add("Cast", "pixels", to=FLOAT)
        # Without effect on values. It keeps OpenVINO from taking this for a quantised input, whose
        # zero point it would round.
        x = self.nodes.add("Clip", x, self.nodes.reals(0.0), self.nodes.reals(255.0))
        x = self.nodes.add("Mul", x, self.nodes.per_channel(1 / (255 * std), "NCHW"))
        x = self.nodes.add("Add", x, self.nodes.per_channel(-mean / std, "NCHW"))
        shape = (pre.channels, pre.image_size, pre.image_size)
        return Value(name=x, layout="NCHW", shape=shape, unit=2.0**-op.fraction)

    def _rescaled(self, op: Rescale) -> Value:
        """Real numbers: the convolution with its norm, or any other value times a factor."""
        factor, bias = factor_and_bias(op)
        before = self.ops[op.inputs[0]]
        if isinstance(before, Conv):
            y = self._conv(before, factor, bias)
        else:
            x = self._value(op.inputs[0])
            name = self.nodes.add("Mul", x.name, self.nodes.per_channel(factor / x.unit, x.layout))
            name = self.nodes.add("Add", name, self.nodes.per_channel(bias, x.layout))
            y = dataclasses.replace(x, name=name)
        return dataclasses.replace(y, unit=2.0**-op.fraction, levels=None)

    def _conv(self, op: Conv, factor: Array, bias: Array) -> Value:
        """factor * convolution + bias as real numbers."""
        x = self._value(op.inputs[0])
        flip = np.where(factor < 0, -1, 1)
        # A code of -128 has no opposite: such a channel keeps its negative scale.
        flip = np.where((op.codes == -128).any(axis=(1, 2, 3)), 1, flip)
        codes = (op.codes * flip.reshape(-1, 1, 1, 1)).astype(np.int8)
        scale = factor * flip / x.unit
        shape = conv_shape(op, x)
        if x.levels is not None and self.quantised and op.groups == 1 and self.products:
            name = self._product(op, x, codes, scale, shape)
            layout = "NHWC"
        elif x.levels is not None and self.quantised and not self.products:
            name = self.nodes.add(
                "Conv",
                self._dequantised(self.nodes.to(x, "NCHW")),
                self._weights(codes, scale, axis=0),
                **conv_attributes(op),
            )
            layout = "NCHW"
        else:
            name, bias = self._float_conv(op, x, codes, scale, bias), 0 * bias
            layout = "NCHW"
        if bias.any():
            name = self.nodes.add("Add", name, self.nodes.per_channel(bias, layout))
        return Value(name=name, layout=layout, shape=shape)

    def _float_conv(self, op: Conv, x: Value, codes: Array, scale: Array, bias: Array) -> str:
        """A convolution in float32; its codes become weights when a runtime loads the model."""
        factors = scale.reshape(-1, 1, 1, 1)
        name = self.nodes.to(x, "NCHW")
        if self.quantised:
            if x.levels is not None:
                name = self.nodes.add("Cast", name, to=FLOAT)
            weights = self.nodes.add("Cast", self.nodes.constant(codes), to=FLOAT)
            weights = self.nodes.add("Mul", weights, self.nodes.reals(factors))
        else:
            weights = self.nodes.reals(codes * factors)
        return self.nodes.add("Conv", name, weights, self.nodes.reals(bias), **conv_attributes(op))

    def _product(
        self, op: Conv, x: Value, codes: Array, scale: Array, shape: tuple[int, int, int]
    ) -> str:
        """The convolution as a matrix product of gathered windows, channels last."""
        columns = self.nodes.to(x, "NHWC")
        kernel = op.codes.shape[-1]
        if kernel > 1 or op.stride > 1:
            columns = self._windows(op, columns, shape)
        matrix = codes.transpose(2, 3, 1, 0).reshape(-1, len(codes))
        return self.nodes.add(
            "MatMul", self._dequantised(columns), self._weights(matrix, scale, axis=1)
        )

    def _windows(self, op: Conv, name: str, shape: tuple[int, int, int]) -> str:
        """(B, H, W, C) counts to (B, H', W', k*k*C): what each output pixel sees."""
        kernel, p, stride = op.codes.shape[-1], op.padding, op.stride
        if p:
            pads = self.nodes.integers(0, p, p, 0, 0, p, p, 0)
            name = self.nodes.add("Pad", name, pads, self.nodes.constant(np.uint8(0)))
        axes, steps = self.nodes.integers(1, 2), self.nodes.integers(stride, stride)
        ends = [(size - 1) * stride + 1 for size in shape[1:]]
        parts = [
            self.nodes.add(
                "Slice",
                name,
                self.nodes.integers(i, j),
                self.nodes.integers(i + ends[0], j + ends[1]),
                axes,
                steps,
            )
            for i in range(kernel)
            for j in range(kernel)
        ]
        return parts[0] if len(parts) == 1 else self.nodes.add("Concat", *parts, axis=3)

    def _dequantised(self, counts: str) -> str:
        """Counts as real numbers of the same value."""
        zero = self.nodes.constant(np.uint8(0))
        return self.nodes.add("DequantizeLinear", counts, self.nodes.reals(1.0), zero)

    def _weights(self, codes: Array, scale: Array, axis: int) -> str:
        zeros = self.nodes.constant(np.zeros(len(scale), codes.dtype))
        name = self.nodes.constant(codes)
        return self.nodes.add("DequantizeLinear", name, self.nodes.reals(scale), zeros, axis=axis)

    def _neuron(self, op: Neuron) -> Value:
        before = self.ops[op.inputs[0]]
        if isinstance(before, Rescale) and op.inputs[0] not in self.values:
            fused = self._fused(op, before)
            if fused is not None:
                return fused
        x = self._value(op.inputs[0])
        if op.steps == 1:
            name = self.neurons.counts(op, x.name)
        else:
            name = self.neurons.over_time(op, x.name)
        return dataclasses.replace(x, name=name, unit=1.0, levels=op.levels)

    def _fused(self, op: Neuron, rescale: Rescale) -> Value | None:
        """Convolution, norm and neuron as one; None where they are not of that kind."""
        conv = self.ops[rescale.inputs[0]]
        if op.steps > 1 or not isinstance(conv, Conv):
            return None
        x = self._value(conv.inputs[0])
        shape = conv_shape(conv, x)
        if not self.quantised:
            return self._fused_float(op, rescale, conv, shape)
        if x.levels is None:
            return None
        made = threshold_conv(conv, rescale, op, x.levels)
        scale = made.scale.astype(np.float32)
        zeros = self.nodes.constant(np.zeros(len(scale), np.int32))
        bias = self.nodes.add(
            "DequantizeLinear",
            self.nodes.constant(made.bias),
            self.nodes.constant(scale),
            zeros,
            axis=0,
        )
        name = self.nodes.add(
            "Conv",
            self._dequantised(self.nodes.to(x, "NCHW")),
            self._weights(made.codes, scale, axis=0),
            bias,
            **conv_attributes(conv),
        )
        name = self.neurons.rounded(name, op.levels)
        return Value(name=name, layout="NCHW", shape=shape, levels=op.levels)

    def _fused_float(
        self, op: Neuron, rescale: Rescale, conv: Conv, shape: tuple[int, int, int]
    ) -> Value:
        """The same in float32: floor(clip(D*u + 1/2, 0, D + 1/2)), the factor in the weights."""
        factor, bias = factor_and_bias(rescale)
        thresholds = np.array(membrane_thresholds(op)) * 2.0**-rescale.fraction
        per_level = _per_level(op)
        offset = 1.0 - thresholds[0] * per_level
        y = self._conv(conv, factor * per_level, bias * per_level + offset)
        name = self.nodes.add("Clip", y.name, *map(self.nodes.reals, (0.0, op.levels + 0.5)))
        name = self.nodes.add("Floor", name)
        return Value(name=name, layout="NCHW", shape=shape, levels=op.levels)

    def _sum(self, op: Add) -> Value:
        a, b = (self._value(name) for name in op.inputs)
        layout = self.membranes
        name = self.nodes.add("Add", self.nodes.to(a, layout), self.nodes.to(b, layout))
        return dataclasses.replace(a, name=name, layout=layout)

    def _attention(self, op: Attention) -> Value:
        """q (k^T v) in float32: whole numbers, exact up to 2^24; h heads of d channels, N tokens.

        Channels first, the heads are (B, h, d, N) and the product is (v^T k) q^T; channels last
        they are (B, N, h, d).
        """
        channels, height, width = self._value(op.inputs[0]).shape
        tokens, heads, depth = height * width, op.heads, channels // op.heads
        if self.membranes == "NCHW":
            q, k, v = (self._heads(n, "NCHW", (heads, depth, tokens)) for n in op.inputs)
            k = self.nodes.add("Transpose", k, perm=[0, 1, 3, 2])
            y = self.nodes.add("MatMul", self.nodes.add("MatMul", v, k), q)
            shape = self.nodes.integers(0, channels, height, width)
        else:
            q, k, v = (self._heads(n, "NHWC", (tokens, heads, depth)) for n in op.inputs)
            q, v = (self.nodes.add("Transpose", x, perm=[0, 2, 1, 3]) for x in (q, v))
            k = self.nodes.add("Transpose", k, perm=[0, 2, 3, 1])
            y = self.nodes.add("MatMul", q, self.nodes.add("MatMul", k, v))
            y = self.nodes.add("Transpose", y, perm=[0, 2, 1, 3])
            shape = self.nodes.integers(0, height, width, channels)
        name = self.nodes.add("Reshape", y, shape)
        return Value(name=name, layout=self.membranes, shape=(channels, height, width))

    def _heads(self, name: str, layout: str, shape: tuple[int, int, int]) -> str:
        """Spike counts as float32 (B, *shape)."""
        x = self.nodes.to(self._value(name), layout)
        x = self.nodes.add("Reshape", x, self.nodes.integers(0, *shape))
        return self.nodes.add("Cast", x, to=FLOAT) if self.quantised else x

    def _mean(self, op: SpatialMean) -> Value:
        x = self._value(op.inputs[0])
        axes = self.nodes.integers(*((2, 3) if x.layout == "NCHW" else (1, 2)))
        name = self.nodes.add("ReduceMean", x.name, axes, keepdims=1)
        return dataclasses.replace(x, name=name, shape=(x.shape[0], 1, 1))

    def _time_sum(self, op: TimeSum) -> Value:
        x = self._value(op.inputs[0])
        assert x.levels is not None
        levels = x.levels * op.steps
        name = self.nodes.add("Cast", x.name, to=FLOAT) if self.quantised else x.name
        name = self.nodes.add("Sum", *self.nodes.split(name, op.steps))
        if levels > MAX_BYTE:
            return dataclasses.replace(x, name=name, levels=None)
        if self.quantised:
            name = self.nodes.add("Cast", name, to=UINT8)
        return dataclasses.replace(x, name=name, levels=levels)


def _per_level(op: Neuron) -> float:
    """What a membrane potential is multiplied with so that one more unit is one more count."""
    return float(op.levels) if isinstance(op, IELIF) else 1.0
