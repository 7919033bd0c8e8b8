"""Pools, sums, joins and changes of shape as ONNX nodes.

A value with `levels` holds counts, in bytes where the model is quantised; everything else is
float32, in which whole numbers are exact up to 2^24.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from qsdformer.graph.ops import Attention, MaxPool, Reshape, Upsample
from qsdformer.runtimes.onnx_nodes import FLOAT, UINT8, Nodes, Value

MAX_BYTE = 255


@dataclass(frozen=True, kw_only=True)
class MapNodes:
    """Makes values of values; `layout` is the one in which real numbers meet."""

    nodes: Nodes
    quantised: bool
    layout: str

    def real(self, x: Value) -> str:
        """The name of `x` in float32, in its own layout."""
        if self.quantised and x.levels is not None:
            return self.nodes.add("Cast", x.name, to=FLOAT)
        return x.name

    def counted(self, x: Value, levels: int) -> Value:
        """Float32 whole numbers 0..levels as counts, if bytes can hold them."""
        if levels > MAX_BYTE:
            return dataclasses.replace(x, levels=None)
        name = self.nodes.add("Cast", x.name, to=UINT8) if self.quantised else x.name
        return dataclasses.replace(x, name=name, levels=levels)

    def add(self, a: Value, b: Value) -> Value:
        """a + b as real numbers."""
        names = [self.nodes.to(self._float(x, a.unit), self.layout) for x in (a, b)]
        name = self.nodes.add("Add", *names)
        return dataclasses.replace(a, name=name, layout=self.layout, levels=None)

    def add_counts(self, a: Value, b: Value) -> Value:
        """a + b, as counts if both are and bytes can hold the sum."""
        y = self.add(a, b)
        if a.levels is None or b.levels is None:
            return y
        return self.counted(y, a.levels + b.levels)

    def multiply(self, a: Value, b: Value) -> Value:
        """a * b; one of them may have one pixel."""
        names = [self.nodes.to(self._float(x, x.unit), self.layout) for x in (a, b)]
        height, width = (max(sides) for sides in zip(a.shape[1:], b.shape[1:], strict=True))
        y = Value(
            name=self.nodes.add("Mul", *names),
            layout=self.layout,
            shape=(a.shape[0], height, width),
            unit=a.unit * b.unit,
        )
        if a.levels is None or b.levels is None:
            return y
        return self.counted(y, a.levels * b.levels)

    def concat(self, parts: Sequence[Value]) -> Value:
        """Channels one after the other; as counts if all are."""
        known = [x.levels for x in parts if x.levels is not None]
        levels = max(known) if len(known) == len(parts) else None
        if levels is None:
            parts = [self._float(x, parts[0].unit) for x in parts]
        layout = parts[0].layout
        names = [self.nodes.to(x, layout) for x in parts]
        name = self.nodes.add("Concat", *names, axis=1 if layout == "NCHW" else 3)
        channels = sum(x.shape[0] for x in parts)
        shape = (channels, *parts[0].shape[1:])
        return dataclasses.replace(parts[0], name=name, shape=shape, levels=levels)

    def pool(self, op: MaxPool, x: Value) -> Value:
        """The largest of each window; padding does not take part."""
        name = self.nodes.add(
            "MaxPool",
            self.nodes.to(x, "NCHW"),
            kernel_shape=[op.kernel] * 2,
            strides=[op.stride] * 2,
            pads=[op.padding] * 4,
        )
        height, width = ((n + 2 * op.padding - op.kernel) // op.stride + 1 for n in x.shape[1:])
        shape = (x.shape[0], height, width)
        return dataclasses.replace(x, name=name, layout="NCHW", shape=shape)

    def upsample(self, op: Upsample, x: Value) -> Value:
        """Twice the height and width; interpolated values are real numbers."""
        bilinear = op.mode == "bilinear"
        if bilinear:
            x = dataclasses.replace(self._float(x, x.unit), unit=x.unit / 16)
        options = (
            {"mode": "linear", "coordinate_transformation_mode": "half_pixel"}
            if bilinear
            else {
                "mode": "nearest",
                "coordinate_transformation_mode": "asymmetric",
                "nearest_mode": "floor",
            }
        )
        scales = self.nodes.reals((1, 1, 2, 2))
        name = self.nodes.add("Resize", self.nodes.to(x, "NCHW"), "", scales, **options)
        channels, height, width = x.shape
        shape = (channels, 2 * height, 2 * width)
        return dataclasses.replace(x, name=name, layout="NCHW", shape=shape)

    def squares(self, x: Value) -> Value:
        """Groups of four channels as squares of 2x2 pixels."""
        channels, height, width = x.shape
        channels //= 4
        name = self.nodes.to(x, "NCHW")
        grid = self.nodes.integers(0, channels, 2, 2, height, width)
        name = self.nodes.add("Reshape", name, grid)
        name = self.nodes.add("Transpose", name, perm=[0, 1, 4, 2, 5, 3])
        shape = (channels, 2 * height, 2 * width)
        name = self.nodes.add("Reshape", name, self.nodes.integers(0, *shape))
        return dataclasses.replace(x, name=name, layout="NCHW", shape=shape)

    def reshape(self, op: Reshape, x: Value) -> Value:
        """The numbers of each sample in another shape."""
        shape = (op.channels, op.height, op.width)
        name = self.nodes.to(x, "NCHW")
        name = self.nodes.add("Reshape", name, self.nodes.integers(0, *shape))
        return dataclasses.replace(x, name=name, layout="NCHW", shape=shape)

    def mean(self, x: Value) -> Value:
        """Over height and width."""
        return self._over_space("ReduceMean", x)

    def total(self, x: Value) -> Value:
        """The sum over height and width."""
        y = self._over_space("ReduceSum", x)
        return y if x.levels is None else self.counted(y, x.levels * x.shape[1] * x.shape[2])

    def time_sum(self, steps: int, x: Value) -> Value:
        """(steps*B, ...) to (B, ...)."""
        name = self.nodes.add("Sum", *self.nodes.split(self.real(x), steps))
        y = dataclasses.replace(x, name=name)
        return y if x.levels is None else self.counted(y, x.levels * steps)

    def attention(self, op: Attention, q: Value, k: Value, v: Value) -> Value:
        """q (k^T v): whole numbers; h heads of d channels, N tokens.

        Channels first, the heads are (B, h, d, N) and the product is (v^T k) q^T; channels last
        they are (B, N, h, d).
        """
        channels, height, width = v.shape
        first = self.layout == "NCHW"
        q_name, k_name, v_name = (self._heads(op.heads, x) for x in (q, k, v))
        if first:
            k_name = self.nodes.add("Transpose", k_name, perm=[0, 1, 3, 2])
            y = self.nodes.add("MatMul", self.nodes.add("MatMul", v_name, k_name), q_name)
            shape = self.nodes.integers(0, channels, height, width)
        else:
            q_name = self.nodes.add("Transpose", q_name, perm=[0, 2, 1, 3])
            v_name = self.nodes.add("Transpose", v_name, perm=[0, 2, 1, 3])
            k_name = self.nodes.add("Transpose", k_name, perm=[0, 2, 3, 1])
            y = self.nodes.add("MatMul", q_name, self.nodes.add("MatMul", k_name, v_name))
            y = self.nodes.add("Transpose", y, perm=[0, 2, 1, 3])
            shape = self.nodes.integers(0, height, width, channels)
        name = self.nodes.add("Reshape", y, shape)
        unit = q.unit * k.unit * v.unit
        return Value(name=name, layout=self.layout, shape=v.shape, unit=unit)

    def _heads(self, heads: int, x: Value) -> str:
        """Spike counts as float32, cut into heads."""
        channels, height, width = x.shape
        tokens, depth = height * width, channels // heads
        shape = (heads, depth, tokens) if self.layout == "NCHW" else (tokens, heads, depth)
        name = self.nodes.to(x, self.layout)
        name = self.nodes.add("Reshape", name, self.nodes.integers(0, *shape))
        byte = self.quantised and x.levels is not None
        return self.nodes.add("Cast", name, to=FLOAT) if byte else name

    def _float(self, x: Value, unit: float) -> Value:
        """`x` as real numbers whose unit is `unit`."""
        name = self.real(x)
        if x.unit != unit:
            name = self.nodes.add("Mul", name, self.nodes.reals(unit / x.unit))
        return dataclasses.replace(x, name=name, unit=unit, levels=None)

    def _over_space(self, kind: str, x: Value) -> Value:
        axes = self.nodes.integers(*((2, 3) if x.layout == "NCHW" else (1, 2)))
        name = self.nodes.add(kind, self.real(x), axes, keepdims=1)
        return dataclasses.replace(x, name=name, shape=(x.shape[0], 1, 1), levels=None)


def channel_offsets(channels: int) -> np.ndarray:
    """Where each channel's 256 values begin in a table, (C, 1, 1) int64."""
    return 256 * np.arange(channels, dtype=np.int64).reshape(-1, 1, 1)
