from __future__ import annotations

import numpy as np
import pytest

from qsdformer.graph.packing import needed_width, pack, packed_size, unpack


@pytest.mark.parametrize("width", range(1, 64))
@pytest.mark.parametrize("count", [1, 7, 64, 1001])
def test_unpacking_gives_back_what_was_packed(width, count):
    rng = np.random.default_rng(width)
    low, high = -(2 ** (width - 1)), 2 ** (width - 1) - 1
    values = rng.integers(low, high, size=count, endpoint=True)
    values[0], values[-1] = low, high
    data = pack(values, width)
    assert len(data) == packed_size(count, width) == -(-count * width // 8)
    unpacked = unpack(data, count, width)
    assert unpacked.dtype == (np.int8 if width <= 8 else np.int32 if width <= 32 else np.int64)
    assert np.array_equal(unpacked, values)


def test_bits_lie_lowest_first():
    assert pack(np.array([1, -1, 2]), 3) == bytes([0b10_111_001, 0b0])
    assert pack(np.array([-8, 7]), 4) == bytes([0x78])
    assert pack(np.array([0x1234]), 16) == bytes([0x34, 0x12])


@pytest.mark.parametrize(
    ("values", "width"),
    [([0], 1), ([-1], 1), ([1], 2), ([-2], 2), ([127], 8), ([-128], 8), ([128], 9), ([-129], 9)],
)
def test_needed_width_is_the_smallest_that_holds_the_values(values, width):
    assert needed_width(np.array(values)) == width


def test_values_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="do not fit 3"):
        pack(np.array([4]), 3)
    with pytest.raises(ValueError, match="do not hold"):
        unpack(b"\0\0", 3, 4 + 4)
