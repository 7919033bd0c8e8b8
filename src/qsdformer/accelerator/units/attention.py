"""The mask-add unit: attention by coincidences, without products.

It reads the lists of k and v, of the `channel` layout, side by side: a merge. Each cycle
compares the two addresses at the heads of a pair of lists. Where they are equal, the accumulator
of the channel grows by the product of their counts (by 1 for spikes) and both lists advance; else
the one with the smaller address does. A pair is done when either list is at its end; a pair of
which one list is empty takes one cycle. So

    cycles = FILL + max over engines of (sum over pairs of max(1, comparisons))

With `address` each of the D passes of k meets each of the D passes of v; with `address+count`
there is one pass. With `bitmap`, words of `word` bits of both are taken together, one pair of
words a cycle. FILL is paid once: both heads are read in the cycle before the first comparison.

The mask then filters the lists of q: one entry a cycle and engine passes if its channel's mask is
set; an empty list takes a cycle.
"""

from __future__ import annotations

import numpy as np

from qsdformer.accelerator.design import Design, Lanes
from qsdformer.accelerator.encoding import (
    Encoding,
    Spikes,
    address_bits,
    bits_to_tell,
    stored_bits,
)
from qsdformer.accelerator.units.work import Walk, Work, met, passes, walk
from qsdformer.analysis.energy import add_energy, mult_energy
from qsdformer.graph.ops import Array

FILL = 1


def intersection(a: Spikes, b: Spikes) -> Spikes:
    """What both hold, with the products of their counts, in the layout that they share."""
    key_a, key_b = (s.lists * s.length + s.addresses for s in (a, b))
    _, in_a, in_b = np.intersect1d(key_a, key_b, assume_unique=True, return_indices=True)
    return Spikes(
        shape=a.shape,
        levels=a.levels * b.levels,
        layout=a.layout,
        lists=a.lists[in_a],
        addresses=a.addresses[in_a],
        counts=a.counts[in_a] * b.counts[in_b],
    )


def merge_walk(a: Spikes, b: Spikes, encoding: Encoding, word: int) -> Walk:
    """Cycles of each pair of lists, without FILL, over all passes."""
    total = np.zeros(a.list_count, np.int64)
    idle = np.zeros(a.list_count, np.int64)
    for entries_a in passes(a, encoding):
        for entries_b in passes(b, encoding):
            if encoding == "bitmap":
                total += -(-a.length // word)
                continue
            steps = comparisons(a, b, entries_a, entries_b)
            total += np.maximum(steps, 1)
            idle += steps == 0
    return Walk(cycles=total, idle=idle)


def comparisons(a: Spikes, b: Spikes, entries_a: Array, entries_b: Array) -> Array:
    """How many comparisons the merge of each pair of lists takes, (lists,)."""
    lists = a.list_count
    (lists_a, at_a), (lists_b, at_b) = (
        (s.lists[e], s.addresses[e]) for s, e in ((a, entries_a), (b, entries_b))
    )
    last_a, last_b = _last(lists_a, at_a, lists), _last(lists_b, at_b, lists)
    both = (last_a >= 0) & (last_b >= 0)
    # What is read of each list: nothing beyond the end of the other.
    read_a = both[lists_a] & (at_a <= last_b[lists_a])
    read_b = both[lists_b] & (at_b <= last_a[lists_b])
    equal = np.intersect1d(lists_a * a.length + at_a, lists_b * b.length + at_b, assume_unique=True)
    steps = np.bincount(lists_a[read_a], minlength=lists)
    steps += np.bincount(lists_b[read_b], minlength=lists)
    return steps - np.bincount(equal // a.length, minlength=lists)


def _last(lists: Array, addresses: Array, count: int) -> Array:
    """The largest address of each list, -1 for an empty one."""
    last = np.full(count, -1, np.int64)
    last[lists] = addresses  # entries ascend: the last one stays
    return last


def merge_work(k: Spikes, v: Spikes, made: Spikes, unit: Lanes, design: Design) -> Work:
    """What the mask-add unit does to intersect k and v."""
    encoding = design.encoding
    walked = merge_walk(k, v, encoding, design.word_bits)
    cycles, stalls = walked.on(unit.engines)
    compared = int((walked.cycles - walked.idle).sum())
    energy = compared * add_energy(address_bits(k.length))
    each = add_energy(bits_to_tell(k.length * k.levels * v.levels + 1))
    if encoding == "address+count" and max(k.levels, v.levels) > 1:
        each += mult_energy((bits_to_tell(k.levels + 1), bits_to_tell(v.levels + 1)))
    energy += met(made, encoding) * each
    again = (1, 1) if encoding == "address+count" else (v.levels, k.levels)
    return Work(
        unit="mask_add",
        cycles=cycles + FILL,
        stalls=stalls,
        operations=compared,
        capacity=(cycles + FILL) * unit.total,
        energy=energy,
        inputs=tuple(
            times * stored_bits(s, encoding) for s, times in zip((k, v), again, strict=True)
        ),
    )


def masked(spikes: Spikes, mask: Array, levels: int) -> Spikes:
    """The entries of `spikes` whose channel and image have a mask (C, B), times its count.

    No count exceeds `levels`.
    """
    channel, image, _ = spikes.indices
    factor = mask[channel, image]
    kept = factor > 0
    return Spikes(
        shape=spikes.shape,
        levels=levels,
        layout=spikes.layout,
        lists=spikes.lists[kept],
        addresses=spikes.addresses[kept],
        counts=spikes.counts[kept] * factor[kept],
    )


def mask_work(q: Spikes, mask: Spikes, unit: Lanes, design: Design) -> Work:
    """What the mask-add unit does to filter q."""
    cycles, stalls = walk(q, 1, design.encoding, design.word_bits).on(unit.engines)
    entries = met(q, design.encoding)
    return Work(
        unit="mask_add",
        cycles=cycles + FILL,
        stalls=stalls,
        operations=entries,
        capacity=(cycles + FILL) * unit.total,
        energy=entries * add_energy(1),
        inputs=(stored_bits(q, design.encoding), stored_bits(mask, design.encoding)),
    )
