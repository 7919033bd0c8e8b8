from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from qsdformer.graph.ops import IELIF, LIF, Conv, Rescale

pytest.importorskip("onnx")

from qsdformer.runtimes.onnx_neurons import rounds
from qsdformer.runtimes.onnx_thresholds import membrane_thresholds, threshold_conv

FRACTION = 22


def ielif(levels: int) -> IELIF:
    one = 1 << FRACTION
    return IELIF(
        name="neuron",
        inputs=("rescale",),
        steps=1,
        limit=2**31 - 1,
        thresholds=tuple((2 * k - 1) * one // (2 * levels) for k in range(1, levels + 1)),
        resets=tuple(k * one // levels for k in range(levels + 1)),
        decay=0,
    )


def layer(bits: int, levels: int, seed: int, wide: float = 1.0) -> tuple[Conv, Rescale]:
    """A random 3x3 convolution of 6 channels and a norm whose potentials cover the window."""
    generator = np.random.default_rng(seed)
    limit = 2 ** (bits - 1)
    codes = generator.integers(-limit, limit, (40, 6, 3, 3)).astype(np.int8)
    spread = levels * limit * 7
    factor = generator.uniform(0.2, 3.0, 40) / spread * generator.choice((-1, 1), 40) * wide
    multiplier = np.rint(factor * 2.0 ** (31 + FRACTION - 22)).astype(np.int64)
    return Conv(
        name="conv", inputs=("x",), codes=codes, bits=bits, stride=1, padding=1, groups=1
    ), Rescale(
        name="rescale",
        inputs=("conv",),
        multiplier=multiplier,
        shift=np.full(40, 9, np.int8),
        bias=np.rint(generator.uniform(-0.5, 1.5, 40) * 2**FRACTION).astype(np.int64),
        limit=2**31 - 1,
        fraction=FRACTION,
    )


def expected(sums: np.ndarray, rescale: Rescale, thresholds: list[int]) -> np.ndarray:
    """Counts as the integer graph defines them; sums are (S, C)."""
    half = (1 << rescale.shift.astype(np.int64)) >> 1
    potential = ((sums * rescale.multiplier + half) >> rescale.shift) + rescale.bias
    return sum((potential >= t).astype(np.int64) for t in thresholds)


def check(conv: Conv, rescale: Rescale, neuron: IELIF | LIF, largest: int) -> float:
    """Compares counts for every reachable sum; returns the share of channels called exact."""
    made = threshold_conv(conv, rescale, neuron, largest)
    flip = np.where(rescale.multiplier < 0, -1, 1)
    codes = conv.codes.astype(np.int64)
    low = largest * np.minimum(codes, 0).sum(axis=(1, 2, 3))
    high = largest * np.maximum(codes, 0).sum(axis=(1, 2, 3))
    most = int((high - low).max())
    sums = np.minimum(low + np.arange(most + 1)[:, None], high)
    # Each channel's new codes are a whole multiple of the old ones, or all zero.
    flat_new = made.codes.reshape(40, -1).astype(np.int64)
    flat_old = codes.reshape(40, -1) * flip[:, None]
    times = np.abs(flat_new).max(axis=1) // np.abs(flat_old).max(axis=1)
    unclipped = made.exact[:, None] & np.ones_like(flat_old, bool)
    assert (flat_new == flat_old * times[:, None])[unclipped].all()
    scaled = (sums * flip * times + made.bias).astype(np.float32)
    real = scaled * (made.scale * neuron.levels).astype(np.float32)
    counts = np.clip(np.rint(real), 0, neuron.levels)
    wanted = expected(sums, rescale, membrane_thresholds(neuron))
    assert (counts == wanted)[:, made.exact].all()
    assert len(np.unique(wanted)) == neuron.levels + 1
    return float(made.exact.mean())


@pytest.mark.parametrize("levels", [1, 2, 4, 8])
@pytest.mark.parametrize("bits", [2, 3, 4])
def test_counts_are_those_of_the_integer_graph_for_every_sum(bits, levels):
    for seed in range(3):
        assert check(*layer(bits, levels, seed), ielif(levels), levels) == 1.0


def test_eight_bit_channels_are_exact_or_say_that_they_are_not():
    shares = [check(*layer(8, 4, seed), ielif(4), 4) for seed in range(3)]
    assert np.mean(shares) > 0.8


def test_channels_far_smaller_than_the_window_are_exact():
    assert check(*layer(4, 4, 0, wide=1.0), ielif(4), 4) == 1.0
    conv, rescale = layer(4, 4, 1, wide=1e-2)
    made = threshold_conv(conv, rescale, ielif(4), 4)
    assert made.exact.all()
    assert np.abs(made.bias).max() < 2**30


def test_a_lif_neuron_at_one_time_step_is_exact():
    neuron = LIF(
        name="neuron",
        inputs=("rescale",),
        steps=1,
        limit=2**31 - 1,
        threshold=2**FRACTION // 3,
        leak=2**15,
    )
    assert check(*layer(4, 1, 0), neuron, 1) == 1.0


def test_a_channel_without_variance_gives_its_constant_count():
    conv, rescale = layer(4, 4, 0)
    multiplier, bias = rescale.multiplier.copy(), rescale.bias.copy()
    multiplier[0], bias[0] = 0, int(0.7 * 2**FRACTION)
    constant = Rescale(
        name="rescale",
        inputs=("conv",),
        multiplier=multiplier,
        shift=rescale.shift,
        bias=bias,
        limit=rescale.limit,
        fraction=FRACTION,
    )
    made = threshold_conv(conv, constant, ielif(4), 4)
    assert not made.codes[0].any()
    assert np.rint(made.bias[0] * made.scale[0] * 4) == 3
    assert made.exact[0]


def test_thresholds_that_no_scale_can_place_are_called_far_off():
    conv, rescale = layer(4, 4, 0)
    even = ielif(4)
    assert threshold_conv(conv, rescale, even, 4).error == 0.0
    low, *others = even.thresholds
    uneven = dataclasses.replace(even, thresholds=(low - (1 << FRACTION), *others))
    assert threshold_conv(conv, rescale, uneven, 4).error > 0.5


@pytest.mark.parametrize("largest", [127, 128, 200, 255])
def test_products_of_bytes_never_saturate_in_pairs(largest):
    """Processors without VNNI add two products in 16 bits."""
    conv, rescale = layer(4, 4, 0, wide=0.02)
    made = threshold_conv(conv, rescale, ielif(4), largest)
    assert 2 * largest * np.abs(made.codes.astype(int)).max() < 2**15
    assert made.error <= 0.05
    eight = layer(8, 4, 0, wide=0.02)
    made = threshold_conv(*eight, ielif(4), largest)
    assert (made.error <= 0.05) == (largest == 127), "128 * 2 * 128 does not fit"


def test_ties_may_go_to_the_even_count_or_up():
    up, unit = ielif(4), 2.0**-FRACTION
    even = dataclasses.replace(
        up, thresholds=tuple(t + (k % 2 == 0) for k, t in enumerate(up.thresholds))
    )
    shifted = dataclasses.replace(up, thresholds=tuple(t + 5 for t in up.thresholds))
    assert [rounds(n, unit, even=True) for n in (up, even, shifted)] == [True, True, False]
    assert [rounds(n, unit, even=False) for n in (up, even, shifted)] == [True, False, False]
    assert not rounds(up, 2 * unit, even=True)
