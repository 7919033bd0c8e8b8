"""Shapes and bounds of every value in an integer graph, derived without running it.

The same rules serve lowering, which needs them to choose formats, and reading an artifact, which
must not trust its file. Raises ValueError for a graph that does not fit together.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from qsdformer.graph.integer import IntegerGraph
from qsdformer.graph.ops import (
    INT32_MAX,
    OP_INPUTS,
    Add,
    Array,
    Attention,
    Conv,
    Neuron,
    Normalise,
    Op,
    Preprocessing,
    Repeat,
    Rescale,
    SpatialMean,
    TimeSum,
)

MAX_PRODUCT = 2.0**62  # so that a sum of two stays inside 64 bits
MAX_PIXELS = 2**16  # largest image side that a graph may ask for


@dataclass(frozen=True, kw_only=True, eq=False)
class Shape:
    """Height and width of a value, its time steps, and its largest magnitude per channel (C,)."""

    height: int
    width: int
    steps: int
    bound: Array  # float64; exact for every bound below 2^53

    @property
    def channels(self) -> int:
        """Number of channels."""
        return len(self.bound)


def check_graph(graph: IntegerGraph) -> dict[str, Shape]:
    """The shape of every operation's result by name; a ValueError says what does not fit."""
    if not graph.ops:
        raise ValueError("the graph has no operation")
    _check_preprocessing(graph.preprocessing)
    shapes: dict[str, Shape] = {}
    for op in graph.ops:
        if op.name in shapes:
            raise ValueError(f"two operations are named {op.name!r}")
        if len(op.inputs) != OP_INPUTS[type(op)]:
            raise ValueError(f"{op.name!r} has {len(op.inputs)} inputs")
        for name in op.inputs:
            if name not in shapes:
                raise ValueError(f"{op.name!r} reads {name!r}, which is not before it")
        shapes[op.name] = result_shape(op, [shapes[n] for n in op.inputs], graph.preprocessing)
    last = shapes[graph.ops[-1].name]
    if not isinstance(graph.ops[-1], Rescale) or (last.height, last.width, last.steps) != (1, 1, 1):
        raise ValueError("the last operation does not give logits")
    if last.channels != len(graph.class_names):
        raise ValueError(f"{len(graph.class_names)} class names for {last.channels} logits")
    return shapes


def result_shape(op: Op, inputs: list[Shape], pre: Preprocessing) -> Shape:
    """Shape and bound of what `op` makes of `inputs`; ValueError if it could pass 32 bits."""
    shape = _shape(op, inputs, pre)
    if shape.bound.max() > INT32_MAX:
        raise ValueError(f"{op.name!r} could leave 32 bits: its sums reach {shape.bound.max():.0f}")
    return shape


def _shape(op: Op, inputs: list[Shape], pre: Preprocessing) -> Shape:
    if isinstance(op, Normalise):
        _fits(op, len(op.table) == pre.channels, "has a table for each input channel")
        bound = np.abs(op.table.astype(np.float64)).max(axis=1)
        return Shape(height=pre.image_size, width=pre.image_size, steps=1, bound=bound)
    x = inputs[0]
    if isinstance(op, Conv):
        return _conv_shape(op, x)
    if isinstance(op, Rescale):
        _fits(op, len(op.shift) == x.channels, "has a factor for each channel")
        product = x.bound * np.abs(op.multiplier.astype(np.float64))
        bias = np.abs(op.bias.astype(np.float64))
        _fits(op, max(product.max(), bias.max()) < MAX_PRODUCT, "keeps its products in 64 bits")
        return _like(x, np.minimum(np.ceil(product / 2.0**op.shift) + 1 + bias, op.limit))
    if isinstance(op, Add):
        same = (x.channels, x.height, x.width, x.steps)
        y = inputs[1]
        _fits(op, same == (y.channels, y.height, y.width, y.steps), "adds equal shapes")
        return _like(x, np.minimum(x.bound + y.bound, op.limit))
    if isinstance(op, Neuron):
        _fits(op, op.steps == x.steps, "has the network's time steps")
        return _like(x, np.full(x.channels, float(op.levels)))
    if isinstance(op, Attention):
        return _attention_shape(op, inputs)
    if isinstance(op, Repeat):
        _fits(op, x.steps == 1, "repeats a still image")
        return Shape(height=x.height, width=x.width, steps=op.steps, bound=x.bound)
    if isinstance(op, SpatialMean):
        return Shape(height=1, width=1, steps=x.steps, bound=x.bound)
    assert isinstance(op, TimeSum)
    _fits(op, op.steps == x.steps, "has the network's time steps")
    return Shape(height=x.height, width=x.width, steps=1, bound=x.bound * op.steps)


def _conv_shape(op: Conv, x: Shape) -> Shape:
    out, per_group, size, _ = op.codes.shape
    _fits(op, per_group * op.groups == x.channels, "fits its input channels")
    height, width = (
        (side + 2 * op.padding - size) // op.stride + 1 for side in (x.height, x.width)
    )
    _fits(op, min(height, width) >= 1, "has an input at least as large as its kernel")
    per_input = np.abs(op.codes.astype(np.int16)).sum(axis=(2, 3), dtype=np.float64)
    bounds = x.bound.reshape(op.groups, per_group, 1)
    bound = (per_input.reshape(op.groups, out // op.groups, per_group) @ bounds).reshape(out)
    return Shape(height=height, width=width, steps=x.steps, bound=bound)


def _attention_shape(op: Attention, inputs: list[Shape]) -> Shape:
    q, k, v = inputs
    for other in (k, v):
        same = (other.channels, other.height, other.width, other.steps)
        _fits(op, same == (q.channels, q.height, q.width, q.steps), "has q, k and v of one shape")
    _fits(op, q.channels % op.heads == 0, "has heads that divide the channels")
    sums = (q.bound * k.bound).reshape(op.heads, -1).sum(axis=1)
    bound = q.height * q.width * sums.repeat(q.channels // op.heads) * v.bound
    return _like(q, bound)


def _like(x: Shape, bound: Array) -> Shape:
    return Shape(height=x.height, width=x.width, steps=x.steps, bound=bound)


def _fits(op: Op, ok: bool, what: str) -> None:
    if not ok:
        raise ValueError(f"{op.name!r} is not one that {what}")


def _check_preprocessing(pre: Preprocessing) -> None:
    if not (1 <= pre.image_size <= MAX_PIXELS and 1 <= pre.channels <= 1024):
        raise ValueError(f"images of {pre.channels}x{pre.image_size}x{pre.image_size}")
    if len(pre.mean) != pre.channels or len(pre.std) != pre.channels:
        raise ValueError(f"mean and std are not given for each of {pre.channels} channels")
    if not 0 < pre.crop_pct <= 1:
        raise ValueError(f"crop_pct={pre.crop_pct}")
