"""Shapes and bounds of every value in an integer graph, derived without running it.

The same rules serve lowering, which needs them to choose formats, and reading an artifact, which
must not trust its file. Raises ValueError for a graph that does not fit together.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from qsdformer.data.preprocessing import Preprocessing
from qsdformer.graph.integer import IntegerGraph
from qsdformer.graph.ops import (
    INT32_MAX,
    LOGITS,
    MAX_FRACTION,
    OP_INPUTS,
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
from qsdformer.graph.post import RegionPost, check_head, check_post

MAX_PRODUCT = 2.0**62  # so that a sum of two stays inside 64 bits
MAX_SIDE = 2**16  # largest side of a map, and most channels
MOST_FRACTION = {32: 24, 16: 14}  # fractional bits of membrane potentials by their width
MAX_TOTAL = 2**22  # most channels of all values together, for each has its bound
BILINEAR_BITS = 4  # fractional bits that bilinear interpolation adds


@dataclass(frozen=True, kw_only=True, eq=False)
class Shape:
    """Height and width of a value, its time steps, and its largest magnitude per channel (C,).

    `fraction` is the number of its fractional bits; 0 for counts and sums of codes.
    """

    height: int
    width: int
    steps: int
    bound: Array  # float64; exact for every bound below 2^53
    fraction: int = 0

    @property
    def channels(self) -> int:
        """Number of channels."""
        return len(self.bound)

    @property
    def size(self) -> tuple[int, int, int]:
        """Channels, height, width."""
        return self.channels, self.height, self.width


def check_graph(graph: IntegerGraph) -> dict[str, Shape]:
    """The shape of every operation's result by name; a ValueError says what does not fit."""
    if not graph.ops:
        raise ValueError("the graph has no operation")
    _check_preprocessing(graph.preprocessing)
    if graph.membrane_bits not in MOST_FRACTION:
        raise ValueError(f"membranes of {graph.membrane_bits} bits, not 16 or 32")
    if not 0 <= graph.membrane_fraction <= max(MOST_FRACTION.values()):
        raise ValueError(f"fractional bits of membranes: {graph.membrane_fraction}")
    shapes: dict[str, Shape] = {}
    total = 0
    for op in graph.ops:
        _check_name("an operation", op.name)
        if op.name in shapes:
            raise ValueError(f"two operations are named {op.name!r}")
        for name in op.inputs:
            if name not in shapes:
                raise ValueError(f"{op.name!r} reads {name!r}, which is not before it")
        shapes[op.name] = result_shape(op, [shapes[n] for n in op.inputs], graph.preprocessing)
        total += shapes[op.name].channels
        if total > MAX_TOTAL:
            raise ValueError(f"the graph has more than {MAX_TOTAL} channels in all")
    _check_time(graph)
    _check_results(graph, shapes)
    return shapes


def result_shape(op: Op, inputs: list[Shape], pre: Preprocessing) -> Shape:
    """Shape and bound of what `op` makes of `inputs`; ValueError if it could pass 32 bits."""
    allowed = OP_INPUTS[type(op)]
    if len(inputs) < 2 if allowed is None else len(inputs) != allowed:
        raise ValueError(f"{op.name!r} has {len(inputs)} inputs")
    shape = _shape(op, inputs, pre)
    if shape.bound.max() > INT32_MAX:
        raise ValueError(f"{op.name!r} could leave 32 bits: its sums reach {shape.bound.max():.0f}")
    if abs(shape.fraction) > 3 * MAX_FRACTION:  # that of an attention of three
        raise ValueError(f"{op.name!r} has {shape.fraction} fractional bits")
    if max(shape.size) > MAX_SIDE:
        raise ValueError(f"{op.name!r} makes a value of {shape.size}: at most {MAX_SIDE} a side")
    return shape


def _shape(op: Op, inputs: list[Shape], pre: Preprocessing) -> Shape:
    if isinstance(op, Normalise):
        _fits(op, len(op.table) == pre.channels, "has a table for each input channel")
        bound = np.abs(op.table.astype(np.float64)).max(axis=1)
        height, width = pre.sides
        return Shape(height=height, width=width, steps=1, bound=bound, fraction=op.fraction)
    x = inputs[0]
    if isinstance(op, (Conv, ConvTranspose)):
        return _conv_shape(op, x) if isinstance(op, Conv) else _conv_transpose_shape(op, x)
    if isinstance(op, Rescale):
        return _rescale_shape(op, x)
    if isinstance(op, (Add, CountAdd)):
        y = inputs[1]
        _fits(op, (x.size, x.steps) == (y.size, y.steps), "adds equal shapes")
        _fits(op, x.fraction == y.fraction, "adds values of one format")
        limit = op.limit if isinstance(op, Add) else math.inf
        return replace(x, bound=np.minimum(x.bound + y.bound, limit))
    if isinstance(op, Multiply):
        return _multiply_shape(op, *inputs)
    if isinstance(op, Concat):
        return _concat_shape(op, inputs)
    if isinstance(op, Attention):
        return _attention_shape(op, inputs)
    if isinstance(op, Neuron):
        _fits(op, op.steps == x.steps, "has the network's time steps")
        return replace(x, bound=np.full(x.channels, float(op.levels)), fraction=0)
    if isinstance(op, (Repeat, Frames)):
        _fits(op, x.steps == 1, "gives a time axis to what has none")
        return replace(x, steps=op.steps)
    if isinstance(op, TimeSum):
        _fits(op, op.steps == x.steps, "has the network's time steps")
        return replace(x, steps=1, bound=x.bound * op.steps)
    return _map_shape(op, x)


def _map_shape(op: Op, x: Shape) -> Shape:
    """Operations on height and width alone."""
    if isinstance(op, MaxPool):
        height, width = _window_sides(op, x, op.kernel, op.stride, op.padding)
        return replace(x, height=height, width=width)
    if isinstance(op, SpatialMean):
        return replace(x, height=1, width=1)
    if isinstance(op, SpatialSum):
        return replace(x, height=1, width=1, bound=x.bound * (x.height * x.width))
    if isinstance(op, Upsample):
        y = replace(x, height=2 * x.height, width=2 * x.width)
        if op.mode == "nearest":
            return y
        bound = x.bound * 2**BILINEAR_BITS
        return replace(y, bound=bound, fraction=x.fraction + BILINEAR_BITS)
    assert isinstance(op, Reshape)
    same = math.prod(x.size) == op.channels * op.height * op.width
    _fits(op, same and op.channels <= MAX_SIDE, "keeps the number of elements")
    bound = np.full(op.channels, x.bound.max())
    return replace(x, height=op.height, width=op.width, bound=bound)


def _rescale_shape(op: Rescale, x: Shape) -> Shape:
    _fits(op, len(op.shift) == x.channels, "has a factor for each channel")
    product = x.bound * np.abs(op.multiplier.astype(np.float64))
    bias = np.abs(op.bias.astype(np.float64))
    _fits(op, max(product.max(), bias.max()) < MAX_PRODUCT, "keeps its products in 64 bits")
    bound = np.minimum(np.ceil(product / 2.0**op.shift) + 1 + bias, op.limit)
    return replace(x, bound=bound, fraction=op.fraction)


def _window_sides(op: Op, x: Shape, kernel: int, stride: int, padding: int) -> tuple[int, int]:
    height, width = ((side + 2 * padding - kernel) // stride + 1 for side in (x.height, x.width))
    _fits(op, min(height, width) >= 1, "has an input at least as large as its kernel")
    return height, width


def _conv_shape(op: Conv, x: Shape) -> Shape:
    out, per_group, size, _ = op.codes.shape
    _fits(op, per_group * op.groups == x.channels, "fits its input channels")
    height, width = _window_sides(op, x, size, op.stride, op.padding)
    per_input = np.abs(op.codes.astype(np.int16)).sum(axis=(2, 3), dtype=np.float64)
    bounds = x.bound.reshape(op.groups, per_group, 1)
    bound = (per_input.reshape(op.groups, out // op.groups, per_group) @ bounds).reshape(out)
    return Shape(height=height, width=width, steps=x.steps, bound=bound)


def _conv_transpose_shape(op: ConvTranspose, x: Shape) -> Shape:
    _fits(op, len(op.codes) == x.channels, "fits its input channels")
    codes = np.abs(op.codes.astype(np.float64))
    bound = np.tensordot(x.bound, codes, 1).max(axis=(1, 2))
    return Shape(height=2 * x.height, width=2 * x.width, steps=x.steps, bound=bound)


def _multiply_shape(op: Multiply, x: Shape, y: Shape) -> Shape:
    same = (x.channels, x.steps) == (y.channels, y.steps)
    one = (1, 1) in ((x.height, x.width), (y.height, y.width))
    same = same and (one or x.size == y.size)
    _fits(op, same, "multiplies equal shapes, or one of them of one pixel")
    return Shape(
        height=max(x.height, y.height),
        width=max(x.width, y.width),
        steps=x.steps,
        bound=x.bound * y.bound,
        fraction=x.fraction + y.fraction,
    )


def _concat_shape(op: Concat, inputs: list[Shape]) -> Shape:
    first = inputs[0]
    for other in inputs[1:]:
        same = (other.height, other.width, other.steps) == (first.height, first.width, first.steps)
        _fits(op, same, "joins values of one height, width and time")
        _fits(op, other.fraction == first.fraction, "joins values of one format")
    channels = sum(x.channels for x in inputs)
    _fits(op, channels <= MAX_SIDE, f"has at most {MAX_SIDE} channels")
    return replace(first, bound=np.concatenate([x.bound for x in inputs]))


def _attention_shape(op: Attention, inputs: list[Shape]) -> Shape:
    q, k, v = inputs
    same = (k.size, k.steps) == (q.size, q.steps)
    _fits(op, same, "has q and k of one shape")
    same = (v.height, v.width, v.steps) == (q.height, q.width, q.steps)
    _fits(op, same, "has v on the grid of q and k")
    divide = q.channels % op.heads == 0 and v.channels % op.heads == 0
    _fits(op, divide, "has heads that divide the channels")
    sums = (q.bound * k.bound).reshape(op.heads, -1).sum(axis=1)
    bound = q.height * q.width * sums.repeat(v.channels // op.heads) * v.bound
    return replace(v, bound=bound, fraction=q.fraction + k.fraction + v.fraction)


def _check_time(graph: IntegerGraph) -> None:
    axes = {(type(op), op.steps) for op in graph.ops if isinstance(op, (Repeat, Frames))}
    if len(axes) > 1:
        raise ValueError("operations disagree about the time axis of the input")
    if graph.takes_frames:
        tables = {op.name for op in graph.ops if isinstance(op, Normalise)}
        for op in graph.ops:
            if isinstance(op, Frames) != any(name in tables for name in op.inputs):
                raise ValueError(f"{op.name!r}: 'frames' alone reads the table of pixels")


def _check_name(what: str, name: str) -> None:
    """A name is text that C and UTF-8 can hold, too: the native engine is given it."""
    if "\0" in name or any("\ud800" <= c <= "\udfff" for c in name):
        raise ValueError(f"{what} has a zero byte or half a character in its name: {name[:40]!r}")


def _check_results(graph: IntegerGraph, shapes: dict[str, Shape]) -> None:
    for name in graph.class_names:
        _check_name("a class", name)
    if not graph.class_names and not graph.outputs:
        raise ValueError("the graph gives neither logits nor other outputs")
    if graph.class_names:
        last = shapes[graph.ops[-1].name]
        single = (last.height, last.width, last.steps) == (1, 1, 1)
        if not isinstance(graph.ops[-1], Rescale) or not single:
            raise ValueError("the last operation does not give logits")
        if last.channels != len(graph.class_names):
            raise ValueError(f"{len(graph.class_names)} class names for {last.channels} logits")
    names = [*(op.name for op in graph.neurons()), LOGITS]
    for output in graph.outputs:
        what = f"output {output.name!r}"
        if not output.name or output.name in names:
            raise ValueError(
                f"{what} has no name of its own: {LOGITS!r}, those of neurons and of other outputs "
                "are taken, choose another"
            )
        _check_name("an output", output.name)
        names.append(output.name)
        if output.op not in shapes:
            raise ValueError(f"{what} is the value of {output.op!r}, which does not exist")
        if len(output.scale) not in (1, shapes[output.op].channels):
            raise ValueError(f"{what} has {len(output.scale)} scales")
        if not all(math.isfinite(s) and s != 0 for s in output.scale):
            raise ValueError(f"{what} has a scale that is zero or not finite")
    if graph.post is not None:
        sizes = {output.name: shapes[output.op].size for output in graph.outputs}
        check_post(graph.post, sizes, graph.preprocessing.sides)
    _check_heads(graph)


def _check_heads(graph: IntegerGraph) -> None:
    """The graphs for regions, each of which is a graph by itself."""
    needed = () if graph.post is None else graph.post.heads
    if tuple(graph.heads) != needed:
        raise ValueError(f"graphs for regions are {list(graph.heads)}, not {list(needed)}")
    for name, head in graph.heads.items():
        if head.post is not None or head.heads or head.class_names:
            raise ValueError(f"the graph {name!r} for regions is one for images")
        shapes, pre = check_graph(head), head.preprocessing
        if not any(True for _ in head.neurons()):
            raise ValueError(f"the graph {name!r} for regions has no neuron")
        outputs = {output.name: shapes[output.op].size for output in head.outputs}
        assert isinstance(graph.post, RegionPost)
        check_head(graph.post, name, (pre.channels, *pre.sides), outputs)


def _fits(op: Op, ok: bool, what: str) -> None:
    if not ok:
        raise ValueError(f"{op.name!r} is not one that {what}")


def _check_preprocessing(pre: Preprocessing) -> None:
    pre.require_possible()
    if not all(1 <= p <= s for p, s in zip(pre.inner, pre.sides, strict=True)):
        raise ValueError(f"images placed at {pre.placed} in {pre.image_size} pixels")
