"""The sparse linear unit: for every spike of a pixel, the weights of its channel are added.

Reads lists of the `pixel` layout. An engine takes one list after the other and one entry after the
other; its `lanes` adders add one word of weights, the codes of `lanes` outputs of one input
channel, in a cycle. So an entry takes G = ceil(N_out / lanes) cycles, and

    cycles = FILL + max over engines of (sum over lists of max(1, entries * G))

where `entries` are those of a list in one pass: with `address` there are D passes through each
list, and a spike is an entry; with `address+count` there is one, and a lane adds count * code.
With `bitmap`, every word of `word` bits takes max(1, spikes) * G cycles.
FILL is paid once an operation: an address is read in the first cycle, its first word of weights
in the second, and the first addition is done in the third.

The lanes hold the sums of `lanes` outputs in registers while a list passes by, and then of the
next ones: the list is read G times, sums are never, and every addition reads a weight, unless the
engines work in step and share weights (`shared.py`).

A 3x3 convolution is the same work where it gathers: the entries of the nine lists around a pixel,
each with the weights of its tap. There, a list of one tap takes max(1, entries * G) cycles.
"""

from __future__ import annotations

import numpy as np
from scipy import sparse  # type: ignore[import-untyped]

from qsdformer.accelerator.design import AdderUnit, Design
from qsdformer.accelerator.encoding import Encoding, Spikes, list_bits, stored_bits
from qsdformer.accelerator.units.convolution import window_of
from qsdformer.accelerator.units.shared import steps_together
from qsdformer.accelerator.units.work import (
    Walk,
    Work,
    lane_energy,
    met,
    pass_weights,
    require_output,
    walk,
)
from qsdformer.graph.ops import Array, Conv

FILL = 2


def linear_sums(codes: Array, spikes: Spikes) -> Array:
    """Sums (lists, N_out) int64 of codes (N_out, N_in) over the entries of `pixel` lists."""
    table = sparse.csr_matrix(
        (spikes.counts, (spikes.lists, spikes.addresses)), (spikes.list_count, spikes.length)
    )
    return table @ np.ascontiguousarray(codes.T, dtype=np.int64)


def linear_walk(spikes: Spikes, outputs: int, lanes: int, encoding: Encoding, word: int) -> Walk:
    """Cycles of each list, without FILL, for `outputs` sums a list on engines of `lanes` adders."""
    words = -(-outputs // lanes)
    if encoding == "bitmap":
        return walk(spikes, 1, encoding, word) * words
    return walk(spikes, words, encoding, word)


def linear_work(
    name: str,
    outputs: int,
    bits: int,
    sum_bits: int,
    spikes: Spikes,
    unit: AdderUnit,
    design: Design,
) -> Work:
    """What the unit does for `outputs` sums of `sum_bits` a list, with weights of `bits`.

    Where the buffer of weights holds fewer outputs, these are brought there part by part.
    """
    require_output(name, design, "weights", spikes.length * bits)
    words = -(-outputs // unit.lanes)
    walked = linear_walk(spikes, outputs, unit.lanes, design.encoding, design.word_bits)
    additions = met(spikes, design.encoding) * outputs
    taken, read = walked.on(unit.engines), additions
    if unit.shares_weights:
        places = np.arange(spikes.list_count)
        steps, addresses = steps_together(spikes, places, unit.engines, design)
        taken, read = _in_step(steps * words, walked, unit), addresses * outputs
    return added_work(
        taken,
        additions,
        spikes.spikes * outputs,
        additions * lane_energy(spikes, design, sum_bits, bits),
        stored_bits(spikes, design.encoding) * words,
        read * bits,
        unit,
    )


def gather_work(op: Conv, sum_bits: int, spikes: Spikes, unit: AdderUnit, design: Design) -> Work:
    """What the unit does for a convolution over all channels that gathers."""
    _, batch, height, width = spikes.shape
    window, encoding = window_of(op, height, width), design.encoding
    outputs = len(op.codes)
    require_output(op.name, design, "weights", op.codes[0].size * op.bits)
    words = -(-outputs // unit.lanes)
    walked = linear_walk(spikes, outputs, unit.lanes, encoding, design.word_bits)
    bits = list_bits(spikes, encoding)
    entries = np.bincount(spikes.lists, pass_weights(spikes, encoding), minlength=spikes.list_count)
    counts = np.bincount(spikes.lists, spikes.counts, minlength=spikes.list_count)
    image, position = np.divmod(np.arange(spikes.list_count), height * width)
    places = batch * window.sides[0] * window.sides[1]
    cycles, idle = np.zeros(places, np.int64), np.zeros(places, np.int64)
    read = met_entries = met_spikes = steps = addresses = 0
    for _, lists, at in window.taps(position):
        to = image[lists] * (places // batch) + at
        cycles[to] += walked.cycles[lists]
        idle[to] += walked.idle[lists]
        read += int(bits[lists].sum())
        met_entries += int(entries[lists].sum())
        met_spikes += int(counts[lists].sum())
        if unit.shares_weights:
            of_lists = np.full(spikes.list_count, -1)
            of_lists[lists] = to
            of_tap = steps_together(spikes, of_lists, unit.engines, design)
            steps, addresses = steps + of_tap[0], addresses + of_tap[1]
    additions = met_entries * outputs
    gathered = Walk(cycles=cycles, idle=idle)
    taken, weights = gathered.on(unit.engines), additions
    if unit.shares_weights:
        taken, weights = _in_step(steps * words, gathered, unit), addresses * outputs
    return added_work(
        taken,
        additions,
        met_spikes * outputs,
        additions * lane_energy(spikes, design, sum_bits, op.bits),
        read * words,
        weights * op.bits,
        unit,
        name="convolution",
    )


def _in_step(cycles: int, walked: Walk, unit: AdderUnit) -> tuple[int, float]:
    """Cycles of engines in step, and those, the mean over engines, in which one only waits."""
    return cycles, cycles - float((walked.cycles - walked.idle).sum()) / unit.engines


def added_work(
    walked: tuple[int, float],
    additions: int,
    synaptic: int,
    energy: float,
    lists: int,
    weights: int,
    unit: AdderUnit,
    name: str = "linear",
) -> Work:
    """The work of `additions` whose sums are in registers, with bits of `lists` and `weights`."""
    cycles = walked[0] + FILL
    return Work(
        unit=name,
        cycles=cycles,
        stalls=walked[1],
        operations=additions,
        synaptic=synaptic,
        capacity=cycles * unit.total,
        energy=energy,
        inputs=(lists,),
        weights=weights,
    )
