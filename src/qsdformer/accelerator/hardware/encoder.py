"""The spike encoder: words of spike counts in, the addresses of those that are not 0 out."""

from __future__ import annotations

from typing import Any

from amaranth.hdl import Cat, Module, Mux, Signal, unsigned
from amaranth.lib import data, stream
from amaranth.lib.wiring import Component, In, Out

from qsdformer.accelerator.hardware.entries import EMPTY, entry_layout


class SpikeEncoder(Component):
    """Finds the spikes of a word of `word` positions, lowest first, one a cycle.

    `words` takes the counts of a vector of up to `positions` places, `word` places at a time, the
    last word of a vector with `last` set; places beyond the vector's end are 0. `entries` gives
    its address list. An entry leaves when it is known whether another one follows.

    Cycles: max(1, spikes of a word), summed over words, and 1 at the end of a run. (Positions with
    a count, however large, are one spike here.)
    """

    words: Any
    entries: Any

    def __init__(self, *, positions: int, word: int, levels: int = 1) -> None:
        if word < 1 or word & (word - 1):
            raise ValueError(f"word={word}: must be a power of two")
        self.positions, self.word, self.levels = positions, word, levels
        count = unsigned(levels.bit_length())
        layout = {"counts": data.ArrayLayout(count, word), "last": unsigned(1)}
        super().__init__(
            {
                "words": In(stream.Signature(data.StructLayout(layout))),
                "entries": Out(stream.Signature(entry_layout(positions, levels))),
            }
        )

    def elaborate(self, platform: object) -> Module:
        """The circuit."""
        m = Module()
        given, out = self.words.payload, self.entries
        written = Signal(self.word)  # positions of this word whose entries were made
        index = Signal(range(max(2, -(-self.positions // self.word))))  # of the word
        held, full = Signal.like(out.payload), Signal()

        active, rest = Signal(self.word), Signal(self.word)
        m.d.comb += active.eq(Cat(given.counts[i].any() for i in range(self.word)) & ~written)
        m.d.comb += rest.eq(active & (active - 1))  # without the lowest
        place, count = Signal(range(max(2, self.word))), Signal(self.levels.bit_length())
        for i in reversed(range(self.word)):
            with m.If(active[i]):
                m.d.comb += [place.eq(i), count.eq(given.counts[i])]

        found, ends = active.any(), ~rest.any() & given.last
        # The vector that this word belongs to has no entry yet.
        none = ~full | held.last
        push, flow = Signal(), Signal()
        m.d.comb += [
            push.eq(self.words.valid & (found | (ends & none))),
            out.valid.eq(full & (push | held.last)),
            out.payload.eq(held),
            flow.eq(self.words.valid & ~(push & full & ~out.ready)),
            self.words.ready.eq(flow & ~rest.any()),
        ]
        with m.If(out.valid & out.ready):
            m.d.sync += full.eq(0)
        with m.If(flow):
            m.d.sync += written.eq(Mux(rest.any(), active ^ rest | written, 0))
            with m.If(push):
                m.d.sync += full.eq(1)
                address = Cat(place[: self.word.bit_length() - 1], index)
                with m.If(found):
                    entry = {"address": address, "count": count, "empty": 0, "last": ends}
                    m.d.sync += [held[name].eq(value) for name, value in entry.items()]
                with m.Else():
                    m.d.sync += [held[name].eq(value) for name, value in EMPTY.items()]
            with m.Elif(ends):
                m.d.sync += held.last.eq(1)
            with m.If(~rest.any()):
                m.d.sync += index.eq(Mux(given.last, 0, index + 1))
        return m
