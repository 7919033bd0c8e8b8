"""The memory of encoded spikes: address lists behind each other, and where each of them ends."""

from __future__ import annotations

from typing import Any

from amaranth.hdl import Module, Signal, unsigned
from amaranth.lib import memory, stream
from amaranth.lib.wiring import Component, In, Out

from qsdformer.accelerator.hardware.entries import Heads, place_bits, spike_layout, written_layout


class SpikeLists(Component):
    """Holds up to `lists` lists of `capacity` entries in all, written once and read in order.

    `written` takes entries, an entry a cycle; `clear` forgets them all. `read` goes through all
    lists that are complete, as often as it is started: the entry to come is chosen while the one at
    hand is looked at, so that it is there a cycle later, even where it begins another list.
    """

    clear: Any
    written: Any
    read: Any

    def __init__(self, *, positions: int, lists: int, levels: int = 1, capacity: int = 0) -> None:
        self.positions, self.levels, self.lists = positions, levels, lists
        self.capacity = capacity or positions * lists
        super().__init__(
            {
                "clear": In(1),
                "written": In(stream.Signature(written_layout(positions, levels))),
                "read": Out(Heads(positions=positions, levels=levels, lists=lists)),
            }
        )

    def elaborate(self, platform: object) -> Module:
        """The circuit."""
        m = Module()
        spikes = memory.Memory(
            shape=spike_layout(self.positions, self.levels), depth=self.capacity, init=[]
        )
        bits = place_bits(self.capacity + 1)
        ends = memory.Memory(shape=unsigned(bits), depth=self.lists, init=[])
        m.submodules.spikes, m.submodules.ends = spikes, ends
        used, complete = Signal(bits), Signal(range(self.lists + 1))
        self._write(m, spikes.write_port(), ends.write_port(), used, complete)

        read, spike, end = self.read, spikes.read_port(domain="sync"), ends.read_port(domain="sync")
        entry, number = Signal(bits), Signal.like(complete)  # at hand
        next_entry, next_number = Signal.like(entry), Signal.like(number)
        leaves = read.skip | (read.advance & (read.empty | read.last))
        running = Signal()
        m.d.comb += [
            read.valid.eq(running),
            read.index.eq(number),
            read.spike.eq(spike.data),
            read.empty.eq(entry == end.data),
            read.last.eq(entry + 1 == end.data),
            next_entry.eq(entry),
            next_number.eq(number),
        ]
        with m.If(read.start):
            m.d.comb += [next_entry.eq(0), next_number.eq(0)]
            m.d.sync += running.eq(complete != 0)
        with m.Elif(running & leaves):
            m.d.comb += [next_entry.eq(end.data), next_number.eq(number + 1)]
            m.d.sync += running.eq(number + 1 != complete)
        with m.Elif(running & read.advance):
            m.d.comb += next_entry.eq(entry + 1)
        m.d.sync += [entry.eq(next_entry), number.eq(next_number)]
        m.d.comb += [spike.addr.eq(next_entry), end.addr.eq(next_number)]
        return m

    def _write(self, m: Module, spike: Any, end: Any, used: Signal, complete: Signal) -> None:
        written = self.written
        after = used + written.payload.filled
        m.d.comb += [
            written.ready.eq((used != self.capacity) & (complete != self.lists)),
            spike.en.eq(written.valid & written.ready & written.payload.filled),
            spike.addr.eq(used),
            spike.data.eq(written.payload.spike),
            end.en.eq(written.valid & written.ready & written.payload.last),
            end.addr.eq(complete),
            end.data.eq(after),
        ]
        with m.If(written.valid & written.ready):
            m.d.sync += [used.eq(after), complete.eq(complete + written.payload.last)]
        with m.If(self.clear):
            m.d.sync += [used.eq(0), complete.eq(0)]
