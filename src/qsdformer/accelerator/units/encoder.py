"""The spike encoding array: membrane potentials in, lists of addresses out.

An engine compares `lanes` potentials of one list in a cycle with the neuron's thresholds and
writes the addresses of those that fired, `ports` a cycle; a group of `lanes` potentials of which
k entries are written takes max(1, ceil(k / ports)) cycles. So

    cycles = FILL + max over engines of (sum over passes and groups of max(1, ceil(k / ports)))

With `address` each of the D passes is a list of its own, which is scanned for those that exceed its
threshold; with `address+count` there is one pass, and k counts what is not 0; with `bitmap` there
is one too, and bits are written as they are. Groups begin anew with each list. FILL is paid once:
potentials are read in the cycle before their comparison.
"""

from __future__ import annotations

from typing import cast

import numpy as np

from qsdformer.accelerator.design import Design, EncoderUnit
from qsdformer.accelerator.encoding import Encoding, Spikes
from qsdformer.accelerator.units.work import Walk, Work, passes
from qsdformer.analysis.energy import add_energy, mult_energy
from qsdformer.graph.ops import FACTOR_BITS, IELIF, LIF, Neuron

FILL = 1


def encoder_walk(spikes: Spikes, lanes: int, ports: int, encoding: Encoding) -> Walk:
    """Cycles to write each list, without FILL."""
    groups = -(-spikes.length // lanes)
    scanned = np.full(spikes.list_count, groups, np.int64)
    if encoding == "bitmap":
        return Walk(cycles=scanned, idle=np.zeros_like(scanned))
    slots = spikes.lists * groups + spikes.addresses // lanes
    total, idle = np.zeros_like(scanned), np.zeros_like(scanned)
    for entries in passes(spikes, encoding):
        written = np.bincount(slots[entries], minlength=spikes.list_count * groups)
        cycles = np.maximum(1, -(-written // ports)).reshape(-1, groups).sum(axis=1)
        total += cycles
        idle += cycles - scanned
    return Walk(cycles=total, idle=idle)


def encoder_work(
    op: Neuron, spikes: Spikes, bits: int, unit: EncoderUnit, design: Design, *, first: bool = True
) -> Work:
    """What the array does to compare potentials of `bits` and write `spikes`.

    Lists of another layout, not the `first`, are written without comparing anew.
    """
    if design.encoding == "dense":
        engines, values = unit.total, int(np.prod(spikes.shape))
        cycles, stalls = -(-values // engines), 0.0
    else:
        walked = encoder_walk(spikes, unit.lanes, unit.ports, design.encoding)
        cycles, stalls = walked.on(unit.engines)
    updates = int(np.prod(spikes.shape))
    additions, multiplications = neuron_arithmetic(op) if first else (0, 0)
    return Work(
        unit="encoder",
        cycles=cycles + FILL,
        stalls=stalls,
        operations=updates,
        capacity=(cycles + FILL) * unit.total,
        energy=updates
        * (additions * add_energy(bits) + multiplications * mult_energy((bits, FACTOR_BITS))),
    )


def neuron_arithmetic(op: Neuron) -> tuple[int, int]:
    """Additions (comparisons among them) and multiplications of one update of one neuron.

    As in the energy ledger: factors that are powers of two are shifts, and free.
    """
    if isinstance(op, LIF):
        return 3, 0 if _is_shift(op.leak) else 1
    if op.steps == 1:
        return op.levels, 0
    decay = cast(IELIF, op).decay
    return op.levels + 2, 0 if decay == 0 or _is_shift(decay) else 1


def _is_shift(factor: int) -> bool:
    return factor & (factor - 1) == 0
