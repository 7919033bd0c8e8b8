"""The sparse linear unit: for every spike of a pixel, the weights of its channel are added.

Reads lists of the `pixel` layout. An engine takes one list after the other and one entry after the
other; its `lanes` adders add one word of weights, the codes of `lanes` outputs of one input
channel, in a cycle. So an entry takes G = ceil(N_out / lanes) cycles, and

    cycles = FILL + max over engines of (sum over lists of max(1, entries * G))

where `entries` are those of a list in one pass: with `address` there are D passes through all
lists, and a spike is an entry; with `address+count` there is one, and a lane adds count * code.
With `bitmap`, max(1, entries * G) is counted for every word of `word` bits instead of every list.
FILL is paid once an operation: an address is read in the first cycle, its first word of weights
in the second, and the first addition is done in the third. Sums stay in accumulators until the
list ends and leave while the next list is added.
"""

from __future__ import annotations

import numpy as np
from scipy import sparse

from qsdformer.accelerator.design import Design, Lanes
from qsdformer.accelerator.encoding import Encoding, Spikes, stored_bits
from qsdformer.accelerator.units.work import (
    Walk,
    Work,
    lane_energy,
    met,
    outputs_a_tile,
    tiles,
    walk,
)
from qsdformer.graph.ops import Array

FILL = 2


def linear_sums(codes: Array, spikes: Spikes) -> Array:
    """Sums (lists, N_out) int64 of codes (N_out, N_in) over the entries of `pixel` lists."""
    table = sparse.csr_matrix(
        (spikes.counts, (spikes.lists, spikes.addresses)), (spikes.list_count, spikes.length)
    )
    return table @ np.ascontiguousarray(codes.T, dtype=np.int64)


def linear_walk(spikes: Spikes, outputs: int, lanes: int, encoding: Encoding, word: int) -> Walk:
    """Cycles of each list, without FILL, for `outputs` sums a list on engines of `lanes` adders."""
    return walk(spikes, -(-outputs // lanes), encoding, word)


def linear_work(
    name: str, outputs: int, bits: int, sum_bits: int, spikes: Spikes, unit: Lanes, design: Design
) -> Work:
    """What the unit does for `outputs` sums of `sum_bits` a list, with weights of `bits`.

    Where the buffers hold fewer outputs, the lists are read once more for each tile of them.
    """
    at_once = outputs_a_tile(name, design, spikes.length * bits, sum_bits * unit.engines, outputs)
    parts = tiles(outputs, at_once)
    walks = [
        linear_walk(spikes, size, unit.lanes, design.encoding, design.word_bits) * times
        for size, times in parts
    ]
    cycles, stalls = sum(walks[1:], walks[0]).on(unit.engines)
    additions = met(spikes, design.encoding) * outputs
    drained = spikes.list_count * outputs * sum_bits
    return Work(
        unit="linear",
        cycles=cycles + FILL,
        fill=FILL,
        stalls=stalls,
        operations=additions,
        synaptic=spikes.spikes * outputs,
        capacity=(cycles + FILL) * unit.total,
        energy=additions * lane_energy(spikes, design, sum_bits, bits),
        inputs=(stored_bits(spikes, design.encoding) * sum(times for _, times in parts),),
        weights=additions * bits,
        reads=additions * sum_bits + drained,
        writes=additions * sum_bits,
    )
