"""The reference executor of integer graphs, in NumPy: the same result everywhere.

Arrays are (C, B, H, W) here, T folded into B with time slowest, so that a channel is one run of
memory. Values are int32, products int64; lowering and loading prove that nothing leaves 32 bits
but where an operation saturates (`check.py`). Sums of products are taken in floating point wide
enough to hold each of them exactly, because that is what NumPy has fast matrix products for.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any

import numpy as np

from qsdformer.data.preprocessing import Preprocessing
from qsdformer.errors import UserError
from qsdformer.graph.ops import (
    FACTOR_BITS,
    IELIF,
    LIF,
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
    time_steps,
)

EXACT_FLOAT32 = 2**24  # whole numbers up to it are exact in float32; in float64 all of 32 bits
COLUMNS = 4096  # pixels a matrix product handles at a time, so that they stay in cache


def execute(
    ops: Sequence[Op],
    pre: Preprocessing,
    images: Array,
    *,
    wanted: Collection[str],
    logits: bool = False,
    collect: bool = False,
) -> tuple[dict[str, Array], dict[str, Array]]:
    """The values (T*B, C, H, W) int32 of the `wanted` operations by name.

    And, if asked to `collect`, spike counts (T*B, C, H, W) uint8 by neuron. `images` are uint8,
    (B, C, H, W) or one frame for each of T time steps, (T, B, C, H, W). `logits`: the last
    operation gives them.
    """
    pixels, frames = checked_images(ops, pre, images, logits=logits)
    values: dict[str, Array] = {}
    counts: dict[str, Array] = {}
    last_use = {name: op.name for op in ops for name in op.inputs}
    for op in ops:
        inputs = [values[name] for name in op.inputs]
        if isinstance(op, Normalise):
            inputs = [pixels]
        skip = frames and isinstance(op, Repeat)
        values[op.name] = inputs[0] if skip else EXECUTE[type(op)](op, *inputs)
        if collect and isinstance(op, Neuron):
            counts[op.name] = values[op.name].swapaxes(0, 1).astype(np.uint8)
        for name in op.inputs:
            if last_use[name] == op.name and name not in wanted:
                values.pop(name, None)
    return {name: np.ascontiguousarray(values[name].swapaxes(0, 1)) for name in wanted}, counts


def checked_images(
    ops: Sequence[Op], pre: Preprocessing, images: Array, *, logits: bool = False
) -> tuple[Array, bool]:
    """Pixels (C, B, H, W), and whether each time step has its own frame."""
    expected = (pre.channels, *pre.sides)
    shape, steps = tuple(images.shape), time_steps(ops)
    required = any(isinstance(op, Frames) for op in ops)
    frames = len(shape) == 5 and shape[0] == steps
    fits = frames or (len(shape) == 4 and not required)
    if images.dtype != np.uint8 or shape[-3:] != expected or not fits:
        leading = f"{steps} time steps, B" if required else "B"
        raise UserError(
            f"images of shape {shape} and type {images.dtype}: this model takes uint8 pixels of "
            f"shape ({leading}, {', '.join(map(str, expected))})"
        )
    if frames and not required and not _fits_frames(ops, steps, logits):
        raise UserError("this network does not take a frame for each time step")
    flat = images.reshape(-1, *expected)
    if len(flat) == 0:
        raise UserError("no images: give at least one")
    return flat.swapaxes(0, 1), frames


def _fits_frames(ops: Sequence[Op], steps: int, logits: bool) -> bool:
    """Whether a network of images still fits together where a frame for each step is given.

    What does not pass a `repeat` has time steps then, too: all paths to an operation must have the
    same, and logits one.
    """
    found: dict[str, int] = {}
    for op in ops:
        inputs = {found[name] for name in op.inputs} or {steps}
        walks = op.steps if isinstance(op, (IELIF, LIF, TimeSum)) else 1
        if len(inputs) > 1 or min(inputs) % walks:
            return False
        found[op.name] = min(inputs) // (walks if isinstance(op, TimeSum) else 1)
    return not logits or found[ops[-1].name] == 1


def _normalise(op: Normalise, x: Array) -> Array:
    return np.stack([row[channel] for row, channel in zip(op.table, x, strict=True)])


def _conv(op: Conv, x: Array) -> Array:
    size, stride, pad = op.codes.shape[-1], op.stride, op.padding
    kind = _exact_type(x, np.abs(op.codes.astype(np.int64)).sum(axis=(1, 2, 3)))
    x = np.pad(x.astype(kind), ((0, 0), (0, 0), (pad, pad), (pad, pad)))
    height, width = ((side - size) // stride + 1 for side in x.shape[2:])
    y = np.zeros((len(op.codes), x.shape[1], height, width), kind)
    codes = op.codes.astype(kind)
    for i in range(size):
        for j in range(size):
            reach_i, reach_j = i + stride * (height - 1) + 1, j + stride * (width - 1) + 1
            window = x[:, :, i:reach_i:stride, j:reach_j:stride]
            _add_products(y, codes[:, :, i, j], window, op.groups)
    return y.astype(np.int32)


def _exact_type(x: Array, code_sums: Array) -> type[np.floating[Any]]:
    """A type in which no sum of `x` times codes is rounded, whatever the order of addition."""
    largest = max(int(x.max()), -int(x.min())) * int(code_sums.max())
    return np.float32 if largest < EXACT_FLOAT32 else np.float64


def _add_products(y: Array, codes: Array, x: Array, groups: int) -> None:
    """y += codes @ x, group by group: codes (C_out, C_in / groups), x (C_in, B, H, W)."""
    if groups == len(x) == len(codes):
        y += codes[:, :, None, None] * x
        return
    out = len(codes) // groups
    flat_y, flat_x = y.reshape(len(y), -1), np.ascontiguousarray(x).reshape(len(x), -1)
    for g in range(groups):
        rows, columns = slice(g * out, (g + 1) * out), slice(g * len(x) // groups, None)
        part = codes[rows]
        for start in range(0, flat_x.shape[1], COLUMNS):
            stop = start + COLUMNS
            taken = flat_x[columns][: part.shape[1], start:stop]
            flat_y[rows, start:stop] += part @ taken


def _conv_transpose(op: ConvTranspose, x: Array) -> Array:
    _, out, kernel, _ = op.codes.shape
    _, batch, height, width = x.shape
    kind = _exact_type(x, np.abs(op.codes.astype(np.int64)).sum(axis=(0, 2, 3)))
    codes, x = op.codes.astype(kind), x.astype(kind)
    y = np.empty((out, batch, height, kernel, width, kernel), np.int32)
    for a in range(kernel):
        for b in range(kernel):
            part = np.zeros((out, batch, height, width), kind)
            _add_products(part, codes[:, :, a, b].T, x, 1)
            y[:, :, :, a, :, b] = part
    return y.reshape(out, batch, kernel * height, kernel * width)


def _rescale(op: Rescale, x: Array) -> Array:
    shift = _per_channel(op.shift)
    y = x.astype(np.int64)
    y *= _per_channel(op.multiplier)
    y += (np.int64(1) << shift) >> 1
    y >>= shift
    y += _per_channel(op.bias)
    return _saturate(y, op.limit)


def _add(op: Add, a: Array, b: Array) -> Array:
    return _saturate(a.astype(np.int64) + b, op.limit)


def _count_add(op: CountAdd, a: Array, b: Array) -> Array:
    return a + b


def _multiply(op: Multiply, a: Array, b: Array) -> Array:
    return a * b


def _ielif(op: IELIF, x: Array) -> Array:
    resets = np.array(op.resets, np.int64)
    half = 1 << (FACTOR_BITS - 1)
    v: Array | None = None
    counts = []
    for x_t in np.split(x, op.steps, axis=1):
        h = x_t if v is None else _saturate(x_t + ((op.decay * v + half) >> FACTOR_BITS), op.limit)
        count = np.zeros(h.shape, np.int32)
        for threshold in op.thresholds:
            count += h >= threshold
        counts.append(count)
        if op.steps > 1:
            v = h - resets[count]
    return np.concatenate(counts, axis=1)


def _lif(op: LIF, x: Array) -> Array:
    half = 1 << (FACTOR_BITS - 1)
    v: Array = np.zeros((), np.int64)
    spikes = []
    for x_t in np.split(x, op.steps, axis=1):
        h = v + (((x_t - v) * op.leak + half) >> FACTOR_BITS)
        spike = h >= op.threshold
        spikes.append(spike.astype(np.int32))
        v = np.where(spike, 0, h)
    return np.concatenate(spikes, axis=1)


def _attention(op: Attention, q: Array, k: Array, v: Array) -> Array:
    channels, batch, height, width = v.shape
    q, k, v = (
        np.ascontiguousarray(a.reshape(op.heads, -1, batch, height * width).transpose(0, 2, 1, 3))
        for a in (q, k, v)
    )  # (heads, B, d, N)
    kv = np.matmul(k, v.swapaxes(-1, -2))  # (heads, B, d of k, d of v)
    y = np.matmul(kv.swapaxes(-1, -2), q)
    return y.transpose(0, 2, 1, 3).reshape(channels, batch, height, width)


def _repeat(op: Repeat, x: Array) -> Array:
    return np.tile(x, (1, op.steps, 1, 1))


def _frames(op: Frames, x: Array) -> Array:
    return x


def _max_pool(op: MaxPool, x: Array) -> Array:
    size, stride, pad = op.kernel, op.stride, op.padding
    least = np.iinfo(np.int32).min
    x = np.pad(x, ((0, 0), (0, 0), (pad, pad), (pad, pad)), constant_values=least)
    height, width = ((side - size) // stride + 1 for side in x.shape[2:])
    y = np.full((*x.shape[:2], height, width), least, np.int32)
    for i in range(size):
        for j in range(size):
            reach_i, reach_j = i + stride * (height - 1) + 1, j + stride * (width - 1) + 1
            np.maximum(y, x[:, :, i:reach_i:stride, j:reach_j:stride], out=y)
    return y


def _upsample(op: Upsample, x: Array) -> Array:
    if op.mode == "nearest":
        return x.repeat(2, axis=2).repeat(2, axis=3)
    return _quarters(_quarters(x, 2), 3)


def _quarters(x: Array, axis: int) -> Array:
    """Four times `x` with two values for one along `axis`, each nearer to one of its neighbours."""
    size = x.shape[axis]
    before = x.take(np.maximum(np.arange(size) - 1, 0), axis)
    after = x.take(np.minimum(np.arange(size) + 1, size - 1), axis)
    pairs = np.stack((before + 3 * x, 3 * x + after), axis + 1)
    return pairs.reshape(*x.shape[:axis], 2 * size, *x.shape[axis + 1 :])


def _concat(op: Concat, *parts: Array) -> Array:
    return np.concatenate(parts)


def _reshape(op: Reshape, x: Array) -> Array:
    y = x.swapaxes(0, 1).reshape(-1, op.channels, op.height, op.width)
    return np.ascontiguousarray(y.swapaxes(0, 1))


def _spatial_sum(op: SpatialSum, x: Array) -> Array:
    return x.sum(axis=(2, 3), keepdims=True, dtype=np.int32)


def _spatial_mean(op: SpatialMean, x: Array) -> Array:
    pixels = x.shape[2] * x.shape[3]
    total = x.sum(axis=(2, 3), keepdims=True, dtype=np.int64)
    return ((total + pixels // 2) // pixels).astype(np.int32)


def _time_sum(op: TimeSum, x: Array) -> Array:
    return x.reshape(x.shape[0], op.steps, -1, *x.shape[2:]).sum(axis=1, dtype=np.int32)


def _per_channel(values: Array) -> Array:
    return values.astype(np.int64)[:, None, None, None]


def _saturate(y: Array, limit: int) -> Array:
    return np.clip(y, -limit, limit).astype(np.int32)


EXECUTE: dict[type, Callable[..., Any]] = {
    Normalise: _normalise,
    Conv: _conv,
    Rescale: _rescale,
    Add: _add,
    IELIF: _ielif,
    LIF: _lif,
    Attention: _attention,
    Repeat: _repeat,
    SpatialMean: _spatial_mean,
    TimeSum: _time_sum,
    ConvTranspose: _conv_transpose,
    CountAdd: _count_add,
    Multiply: _multiply,
    Frames: _frames,
    MaxPool: _max_pool,
    Upsample: _upsample,
    Concat: _concat,
    Reshape: _reshape,
    SpatialSum: _spatial_sum,
}
