"""The mask-add unit of SDSA-1: coincidences of two address lists decide over a third."""

from __future__ import annotations

from typing import Any

from amaranth.hdl import Module, Mux, Signal, unsigned
from amaranth.lib import stream
from amaranth.lib.wiring import Component, In, Out

from qsdformer.accelerator.hardware.entries import EMPTY, entry_layout


class MaskAdd(Component):
    """Passes a channel's list of q where its lists of k and v coincide often enough.

    Lists hold the `tokens` where a channel spikes. Those of k and v are merged: the smaller of two
    heads leaves, equal ones leave together and add the product of their counts to `total`. If it
    reaches the channel's threshold (one for each channel at `thresholds`), q's list goes to
    `masked` as it is, else an empty list does. There is no multiplication at one level.

    The threshold is that of a neuron without a memory: one time step, or a LIF neuron that fires at
    the first coincidence (threshold 1), as in SDT v1.

    Cycles: max(1, tokens where k or v spikes) + max(1, tokens where q does), summed over channels.
    """

    q: Any
    k: Any
    v: Any
    thresholds: Any
    masked: Any
    total: Any

    def __init__(self, *, tokens: int, levels: int = 1) -> None:
        most = unsigned((tokens * levels**2).bit_length())
        listed = stream.Signature(entry_layout(tokens, levels))
        super().__init__(
            {
                **{name: In(listed) for name in "qkv"},
                "thresholds": In(stream.Signature(most)),
                "masked": Out(listed),
                "total": Out(most),
            }
        )

    def elaborate(self, platform: object) -> Module:
        """The circuit: one state merges k and v, the other passes q or lets it fall."""
        m = Module()
        with m.FSM():
            with m.State("merge"):
                self._merge(m)
            with m.State("filter"):
                self._filter(m)
        return m

    def _merge(self, m: Module) -> None:
        k, v = self.k.payload, self.v.payload
        k_done, v_done = Signal(name="k_done"), Signal(name="v_done")
        ready = (k_done | self.k.valid) & (v_done | self.v.valid)
        alone = k_done | v_done | k.empty | v.empty  # no two heads to compare
        take_k, take_v = Signal(name="take_k"), Signal(name="take_v")
        m.d.comb += [
            take_k.eq(ready & ~k_done & (alone | (k.address <= v.address))),
            take_v.eq(ready & ~v_done & (alone | (v.address <= k.address))),
            self.k.ready.eq(take_k),
            self.v.ready.eq(take_v),
        ]
        k_ends, v_ends = k_done | (take_k & k.last), v_done | (take_v & v.last)
        m.d.sync += [k_done.eq(k_ends), v_done.eq(v_ends)]
        with m.If(take_k & take_v & ~alone):
            m.d.sync += self.total.eq(self.total + k.count * v.count)
        with m.If(k_ends & v_ends):
            m.d.sync += [k_done.eq(0), v_done.eq(0)]
            m.next = "filter"

    def _filter(self, m: Module) -> None:
        q, out = self.q, self.masked
        fires = self.total >= self.thresholds.payload
        offered = q.valid & self.thresholds.valid
        m.d.comb += [
            out.valid.eq(offered & (fires | q.payload.last)),
            q.ready.eq(offered & (out.ready | ~(fires | q.payload.last))),
            self.thresholds.ready.eq(q.ready & q.payload.last),
        ]
        for name, value in EMPTY.items():
            m.d.comb += out.payload[name].eq(Mux(fires, q.payload[name], value))
        with m.If(self.thresholds.ready):
            m.d.sync += self.total.eq(0)
            m.next = "merge"
