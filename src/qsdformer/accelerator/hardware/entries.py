"""Spikes as entries of address lists: the wires, and what they stand for.

An entry says where a spike is and how many there are. They are written `ports` at a time: the first
`filled` of these, which may be none, and `last` says that the list ends with them.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from amaranth.hdl import unsigned
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import ceil_log2


def place_bits(positions: int) -> int:
    """Bits that tell so many positions apart, at least one."""
    return max(1, ceil_log2(positions))


def spike_layout(positions: int, levels: int) -> data.StructLayout:
    """One of `positions` places and a spike count of 1 to `levels`."""
    if positions < 1 or levels < 1:
        raise ValueError(f"positions={positions}, levels={levels}: both must be at least 1")
    return data.StructLayout(
        {"address": unsigned(place_bits(positions)), "count": unsigned(levels.bit_length())}
    )


def written_layout(positions: int, levels: int, ports: int = 1) -> data.StructLayout:
    """Entries as they are written in a cycle."""
    return data.StructLayout(
        {
            "spikes": data.ArrayLayout(spike_layout(positions, levels), ports),
            "filled": unsigned(ports.bit_length()),
            "last": unsigned(1),
        }
    )


class Heads(wiring.Signature):
    """What reads lists in order: the first entry left of the list at hand, as it is known.

    A cycle after `start` the first list is at hand, while `valid`, with its number `index`. Where
    it is `empty` there is no `spike`; `last` says that no entry follows. `advance` goes to the
    next entry, after the last or only one of a list to the next list; `skip` goes to the next list.
    """

    def __init__(self, *, positions: int, levels: int, lists: int) -> None:
        super().__init__(
            {
                "start": In(1),
                "valid": Out(1),
                "index": Out(place_bits(lists)),
                "spike": Out(spike_layout(positions, levels)),
                "empty": Out(1),
                "last": Out(1),
                "advance": In(1),
                "skip": In(1),
            }
        )


def counts_of(written: Iterable[Any], positions: int) -> list[list[int]]:
    """Spike counts by position, of every list in a sequence of what is written."""
    found, current = [], [0] * positions
    for entries in written:
        for spike in list(entries["spikes"])[: entries["filled"]]:
            current[spike["address"]] = spike["count"]
        if entries["last"]:
            found.append(current)
            current = [0] * positions
    return found
