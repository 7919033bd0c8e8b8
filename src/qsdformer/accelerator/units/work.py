"""What a unit did for an operation, and the cycles of units that walk through lists.

A unit reads one entry of a list after the other. An empty list costs the cycle in which its length
is read; in a bitmap every word costs one. Units of several engines take list i on engine i modulo
their number, and an operation lasts as long as the engine with most to do.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from qsdformer.accelerator.design import KIB_BITS, Design
from qsdformer.accelerator.encoding import Encoding, Layout, Spikes, bits_to_tell
from qsdformer.analysis.energy import add_energy, mult_energy
from qsdformer.errors import UserError
from qsdformer.graph.ops import Array


@dataclass(frozen=True, kw_only=True)
class Work:
    """What `unit` did: `cycles` from its first to its last, pipeline fill among them.

    `capacity` is how many `operations`, additions or comparisons, its lanes could have done in
    that time; `stalls` are cycles, the mean over its engines, in which no lane did anything for
    want of spikes: empty lists, empty words, entries that reach no output, other engines' work.
    `energy` is that of arithmetic in pJ. Bits that it read: `inputs`, of each input of the
    operation, `weights` and `reads` of accumulators; that it wrote there: `writes`. `layouts`
    are those of the lists that it read, of each input; none where nothing depends on them.
    """

    unit: str
    cycles: int
    stalls: float = 0.0
    operations: int = 0
    synaptic: int = 0  # additions that spikes cause, those of the energy ledger
    capacity: int = 0
    energy: float = 0.0
    inputs: tuple[int, ...] = ()
    layouts: tuple[Layout, ...] = ()
    weights: int = 0
    reads: int = 0
    writes: int = 0


@dataclass(frozen=True, kw_only=True)
class Walk:
    """Cycles that each list takes, (lists,), and those in which no lane had work."""

    cycles: Array
    idle: Array

    def on(self, engines: int, owner: Array | None = None) -> tuple[int, float]:
        """Cycles until the last engine is done, and stalls as the mean over engines.

        `owner` says which engine takes each list, if not list i engine i modulo their number.
        """
        owner = np.arange(len(self.cycles)) % engines if owner is None else owner
        loads = np.bincount(owner, self.cycles, minlength=engines).astype(np.int64)
        longest = int(loads.max(initial=0))
        return longest, float((longest - loads).sum() + self.idle.sum()) / engines

    def __add__(self, other: Walk) -> Walk:
        """One after the other."""
        return Walk(cycles=self.cycles + other.cycles, idle=self.idle + other.idle)

    def __mul__(self, times: int) -> Walk:
        """So many times."""
        return Walk(cycles=self.cycles * times, idle=self.idle * times)


def walk(spikes: Spikes, cost: Array | int, encoding: Encoding, word: int) -> Walk:
    """Cycles of each list where an entry takes `cost` cycles, one for all or (n,).

    An entry of cost 0 is read and dropped, in one cycle without work.
    """
    total = np.zeros(spikes.list_count, np.int64)
    idle = np.zeros(spikes.list_count, np.int64)
    costs = np.broadcast_to(np.asarray(cost, np.int64), spikes.lists.shape)
    for entries in passes(spikes, encoding):
        slots, per_list = spikes.lists[entries], 1
        if encoding == "bitmap":
            per_list = -(-spikes.length // word)
            slots = slots * per_list + spikes.addresses[entries] // word
        size = spikes.list_count * per_list
        taken = np.maximum(costs[entries], 1)
        cycles = np.bincount(slots, taken, minlength=size).astype(np.int64)
        worked = np.bincount(slots, costs[entries], minlength=size).astype(np.int64)
        cycles = np.maximum(cycles, 1)
        total += cycles.reshape(-1, per_list).sum(axis=1)
        idle += (cycles - worked).reshape(-1, per_list).sum(axis=1)
    return Walk(cycles=total, idle=idle)


def passes(spikes: Spikes, encoding: Encoding) -> Iterator[Array]:
    """The entries (bool (n,)) that each pass through the lists meets."""
    if encoding == "address+count":
        yield np.ones(len(spikes.counts), bool)
    else:
        for level in range(spikes.levels):
            yield spikes.counts > level


def pass_weights(spikes: Spikes, encoding: Encoding) -> Array:
    """How often each entry is met in all passes, (n,)."""
    return np.ones_like(spikes.counts) if encoding == "address+count" else spikes.counts


def met(spikes: Spikes, encoding: Encoding) -> int:
    """How many entries all passes meet together."""
    return int(pass_weights(spikes, encoding).sum())


def lane_energy(spikes: Spikes, design: Design, bits: int, operand: int) -> float:
    """pJ of adding an `operand`-bit number to a sum of `bits` for an entry that a unit meets.

    Where counts are stored beside addresses, the number is multiplied by the count first.
    """
    energy = add_energy(bits)
    if design.encoding == "address+count" and spikes.levels > 1:
        energy += mult_energy((operand, bits_to_tell(spikes.levels + 1)))
    return energy


def require_output(what: str, design: Design, name: str, bits: int) -> None:
    """`UserError` if a buffer does not hold the `bits` that a single output needs."""
    buffer = design.buffers.named()[name]
    if bits > buffer.bits:
        raise UserError(
            f"{what}: buffers.{name} of {buffer.kib:g} KiB of design {design.name} is too small: "
            f"one output needs {bits / KIB_BITS:.2f} KiB"
        )


def tiles(outputs: int, per_tile: int) -> list[tuple[int, int]]:
    """Sizes of tiles, each with how many there are of it."""
    full, rest = divmod(outputs, per_tile)
    return [(size, times) for size, times in ((per_tile, full), (rest, 1)) if size and times]
