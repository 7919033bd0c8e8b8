"""Address lists as streams: one stored spike position an entry.

Lists need no length: `last` ends one, and an empty list is one entry with `empty` set, whose other
fields mean nothing. Positions ascend within a list.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from amaranth.hdl import unsigned
from amaranth.lib import data
from amaranth.utils import ceil_log2

Entry = dict[str, int]
EMPTY: Entry = {"address": 0, "count": 0, "empty": 1, "last": 1}


def entry_layout(positions: int, levels: int = 1) -> data.StructLayout:
    """Wires of an entry: one of `positions` places and a spike count of 1 to `levels`."""
    if positions < 1 or levels < 1:
        raise ValueError(f"positions={positions}, levels={levels}: both must be at least 1")
    return data.StructLayout(
        {
            "address": unsigned(max(1, ceil_log2(positions))),
            "count": unsigned(levels.bit_length()),
            "empty": unsigned(1),
            "last": unsigned(1),
        }
    )


def entries(counts: Sequence[int]) -> list[Entry]:
    """The address list of spike counts by position."""
    found = [
        {"address": position, "count": int(count), "empty": 0, "last": 0}
        for position, count in enumerate(counts)
        if count
    ]
    if not found:
        return [dict(EMPTY)]
    found[-1]["last"] = 1
    return found


def counts(listed: Iterable[Any], positions: int) -> list[list[int]]:
    """Spike counts by position of every list in a sequence of entries."""
    found, current = [], [0] * positions
    for entry in listed:
        if not entry["empty"]:
            current[entry["address"]] = entry["count"]
        if entry["last"]:
            found.append(current)
            current = [0] * positions
    return found
