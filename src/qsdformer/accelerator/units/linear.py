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

from qsdformer.accelerator.encoding import Encoding, Spikes
from qsdformer.accelerator.units.work import Walk, walk
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
