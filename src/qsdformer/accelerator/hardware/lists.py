"""The memory of encoded spikes: address lists behind each other, and where each of them ends."""

from __future__ import annotations

from typing import Any

from amaranth.hdl import Array, Module, Signal, unsigned
from amaranth.lib import memory, stream
from amaranth.lib.wiring import Component, In, Out

from qsdformer.accelerator.hardware.entries import Heads, place_bits, spike_layout, written_layout


class SpikeLists(Component):
    """Holds up to `lists` lists of `capacity` entries in all, written once and read in order.

    `written` takes `ports` entries a cycle, each to a bank of its own; `clear` forgets them all.
    `read` goes through all lists that are complete, as often as it is started: the entry to come is
    chosen while the one at hand is looked at, so that it is there a cycle later, even where it
    begins another list.
    """

    clear: Any
    written: Any
    read: Any

    def __init__(
        self, *, positions: int, lists: int, ports: int = 1, levels: int = 1, capacity: int = 0
    ) -> None:
        if ports < 1 or ports & (ports - 1):
            raise ValueError(f"ports={ports}: must be a power of two")
        self.positions, self.levels, self.lists, self.ports = positions, levels, lists, ports
        self.rows = -(-(capacity or positions * lists) // ports)
        super().__init__(
            {
                "clear": In(1),
                "written": In(stream.Signature(written_layout(positions, levels, ports))),
                "read": Out(Heads(positions=positions, levels=levels, lists=lists)),
            }
        )

    def elaborate(self, platform: object) -> Module:
        """The circuit."""
        m = Module()
        capacity = self.rows * self.ports
        bits = place_bits(capacity + 1)
        layout = spike_layout(self.positions, self.levels)
        ends = memory.Memory(shape=unsigned(bits), depth=self.lists, init=[])
        m.submodules.ends = ends
        banks = [memory.Memory(shape=layout, depth=self.rows, init=[]) for _ in range(self.ports)]
        for number, bank in enumerate(banks):
            m.submodules[f"spikes{number}"] = bank
        used, complete = Signal(bits), Signal(range(self.lists + 1))
        self._write(m, [bank.write_port() for bank in banks], ends.write_port(), used, complete)

        read, end = self.read, ends.read_port(domain="sync")
        spikes = [bank.read_port(domain="sync") for bank in banks]
        entry, number = Signal(bits), Signal.like(complete)  # at hand
        next_entry, next_number = Signal.like(entry), Signal.like(number)
        leaves = read.skip | (read.advance & (read.empty | read.last))
        running, port_bits = Signal(), self.ports.bit_length() - 1
        at_hand = Array(port.data.as_value() for port in spikes)[entry[:port_bits]]
        m.d.comb += [
            read.valid.eq(running),
            read.index.eq(number),
            read.spike.eq(layout(at_hand)),
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
        m.d.comb += [port.addr.eq(next_entry >> port_bits) for port in spikes]
        m.d.comb += end.addr.eq(next_number)
        return m

    def _write(self, m: Module, banks: list[Any], end: Any, used: Signal, complete: Signal) -> None:
        written, port_bits = self.written, self.ports.bit_length() - 1
        after, take = Signal(len(used) + 1), Signal()
        m.d.comb += [
            after.eq(used + written.payload.filled),
            written.ready.eq((after <= self.rows * self.ports) & (complete != self.lists)),
            take.eq(written.valid & written.ready),
            end.en.eq(take & written.payload.last),
            end.addr.eq(complete),
            end.data.eq(after),
        ]
        spikes = Array(written.payload.spikes[i].as_value() for i in range(self.ports))
        for number, bank in enumerate(banks):
            # Which of the entries comes to lie in this bank, and in which row.
            which = Signal(max(1, port_bits), name=f"which{number}")
            m.d.comb += [
                which.eq((number - used)[:port_bits]),
                bank.en.eq(take & (which < written.payload.filled)),
                bank.addr.eq((used + which) >> port_bits),
                bank.data.eq(spikes[which]),
            ]
        with m.If(take):
            m.d.sync += [used.eq(after), complete.eq(complete + written.payload.last)]
        with m.If(self.clear):
            m.d.sync += [used.eq(0), complete.eq(0)]
