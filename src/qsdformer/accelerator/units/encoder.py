"""The spike encoding array: membrane potentials in, lists of addresses out.

An engine compares `lanes` potentials of one list in a cycle with the neuron's thresholds and
writes the addresses of those that fired, `ports` a cycle; a group of `lanes` potentials of which
k entries are written takes max(1, ceil(k / ports)) cycles. So

    cycles = FILL + max over engines of (sum over groups of max(1, ceil(k / ports)))

k counts the entries of all passes: spikes with `address`, counts that are not 0 with
`address+count`, none with `bitmap`, whose bits are written as they are. Groups begin anew with each
list. FILL is paid once: potentials are read in the cycle before their comparison.
"""

from __future__ import annotations

import numpy as np

from qsdformer.accelerator.encoding import Encoding, Spikes
from qsdformer.accelerator.units.work import Walk, pass_weights

FILL = 1


def encoder_walk(spikes: Spikes, lanes: int, ports: int, encoding: Encoding) -> Walk:
    """Cycles to write each list, without FILL."""
    groups = -(-spikes.length // lanes)
    cycles = np.ones(spikes.list_count * groups, np.int64)
    if encoding != "bitmap":
        slots = spikes.lists * groups + spikes.addresses // lanes
        written = np.bincount(slots, pass_weights(spikes, encoding), minlength=len(cycles))
        cycles = np.maximum(cycles, -(-written.astype(np.int64) // ports))
    per_list = cycles.reshape(-1, groups)
    return Walk(cycles=per_list.sum(axis=1), idle=(per_list - 1).sum(axis=1))
