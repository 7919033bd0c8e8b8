"""The spike encoder: words of spike counts in, the addresses of those that are not 0 out."""

from __future__ import annotations

from typing import Any

from amaranth.hdl import Cat, Module, Mux, Signal, unsigned
from amaranth.lib import data, stream
from amaranth.lib.wiring import Component, In, Out

from qsdformer.accelerator.hardware.entries import place_bits, written_layout


class SpikeEncoder(Component):
    """Finds the spikes among `lanes` positions at a time, lowest first, `ports` of them a cycle.

    `words` takes the counts of a list of up to `positions` places, `lanes` a word, the last word of
    a list with `last` set; places beyond its end are 0. `entries` gives the list.

    Cycles: max(1, counts of a word that are not 0 / ports, rounded up), summed over words, and 1 to
    fill: an engine of the simulator's encoder.
    """

    words: Any
    entries: Any

    def __init__(self, *, positions: int, lanes: int, ports: int = 1, levels: int = 1) -> None:
        if lanes < 1 or lanes & (lanes - 1):
            raise ValueError(f"lanes={lanes}: must be a power of two")
        if not 1 <= ports <= lanes:
            raise ValueError(f"ports={ports}: must be in 1..{lanes}, the lanes")
        self.positions, self.lanes, self.ports, self.levels = positions, lanes, ports, levels
        counts = data.ArrayLayout(unsigned(levels.bit_length()), lanes)
        word = data.StructLayout({"counts": counts, "last": unsigned(1)})
        super().__init__(
            {
                "words": In(stream.Signature(word)),
                "entries": Out(stream.Signature(written_layout(positions, levels, ports))),
            }
        )

    def elaborate(self, platform: object) -> Module:
        """The circuit."""
        m = Module()
        word, out = self.words.payload, self.entries
        written = Signal(self.lanes)  # positions of this word whose entries were made
        index = Signal(place_bits(-(-self.positions // self.lanes)))  # of this word in its list
        active = Signal(self.lanes)
        m.d.comb += active.eq(Cat(word.counts[i].any() for i in range(self.lanes)) & ~written)
        left, found = active, Signal.like(out.payload.as_value())
        made = out.payload.shape()(found)
        for port in range(self.ports):
            place, count = Signal(range(self.lanes)), Signal(self.levels.bit_length())
            for i in reversed(range(self.lanes)):
                with m.If(left[i]):
                    m.d.comb += [place.eq(i), count.eq(word.counts[i])]
            m.d.comb += made.spikes[port].address.eq(Cat(place, index))
            m.d.comb += made.spikes[port].count.eq(count)
            rest = Signal(self.lanes)
            m.d.comb += rest.eq(left & (left - 1))  # without the lowest
            left = rest

        go, ends = Signal(), ~left.any()
        m.d.comb += [
            made.filled.eq(sum(active[i] & ~left[i] for i in range(self.lanes))),
            made.last.eq(word.last & ends),
            go.eq(self.words.valid & (out.ready | ~out.valid)),
            self.words.ready.eq(go & ends),
        ]
        with m.If(out.ready):
            m.d.sync += out.valid.eq(0)
        with m.If(go):
            m.d.sync += [
                written.eq(Mux(ends, 0, written | (active ^ left))),
                out.valid.eq(active.any() | word.last),
                out.payload.eq(made),
            ]
            with m.If(ends):
                m.d.sync += index.eq(Mux(word.last, 0, index + 1))
        return m
