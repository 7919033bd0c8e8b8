"""Integers at their real width: a bit stream of two's complement values, lowest bit first.

Value i occupies bits i*width to (i+1)*width - 1 of the stream; bit j of the stream is bit j % 8
of byte j // 8. The last byte is filled with zeros. Widths are 1 to 63.
"""

from __future__ import annotations

import numpy as np

from qsdformer.graph.ops import Array

MAX_WIDTH = 63


def packed_size(count: int, width: int) -> int:
    """Bytes that `count` values of `width` bits take."""
    return -(-count * width // 8)


def needed_width(values: Array) -> int:
    """Smallest width in bits, at least 1, that holds all `values` in two's complement."""
    low, high = int(values.min()), int(values.max())
    # In two's complement a negative value is as wide as its complement, ~low = -low - 1.
    return 1 + max(v.bit_length() for v in (max(high, 0), max(~low, 0)))


def pack(values: Array, width: int) -> bytes:
    """`values` in row-major order as a bit stream; ValueError if one does not fit."""
    if not needed_width(values) <= width <= MAX_WIDTH:
        raise ValueError(f"values of {needed_width(values)} bits do not fit {width}")
    cell = _cell(width)
    raw = np.ascontiguousarray(values, dtype=f"<i{cell}").reshape(-1, 1).view(np.uint8)
    bits = np.unpackbits(raw, axis=1, count=width, bitorder="little")
    return np.packbits(bits.reshape(-1), bitorder="little").tobytes()


def unpack(data: bytes | memoryview, count: int, width: int) -> Array:
    """The inverse of `pack`: (count,) int8 up to 8 bits of width, int32 up to 32, int64 above."""
    if not 1 <= width <= MAX_WIDTH or len(data) != packed_size(count, width):
        raise ValueError(f"{len(data)} bytes do not hold {count} values of {width} bits")
    stream = np.unpackbits(np.frombuffer(data, np.uint8), count=count * width, bitorder="little")
    cell = _cell(width)
    raw = np.packbits(stream.reshape(count, width), axis=1, bitorder="little")
    unsigned = np.zeros((count, cell), np.uint8)
    unsigned[:, : raw.shape[1]] = raw
    values = unsigned.view(f"<u{cell}").reshape(-1).astype(f"u{cell}", copy=False)
    sign = values.dtype.type(1 << (width - 1))
    return ((values ^ sign) - sign).view(f"i{cell}")


def _cell(width: int) -> int:
    """Bytes of the NumPy integer that holds `width` bits."""
    return 1 if width <= 8 else 4 if width <= 32 else 8
