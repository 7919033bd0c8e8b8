"""The mask-add unit of SDSA-1: coincidences of two address lists decide over a third."""

from __future__ import annotations

from typing import Any

from amaranth.hdl import Module, Mux, Signal, unsigned
from amaranth.lib import stream
from amaranth.lib.wiring import Component, In, Out

from qsdformer.accelerator.hardware.entries import Heads, written_layout


class MaskAdd(Component):
    """Passes a channel's spikes of q where its lists of k and v coincide often enough.

    There is a list for each of `channels` channels, whose addresses are the `tokens` where it
    spikes. After `start` the lists of k and v are merged, channel by channel: of the two entries at
    hand the one with the smaller address leaves; equal ones leave together, and the product of
    their counts is added to the channel's `total`; when either list has ended, what is left of the
    other is skipped. A channel whose total reaches its threshold (`thresholds`, one for each) has a
    mask. Then the lists of q are read: entries of channels with a mask go to `masked`, which has
    the lists of all channels, the others empty.

    The threshold is that of a neuron without a memory: one time step, or a LIF neuron that fires at
    the first coincidence (threshold 1), as published with SDSA-1.

    Cycles: while `merging`, max(1, comparisons), summed over channels, and 1 to fill; while
    `filtering`, max(1, entries of q), summed over channels, and 1 to fill: an engine of the
    simulator's mask-add unit.
    """

    start: Any
    merging: Any
    filtering: Any
    q: Any
    k: Any
    v: Any
    thresholds: Any
    total: Any
    masked: Any

    def __init__(self, *, channels: int, tokens: int, levels: int = 1) -> None:
        self.channels, self.tokens, self.levels = channels, tokens, levels
        most = tokens * levels**2
        self.most = unsigned(most.bit_length())
        never = unsigned((most + 1).bit_length())  # the threshold of a channel that has no mask
        heads = Heads(positions=tokens, levels=levels, lists=channels)
        super().__init__(
            {
                "start": In(1),
                "merging": Out(1),
                "filtering": Out(1),
                **{name: In(heads) for name in "qkv"},
                "thresholds": In(stream.Signature(never)),
                "total": Out(self.most),
                "masked": Out(stream.Signature(written_layout(tokens, levels))),
            }
        )

    def elaborate(self, platform: object) -> Module:
        """The circuit: a state that merges k and v, and one that filters q."""
        m = Module()
        masks = Signal(self.channels)
        m.d.comb += [self.k.start.eq(self.start), self.v.start.eq(self.start)]
        with m.FSM():
            with m.State("merge"):
                m.d.comb += self.merging.eq(self.start | self.k.valid)
                with m.If(self.k.valid):
                    self._merge(m, masks)
            with m.State("begin"):
                m.d.comb += [self.filtering.eq(1), self.q.start.eq(1)]
                m.next = "filter"
            with m.State("filter"):
                m.d.comb += self.filtering.eq(1)
                with m.If(self.q.valid):
                    self._filter(m, masks)
        return m

    def _merge(self, m: Module, masks: Signal) -> None:
        k, v = self.k, self.v
        none = k.empty | v.empty
        take_k = ~none & (k.spike.address <= v.spike.address)
        take_v = ~none & (v.spike.address <= k.spike.address)
        met = Mux(take_k & take_v, k.spike.count * v.spike.count, 0)
        ends = none | (take_k & k.last) | (take_v & v.last)
        kept = Signal(self.most)  # of this channel, before the entries at hand
        m.d.comb += self.total.eq(kept + met)
        with m.If(~ends):
            m.d.comb += [k.advance.eq(take_k), v.advance.eq(take_v)]
            m.d.sync += kept.eq(self.total)
        with m.Elif(self.thresholds.valid):
            reached = self.total >= self.thresholds.payload
            m.d.comb += [k.skip.eq(1), v.skip.eq(1), self.thresholds.ready.eq(1)]
            m.d.sync += [kept.eq(0), masks.bit_select(k.index, 1).eq(reached)]
            with m.If(k.index == self.channels - 1):
                m.next = "begin"

    def _filter(self, m: Module, masks: Signal) -> None:
        q, out = self.q, self.masked
        passes = masks.bit_select(q.index, 1) & ~q.empty
        ends = q.empty | q.last
        m.d.comb += [
            out.valid.eq(passes | ends),
            out.payload.spikes[0].eq(q.spike),
            out.payload.filled.eq(passes),
            out.payload.last.eq(ends),
            q.advance.eq(out.ready | ~out.valid),
        ]
        with m.If(ends & q.advance & (q.index == self.channels - 1)):
            m.next = "merge"
