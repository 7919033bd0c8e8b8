"""The max-pool unit: an output fires if any spike falls in its window.

Reads lists of the `channel` layout, one entry a cycle and engine, tests all windows that the entry
can fall in at once, and writes the list of outputs, one entry a cycle, while it reads the next
list: a list takes max(1, entries read, entries written) cycles. Of counts the largest in a window
is kept; pass by pass that is the union of spikes.
"""

from __future__ import annotations

import numpy as np

from qsdformer.accelerator.design import Design, Lanes
from qsdformer.accelerator.encoding import Spikes, address_bits, encode, stored_bits
from qsdformer.accelerator.units.convolution import Window
from qsdformer.accelerator.units.work import Walk, Work, met, pass_weights, walk
from qsdformer.analysis.energy import add_energy
from qsdformer.graph.ops import MaxPool

FILL = 1


def pooled(op: MaxPool, spikes: Spikes) -> Spikes:
    """The largest count of each window, as lists of the `channel` layout."""
    window = _window(op, spikes)
    sides = window.sides
    largest = np.zeros((spikes.list_count, sides[0] * sides[1]), np.int64)
    for _, entries, places in window.taps(spikes.addresses):
        # Each place is reached once by a tap of a list.
        at = spikes.lists[entries], places
        largest[at] = np.maximum(largest[at], spikes.counts[entries])
    return encode(largest.reshape(*spikes.shape[:2], *sides), spikes.levels, "channel")


def pool_work(op: MaxPool, spikes: Spikes, made: Spikes, unit: Lanes, design: Design) -> Work:
    """What the unit does to make the lists `made`."""
    read, written = (walk(s, 1, design.encoding, design.word_bits) for s in (spikes, made))
    cycles = np.maximum(read.cycles, written.cycles)
    worked = read.cycles - read.idle
    cycles, stalls = Walk(cycles=cycles, idle=cycles - worked).on(unit.engines)
    reached = _window(op, spikes).reached(spikes.addresses)
    tests = int((pass_weights(spikes, design.encoding) * reached).sum())
    return Work(
        unit="pool",
        cycles=cycles + FILL,
        stalls=stalls,
        operations=met(spikes, design.encoding),
        capacity=(cycles + FILL) * unit.total,
        energy=tests * add_energy(address_bits(made.length)),
        inputs=(stored_bits(spikes, design.encoding),),
    )


def _window(op: MaxPool, spikes: Spikes) -> Window:
    height, width = spikes.shape[2:]
    return Window(
        kernel=op.kernel, stride=op.stride, padding=op.padding, height=height, width=width
    )
