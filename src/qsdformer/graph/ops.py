"""The operations of the integer graph.

Operations are frozen records in execution order, each naming the operations it reads. Values are
integers of logical shape (B, C, H, W), T time steps folded into B, time slowest. A fixed-point
value with `fraction` fractional bits stands for integer * 2**-fraction; spike counts, sums of them
and sums of weight codes are whole numbers.

Only NumPy is needed here, so that an artifact runs without PyTorch.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

Array = np.ndarray

# Fractional bits of the fixed-point factors of neurons (decay of IE-LIF, leak of LIF).
FACTOR_BITS = 16
INT32_MAX = 2**31 - 1
MAX_FRACTION = 256
LOGITS = "logits"  # the name of a classifier's result
UPSAMPLE_MODES = ("nearest", "bilinear")


@dataclass(frozen=True, kw_only=True, eq=False)
class Op:
    """One operation: its unique name and the names of the operations whose results it reads."""

    name: str
    inputs: tuple[str, ...]

    def __post_init__(self) -> None:
        self._require(bool(self.name), "name is empty")

    def _require(self, ok: bool, what: str) -> None:
        if not ok:
            raise ValueError(f"{type(self).__name__.lower()} {self.name!r}: {what}")

    def _require_codes(self, codes: Array, bits: int) -> None:
        self._require(2 <= bits <= 8, "bits must be in 2..8")
        limit = 2 ** (bits - 1)
        ok = codes.min() >= -limit and codes.max() < limit
        self._require(bool(ok), f"codes do not fit {bits} bits")

    def _require_steps(self, steps: int) -> None:
        self._require(1 <= steps <= 1024, "steps must be in 1..1024")

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and all(
            _same(getattr(self, f.name), getattr(other, f.name)) for f in dataclasses.fields(self)
        )

    __hash__ = None  # type: ignore[assignment]


@dataclass(frozen=True, kw_only=True, eq=False)
class Normalise(Op):
    """Pixels 0..255 to fixed point by a table: y[c] = table[c, pixel]; reads the images."""

    table: Array  # (C, 256) int32
    fraction: int

    def __post_init__(self) -> None:
        super().__post_init__()
        ok = self.table.ndim == 2 and self.table.shape[1] == 256
        self._require(not self.inputs and ok, "must have a table (channels, 256) and no input")
        self._require(abs(self.fraction) <= MAX_FRACTION, "fraction must be in -256..256")


@dataclass(frozen=True, kw_only=True, eq=False)
class Conv(Op):
    """Sum of weight codes times inputs, zero-padded, without bias; accumulates in 32 bits.

    A linear layer is a 1x1 convolution of a 1x1 map. `bits` is the width of the codes.
    """

    codes: Array  # (C_out, C_in / groups, k, k) int8
    bits: int
    stride: int
    padding: int
    groups: int

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require(self.codes.ndim == 4, "codes must have four dimensions")
        out, _, height, width = self.codes.shape
        self._require(height == width, "the kernel must be square")
        self._require(1 <= self.stride <= 16, "stride must be in 1..16")
        self._require(0 <= self.padding <= height // 2, "padding must be at most half the kernel")
        self._require(self.groups >= 1 and out % self.groups == 0, "groups must divide channels")
        self._require_codes(self.codes, self.bits)


@dataclass(frozen=True, kw_only=True, eq=False)
class ConvTranspose(Op):
    """Every pixel becomes a square of 2x2 pixels: a transposed convolution of stride 2.

    y[o, 2i + a, 2j + b] = sum over c of codes[c, o, a, b] * x[c, i, j]; squares do not overlap.
    """

    codes: Array  # (C_in, C_out, 2, 2) int8
    bits: int

    def __post_init__(self) -> None:
        super().__post_init__()
        ok = self.codes.ndim == 4 and self.codes.shape[2:] == (2, 2)
        self._require(ok, "codes must have the shape (inputs, outputs, 2, 2)")
        self._require_codes(self.codes, self.bits)


@dataclass(frozen=True, kw_only=True, eq=False)
class Rescale(Op):
    """Fixed-point factor and bias per channel, saturating; the product needs 64 bits.

    y = clamp(((x * multiplier + (2**shift >> 1)) >> shift) + bias, -limit, limit), with the
    arithmetic shift, so that the product is rounded to nearest, halves up.
    """

    multiplier: Array  # (C,) int64
    shift: Array  # (C,) int8, 0..31
    bias: Array  # (C,) int64, in units of the result
    limit: int
    fraction: int

    def __post_init__(self) -> None:
        super().__post_init__()
        shapes = {a.shape for a in (self.multiplier, self.shift, self.bias)}
        ok = len(shapes) == 1 and self.shift.ndim == 1
        self._require(ok, "multiplier, shift and bias must be vectors of one length")
        ok = self.shift.min() >= 0 and self.shift.max() <= 31
        self._require(bool(ok), "shift must be in 0..31")
        self._require(abs(self.fraction) <= MAX_FRACTION, "fraction must be in -256..256")
        self._require(1 <= self.limit <= INT32_MAX, "limit must be in 1..2^31-1")


@dataclass(frozen=True, kw_only=True, eq=False)
class Add(Op):
    """The membrane shortcut: y = clamp(a + b, -limit, limit); both in the same format."""

    limit: int

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require(1 <= self.limit <= INT32_MAX, "limit must be in 1..2^31-1")


@dataclass(frozen=True, kw_only=True, eq=False)
class CountAdd(Op):
    """y = a + b of spike counts with one unit, not limited: the range grows to that of the sum."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Multiply(Op):
    """y = a * b, element by element; a map of one pixel meets every pixel of the other."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Neuron(Op):
    """What all neurons have: membrane potentials in, spike counts 0..levels out, T time steps."""

    steps: int
    limit: int

    @property
    def levels(self) -> int:
        """The largest spike count."""
        raise NotImplementedError

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require_steps(self.steps)
        self._require(1 <= self.limit <= INT32_MAX, "limit must be in 1..2^31-1")


@dataclass(frozen=True, kw_only=True, eq=False)
class IELIF(Neuron):
    """h = clamp(x + ((decay * v + 2^15) >> 16)); the count is how many thresholds h reaches.

    Soft reset: v = h - resets[count], with v = 0 before the first time step.
    """

    thresholds: tuple[int, ...]  # ascending, one for each level
    resets: tuple[int, ...]  # levels + 1 values
    decay: int  # 2^16 times the carry-over

    @property
    def levels(self) -> int:
        """The largest spike count."""
        return len(self.thresholds)

    def __post_init__(self) -> None:
        super().__post_init__()
        ok = 1 <= self.levels <= 127 and len(self.resets) == self.levels + 1
        self._require(ok, "must have 1..127 thresholds and one reset more")
        self._require(list(self.thresholds) == sorted(self.thresholds), "thresholds must ascend")
        ok = max(abs(v) for v in (*self.thresholds, *self.resets)) <= INT32_MAX
        self._require(ok, "thresholds and resets must fit 32 bits")
        self._require(0 <= self.decay <= 1 << FACTOR_BITS, "decay must be in 0..2^16")


@dataclass(frozen=True, kw_only=True, eq=False)
class LIF(Neuron):
    """h = v + (((x - v) * leak + 2^15) >> 16); a spike where h >= threshold, then v = 0."""

    threshold: int
    leak: int  # 2^16 / tau

    @property
    def levels(self) -> int:
        """One: spikes are binary."""
        return 1

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require(abs(self.threshold) <= INT32_MAX, "threshold must fit 32 bits")
        self._require(1 <= self.leak <= 1 << FACTOR_BITS, "leak must be in 1..2^16")


@dataclass(frozen=True, kw_only=True, eq=False)
class Attention(Op):
    """q (k^T v) per head on spike counts; channel c belongs to head c // (C / heads).

    v may have more or fewer channels than q and k, split into heads likewise; the result has those
    of v.
    """

    heads: int

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require(self.heads >= 1, "heads must be at least 1")


@dataclass(frozen=True, kw_only=True, eq=False)
class Repeat(Op):
    """(B, ...) to (steps*B, ...): a still image shown at every time step."""

    steps: int

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require_steps(self.steps)


@dataclass(frozen=True, kw_only=True, eq=False)
class Frames(Op):
    """The input has a time axis: one frame of pixels for each of `steps` time steps, (T, B, ...).

    The values pass as they are. It stands between `Normalise` and everything else.
    """

    steps: int

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require_steps(self.steps)


@dataclass(frozen=True, kw_only=True, eq=False)
class MaxPool(Op):
    """The largest value of each window; padding never wins. Floor mode: whole windows only."""

    kernel: int
    stride: int
    padding: int

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require(1 <= self.kernel <= 256, "kernel must be in 1..256")
        self._require(1 <= self.stride <= 256, "stride must be in 1..256")
        self._require(
            0 <= self.padding <= self.kernel // 2, "padding must be at most half a kernel"
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class Upsample(Op):
    """Twice the height and width.

    `nearest` copies every pixel to 2x2. `bilinear` takes pixels as areas (half-pixel centres):
    between neighbours p and q lie (3p + q) / 4 and (p + 3q) / 4, borders repeat; along both axes
    that makes sixteenths, which is the unit of the result, so that it is exact.
    """

    mode: str

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require(self.mode in UPSAMPLE_MODES, f"mode must be one of {UPSAMPLE_MODES}")


@dataclass(frozen=True, kw_only=True, eq=False)
class Concat(Op):
    """Two or more values with one unit, channels of the first before those of the next."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Reshape(Op):
    """(B, C, H, W) to (B, channels, height, width), the same numbers in row-major order."""

    channels: int
    height: int
    width: int

    def __post_init__(self) -> None:
        super().__post_init__()
        ok = min(self.channels, self.height, self.width) >= 1
        self._require(ok, "channels, height and width must be at least 1")


@dataclass(frozen=True, kw_only=True, eq=False)
class SpatialSum(Op):
    """(B, C, H, W) to (B, C, 1, 1): the exact sum over all pixels."""


@dataclass(frozen=True, kw_only=True, eq=False)
class SpatialMean(Op):
    """(B, C, H, W) to (B, C, 1, 1): floor((sum + n // 2) / n) with n = H*W; sums in 64 bits."""


@dataclass(frozen=True, kw_only=True, eq=False)
class TimeSum(Op):
    """(steps*B, ...) to (B, ...): the exact sum over time steps."""

    steps: int

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require_steps(self.steps)


def time_steps(ops: Sequence[Op]) -> int:
    """T: how many frames an image is shown for."""
    return next((op.steps for op in ops if isinstance(op, (Repeat, Frames))), 1)


# How many values an operation reads; None is two or more.
OP_INPUTS: dict[type[Op], int | None] = {
    Normalise: 0,
    Conv: 1,
    Rescale: 1,
    Add: 2,
    IELIF: 1,
    LIF: 1,
    Attention: 3,
    Repeat: 1,
    SpatialMean: 1,
    TimeSum: 1,
    ConvTranspose: 1,
    CountAdd: 2,
    Multiply: 2,
    Frames: 1,
    MaxPool: 1,
    Upsample: 1,
    Concat: None,
    Reshape: 1,
    SpatialSum: 1,
}


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, np.ndarray) and isinstance(b, np.ndarray):
        return a.dtype == b.dtype and np.array_equal(a, b)
    return bool(a == b)
