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

from typing import cast

import numpy as np

from qsdformer.accelerator.design import Design, EncoderUnit
from qsdformer.accelerator.encoding import Encoding, Spikes
from qsdformer.accelerator.units.work import Walk, Work, pass_weights
from qsdformer.analysis.energy import add_energy, mult_energy
from qsdformer.graph.ops import FACTOR_BITS, IELIF, LIF, Neuron

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
        fill=FILL,
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
