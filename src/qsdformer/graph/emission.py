"""Values of the integer graph while it is being made, and the number formats they are given.

A symbol is an operation's result with the real number that it stands for, integer * scale + bias
per channel.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field

import numpy as np

from qsdformer.data.preprocessing import Preprocessing
from qsdformer.graph.check import Shape, result_shape
from qsdformer.graph.formats import MAX_FACTOR, MULTIPLIER_BITS, REAL_INPUT_BITS, fixed_point
from qsdformer.graph.ops import INT32_MAX, Array, Frames, Normalise, Op, Repeat, Rescale


@dataclass(frozen=True, kw_only=True, eq=False)
class Symbol:
    """A value of the graph: real number = integer * scale + bias, per channel (C,) float64."""

    op: str
    shape: Shape
    scale: Array
    bias: Array

    @property
    def reach(self) -> float:
        """The largest real number, of either sign, that the bounds of the integers allow."""
        return float((self.shape.bound * np.abs(self.scale) + np.abs(self.bias)).max())

    @property
    def is_uniform(self) -> bool:
        """Whether all channels share one scale and have no bias, as inputs of sums must."""
        return bool((self.scale == self.scale[0]).all() and not self.bias.any())


@dataclass(frozen=True, kw_only=True, eq=False)
class Image:
    """The image before its first layer; `time` is the operation that gives it a time axis."""

    time: type[Repeat] | type[Frames] | None = None
    name: str = ""
    steps: int = 1


Value = Symbol | Image


@dataclass(kw_only=True)
class Emitter:
    """Appends operations, and brings symbols into the formats that operations ask for."""

    pre: Preprocessing
    bits: int
    fraction: int
    ops: list[Op] = field(default_factory=list)
    shapes: dict[str, Shape] = field(default_factory=dict)

    @property
    def limit(self) -> int:
        """The largest membrane potential."""
        return 2 ** (self.bits - 1) - 1

    def emit(self, op: Op, scale: Array | float, bias: Array | None = None) -> Symbol:
        """Append `op`; the symbol of its result, of one scale or one for each channel."""
        shape = result_shape(op, [self.shapes[name] for name in op.inputs], self.pre)
        if op.name in self.shapes:
            op = dataclasses.replace(op, name=f"{op.name}#{len(self.ops)}")
        self.ops.append(op)
        self.shapes[op.name] = shape
        scales = np.broadcast_to(np.asarray(scale, np.float64), shape.channels)
        biases = np.zeros(shape.channels) if bias is None else bias
        return Symbol(op=op.name, shape=shape, scale=scales, bias=biases)

    def known(self, x: Value) -> Symbol:
        """`x` as a symbol, also where it is the image."""
        return self.pixels(x, None) if isinstance(x, Image) else x

    def pixels(self, x: Image, codes: Array | None) -> Symbol:
        """The image as fixed point: pixel/255 normalised, so that padding with 0 stays right."""
        pixels = np.arange(256) / 255
        values = np.stack(
            [(pixels - m) / s for m, s in zip(self.pre.mean, self.pre.std, strict=True)]
        )
        largest = float(np.abs(values).max())
        if codes is None:
            fraction = self.fraction_within(largest)
        else:
            fraction = self._fraction_for(largest, codes)
        limit = INT32_MAX if codes is not None else self.limit
        table = np.clip(np.rint(values * 2.0**fraction), -limit, limit).astype(np.int32)
        op = Normalise(name="normalise", inputs=(), table=table, fraction=fraction)
        y = self.emit(op, 2.0**-fraction)
        if x.time is None:
            return y
        return self.emit(x.time(name=x.name, inputs=(y.op,), steps=x.steps), y.scale)

    def real_input(self, x: Symbol, codes: Array) -> Symbol:
        """`x` as the input of a layer with these codes, in as many bits as its sums allow."""
        fraction = self._fraction_for(x.reach, codes)
        return self.rescaled(x, fraction, 2 ** (REAL_INPUT_BITS[self.bits] - 1) - 1)

    def _fraction_for(self, largest: float, codes: Array) -> int:
        """Fractional bits of a real input up to `largest`, so that its sums fit 32 bits."""
        reach = max(1, int(np.abs(codes.astype(np.int64)).sum(axis=(1, 2, 3)).max()))
        # Two units to spare: a rounded value can exceed its real bound.
        room = min(INT32_MAX // reach, 2 ** (REAL_INPUT_BITS[self.bits] - 1) - 1) - 2
        if room < 1:
            raise ValueError("the weights of a layer with real inputs leave no bits for these")
        return math.floor(math.log2(room / largest)) if largest > 0 else 0

    def fits(self, op: Op) -> bool:
        """Whether the sums of `op` are sure to stay within 32 bits."""
        try:
            result_shape(op, [self.shapes[name] for name in op.inputs], self.pre)
        except ValueError:
            return False
        return True

    def with_room(self, x: Symbol, times: int) -> Symbol:
        """`x` in fewer bits where `times` of its values could leave 32 of them."""
        if x.shape.bound.max() * times <= INT32_MAX:
            return x
        less = math.ceil(math.log2(times))
        return self.rescaled(x, self.fraction - less, INT32_MAX // times)

    def membrane(self, x: Symbol) -> Symbol:
        """`x` as a membrane potential; itself if it is one already."""
        if x.is_uniform and x.scale[0] == 2.0**-self.fraction:
            return x
        return self.rescaled(x, self.fraction, self.limit)

    def output(self, x: Symbol) -> Symbol:
        """`x` as a result: a membrane potential, of fewer fractional bits where it goes further."""
        if x.is_uniform and x.scale[0] == 2.0**-self.fraction:
            return x
        return self.rescaled(x, self.fraction_within(x.reach), self.limit)

    def fraction_within(self, largest: float) -> int:
        """Fractional bits of a membrane potential that reaches `largest`, at most the usual."""
        if largest <= 0:
            return self.fraction
        return max(0, min(self.fraction, math.floor(math.log2((self.limit - 1) / largest))))

    def rescaled(self, x: Symbol, fraction: int, limit: int) -> Symbol:
        """`x` as fixed point without bias, saturating at `limit`."""
        multiplier, shift = fixed_point(x.scale * 2.0**fraction, MULTIPLIER_BITS[self.bits])
        bias = np.clip(np.rint(x.bias * 2.0**fraction), -MAX_FACTOR, MAX_FACTOR).astype(np.int64)
        op = Rescale(
            name=f"#{len(self.ops)}",  # its place: no module of the model is like it
            inputs=(x.op,),
            multiplier=multiplier,
            shift=shift,
            bias=bias,
            limit=limit,
            fraction=fraction,
        )
        return self.emit(op, 2.0**-fraction)
