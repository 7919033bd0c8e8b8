"""A convolution and the neuron behind it as one quantised convolution with the very same counts.

A quantised convolution computes round(scale * (sum + bias)) with a whole-number bias. Folding a
norm into scale and bias and rounding the bias would move firing thresholds by up to half a unit of
the sum, which low-bit networks notice. Instead scale and bias are chosen such that each threshold
falls between the same two sums as in the integer graph. Codes of few bits are first multiplied as
far as 8 bits allow, so that whole-number biases are finer than sums.

Legend: C channels, D levels, A sums that reach a level, k the multiplier of the codes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from qsdformer.graph.ops import FACTOR_BITS, IELIF, LIF, Array, Conv, Neuron, Op, Rescale

CODE_LIMIT = 127
# Processors without VNNI add pairs of byte products in 16 bits, which saturate: the largest count
# times twice the largest code must not exceed this. Counts up to 127 never do.
BYTE_PAIR = 2**15 - 1
# Biases tried on either side of the nearest one.
TRIES = 8
# Margin a threshold must keep from a sum, relative to it, beyond what float32 rounds.
MARGIN = 1e-6


@dataclass(frozen=True, kw_only=True, eq=False)
class ThresholdConv:
    """count = clip(round(D * scale * (conv(codes) + bias)), 0, D), D the neuron's levels.

    `exact` says of which channels every count is that of the integer graph; `error` is the farthest
    that a threshold lies from where it should, in units of a count.
    """

    codes: Array  # (C_out, C_in / groups, k, k) int8
    bias: Array  # (C_out,) int32
    scale: Array  # (C_out,) float64, above 0
    exact: Array  # (C_out,) bool
    error: float


def threshold_conv(conv: Conv, rescale: Rescale, neuron: Neuron, largest: int) -> ThresholdConv:
    """The quantised convolution that does what the three do at one time step.

    `largest` is the largest input of the convolution, whose inputs are counts from 0.
    """
    flip = np.where(rescale.multiplier < 0, -1, 1)
    codes = conv.codes.astype(np.int64) * flip.reshape(-1, 1, 1, 1)
    least = largest * np.minimum(codes, 0).sum(axis=(1, 2, 3))
    most = largest * np.maximum(codes, 0).sum(axis=(1, 2, 3))
    needed = required_sums(rescale, neuron)
    needed = np.clip(needed, least[:, None], (most + 1)[:, None]).astype(np.int64)
    limit = min(CODE_LIMIT, BYTE_PAIR // (2 * largest))
    times = limit // np.maximum(np.abs(codes).max(axis=(1, 2, 3)), 1)
    times = np.maximum(times, 1)  # a code of -128 turned around
    spread, bias, exact = _fit(needed, least, most, times, *factor_and_bias(rescale))
    constant = ((needed <= least[:, None]) | (needed > most[:, None])).all(axis=1)
    fixed = (needed <= least[:, None]).sum(axis=1)
    codes = np.where(constant.reshape(-1, 1, 1, 1), 0, codes * times.reshape(-1, 1, 1, 1))
    over = (codes > CODE_LIMIT).sum(axis=(1, 2, 3))  # one unit less each, in the file
    pairs_fit = 2 * largest * np.abs(codes).max(axis=(1, 2, 3)) <= BYTE_PAIR
    exact = constant | (exact & (over == 0) & pairs_fit)
    middle = np.arange(neuron.levels) + 0.5
    placed = np.ceil((middle * spread[:, None] - bias[:, None]) / times[:, None])
    placed = np.clip(placed, least[:, None], most[:, None] + 1)
    error = (np.abs(placed - needed).max(axis=1) + largest * over) * times / np.abs(spread)
    error = np.where(exact, 0.0, np.where(pairs_fit & (spread > 0), error, np.inf))
    return ThresholdConv(
        codes=np.minimum(codes, CODE_LIMIT).astype(np.int8),
        bias=np.where(constant, fixed, bias).astype(np.int32),
        scale=np.where(constant, 1.0, 1.0 / spread) / neuron.levels,
        exact=exact,
        error=float(error.max()),
    )


def factor_and_bias(op: Rescale) -> tuple[Array, Array]:
    """A rescaling as real numbers: real result = input * factor + bias; (C,) float64."""
    factor = op.multiplier * 2.0 ** -(op.shift.astype(np.float64) + op.fraction)
    return factor, op.bias * 2.0**-op.fraction


def often_ties(op: Op) -> bool:
    """Whether results of `op` are coarse enough to lie on a threshold more often than by chance.

    Sums of spike counts are, where the factor that makes potentials of them is a power of two.
    """
    if not isinstance(op, Rescale):
        return False
    factor = np.abs(op.multiplier.astype(np.int64))
    return bool(((factor > 0) & (factor & (factor - 1) == 0)).any())


def required_sums(rescale: Rescale, neuron: Neuron) -> Array:
    """The least sum, of codes turned to positive factors, that reaches each level; (C, D) object.

    Python integers, for the products need more than 64 bits at worst.
    """
    thresholds = np.array(membrane_thresholds(neuron), object)
    multiplier = np.abs(rescale.multiplier.astype(np.int64)).astype(object)
    shift = rescale.shift.astype(object)
    half = np.array([(1 << s) >> 1 for s in shift], object)
    target = thresholds[None, :] - rescale.bias.astype(object)[:, None]
    products = target * np.array([1 << s for s in shift], object)[:, None] - half[:, None]
    never = 1 << 62
    rows = [
        [-(-p // m) if m else (-never if p <= 0 else never) for p in row]
        for row, m in zip(products, multiplier, strict=True)
    ]
    return np.array(rows, object)


def membrane_thresholds(neuron: Neuron) -> list[int]:
    """The least fixed-point input that reaches each level at a first time step."""
    if isinstance(neuron, LIF):
        half = 1 << (FACTOR_BITS - 1)
        return [-((half - (neuron.threshold << FACTOR_BITS)) // neuron.leak)]
    assert isinstance(neuron, IELIF)
    return list(neuron.thresholds)


def _fit(
    needed: Array, least: Array, most: Array, times: Array, factor: Array, offset: Array
) -> tuple[Array, Array, Array]:
    """Level distance and bias in units of k * sum such that thresholds separate the right sums.

    The threshold of level j lies at (j - 1/2) * distance - bias; it must lie above
    k * (A_j - 1) and at most at k * A_j. For each bias tried, the distances allowed are an
    interval; the bias with the widest one wins. Returns distance, bias and whether there was one.
    """
    levels = needed.shape[1]
    middle = np.arange(levels) + 0.5
    reach = (most - least + 1) * times
    with np.errstate(divide="ignore"):
        distance = times / (np.abs(factor) * levels)
    single = (distance > 2.0 * reach) | (levels == 1)
    distance = np.clip(distance, 0.5, 2.0 * reach)
    with np.errstate(divide="ignore", invalid="ignore"):
        true = np.nan_to_num(np.rint(offset * times / np.abs(factor)))
    # Where no more than one level is within reach of the sums, the distance is free and its
    # threshold goes half way between the two sums.
    inner = (needed > least[:, None]) & (needed <= most[:, None])
    level = inner.argmax(axis=1)
    sums = np.take_along_axis(needed, level[:, None], axis=1)[:, 0]
    start = np.where(single, np.rint(middle[level] * distance - times * (sums - 0.5)), true)
    best = np.full(len(needed), -np.inf)
    chosen_distance, chosen_bias = distance.copy(), start.copy()
    for step in range(-TRIES, TRIES + 1):
        bias = start + step
        low = (times[:, None] * (needed - 1) + bias[:, None]) / middle
        high = (times[:, None] * needed + bias[:, None]) / middle
        low = np.where(needed <= least[:, None], -np.inf, low).max(axis=1)
        high = np.where(needed > most[:, None], np.inf, high).min(axis=1)
        low, high = np.maximum(low, distance * 0.5), np.minimum(high, distance * 2.0)
        width = (high - low) / distance
        better = width > best
        best = np.where(better, width, best)
        chosen_distance = np.where(better, (low + high) / 2, chosen_distance)
        chosen_bias = np.where(better, bias, chosen_bias)
    return chosen_distance, chosen_bias, best > MARGIN
