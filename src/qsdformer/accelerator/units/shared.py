"""Engines in step, so that one reading of weights serves them all.

As many lists as there are engines pass by together. The addresses that any of them holds are met
one after the other; a word of weights is read once and goes to the engines whose list has the
address, while the others wait. So a group of lists takes max(1, addresses in any) * G cycles for
each pass, with `bitmap` as much for each word. Neighbouring pixels share their channels, and the
more, the more they fire: at high rates this is a dense array that leaves out silent channels.
"""

from __future__ import annotations

import numpy as np

from qsdformer.accelerator.design import Design
from qsdformer.accelerator.encoding import Spikes
from qsdformer.accelerator.units.work import passes
from qsdformer.graph.ops import Array


def steps_together(spikes: Spikes, places: Array, engines: int, design: Design) -> tuple[int, int]:
    """Addresses to step through, empty groups and words as one, and those that weights are read of.

    `places` (lists,) says which place in the order of lists each has, -1 if it is not read; place i
    is in group i // engines.
    """
    there = np.unique(places[places >= 0] // engines)
    if not len(there):
        return 0, 0
    groups = int(there[-1]) + 1
    words = -(-spikes.length // design.word_bits) if design.encoding == "bitmap" else 1
    steps = read = 0
    for entries in passes(spikes, design.encoding):
        at = places[spikes.lists[entries]]
        addresses = spikes.addresses[entries][at >= 0]
        keys = np.unique(at[at >= 0] // engines * spikes.length + addresses)
        group, address = np.divmod(keys, spikes.length)
        slots = group * words + (address // design.word_bits if words > 1 else 0)
        met = np.bincount(slots, minlength=groups * words).reshape(groups, words)
        steps += int(np.maximum(met[there], 1).sum())
        read += len(keys)
    return steps, read
