"""The sparse linear unit: the weights of each stored spike's channel, added lane by lane."""

from __future__ import annotations

from typing import Any

from amaranth.hdl import Module, Mux, Signal, signed, unsigned
from amaranth.lib import data, memory, stream
from amaranth.lib.wiring import Component, In, Out

from qsdformer.accelerator.hardware.entries import Heads, place_bits


class SparseLinear(Component):
    """Sums of 1x1 convolutions for `pixels` lists of spikes, `lanes` additions a cycle.

    A `start` goes through `lists`, one list for each pixel, whose addresses are input channels; in
    `passes` passes, one after the other, for spikes that are stored one by one. An entry takes
    chunks = ceil(outputs / lanes) cycles, in each of which a word of weights is added to sums of
    its pixel; a count above 1 multiplies the weights. When all is added, the sums leave at `sums`,
    pixel by pixel, a word of `lanes` a cycle, and are 0 again.

    Weights are written at `weights`: row channel * chunks + i has those of outputs from i * lanes.

    Cycles from `start` to the last addition, in which `busy` is set: max(1, entries * chunks),
    summed over lists, and 2 to fill: an engine of the simulator's linear unit.
    """

    lists: Any
    weights: Any
    sums: Any
    start: Any
    busy: Any

    def __init__(
        self,
        *,
        inputs: int,
        outputs: int,
        pixels: int,
        lanes: int,
        weight_bits: int = 4,
        sum_bits: int = 16,
        levels: int = 1,
        passes: int = 1,
    ) -> None:
        if min(inputs, outputs, pixels, lanes, passes) < 1:
            given = f"{inputs=}, {outputs=}, {pixels=}, {lanes=}, {passes=}"
            raise ValueError(f"{given}: all must be at least 1")
        needed = (inputs * levels * passes << (weight_bits - 1)).bit_length() + 1
        if sum_bits < needed:
            raise ValueError(f"{sum_bits=}: sums of {inputs} inputs may need {needed} bits")
        self.inputs, self.levels, self.passes = inputs, levels, passes
        self.pixels, self.lanes = pixels, lanes
        self.chunks = -(-outputs // lanes)
        self.rows = inputs * self.chunks
        self.weight_word = data.ArrayLayout(signed(weight_bits), lanes)
        self.sum_word = data.ArrayLayout(signed(sum_bits), lanes)
        weights = {"row": unsigned(place_bits(self.rows)), "values": self.weight_word}
        sums = {"values": self.sum_word, "last": unsigned(1)}
        heads = Heads(positions=inputs, levels=levels, lists=pixels * passes)
        super().__init__(
            {
                "start": In(1),
                "busy": Out(1),
                "lists": In(heads),
                "weights": In(stream.Signature(data.StructLayout(weights))),
                "sums": Out(stream.Signature(data.StructLayout(sums))),
            }
        )

    def elaborate(self, platform: object) -> Module:
        """The circuit: an entry, a clock later its weights, another one later their addition."""
        m = Module()
        m.submodules.weights = weights = memory.Memory(
            shape=self.weight_word, depth=self.rows, init=[]
        )
        m.submodules.partial = partial = memory.Memory(
            shape=self.sum_word, depth=self.pixels * self.chunks, init=[]
        )
        kept = partial.write_port()
        known = partial.read_port(domain="sync", transparent_for=(kept,))
        begun = Signal(self.pixels)  # which pixels have sums other than 0
        added, given = Signal(), self.weights
        write = weights.write_port()
        m.d.comb += [
            write.en.eq(given.valid),
            write.addr.eq(given.payload.row),
            write.data.eq(given.payload.values),
            given.ready.eq(1),
            self.lists.start.eq(self.start),
            self.busy.eq(self.start | self.lists.valid | added),
        ]
        started = Signal()
        with m.If(self.start):
            m.d.sync += started.eq(1)
        self._add(m, weights.read_port(domain="sync"), known, kept, begun, added)
        with m.If(started & ~self.busy):
            self._leave(m, known, begun, started)
        return m

    def _add(
        self, m: Module, weights: Any, known: Any, kept: Any, begun: Signal, added: Signal
    ) -> None:
        lists = self.lists
        chunk, pixel = Signal(range(max(2, self.chunks))), Signal(place_bits(self.pixels))
        ends = lists.empty | (chunk == self.chunks - 1)
        place = pixel * self.chunks + chunk
        with m.If(lists.valid):
            m.d.comb += [
                weights.addr.eq(lists.spike.address * self.chunks + chunk),
                known.addr.eq(place),
                lists.advance.eq(ends),
            ]
            m.d.sync += chunk.eq(Mux(ends, 0, chunk + 1))
            with m.If(ends & (lists.empty | lists.last)):
                m.d.sync += pixel.eq(Mux(pixel == self.pixels - 1, 0, pixel + 1))
            with m.If(ends & ~lists.empty):
                m.d.sync += begun.bit_select(pixel, 1).eq(1)

        # What the next clock adds.
        adds, continues = Signal(), Signal()
        where, factor = Signal.like(known.addr), Signal.like(lists.spike.count)
        m.d.sync += [
            added.eq(lists.valid),
            adds.eq(lists.valid & ~lists.empty),
            continues.eq(begun.bit_select(pixel, 1)),
            where.eq(place),
            factor.eq(lists.spike.count),
        ]
        m.d.comb += [kept.en.eq(adds), kept.addr.eq(where)]
        for lane in range(self.lanes):
            before = Mux(continues, known.data[lane], 0)
            m.d.comb += kept.data[lane].eq(before + weights.data[lane] * factor)

    def _leave(self, m: Module, known: Any, begun: Signal, started: Signal) -> None:
        out = self.sums
        pixel, chunk = Signal(place_bits(self.pixels)), Signal(range(max(2, self.chunks)))
        there, last_chunk = Signal(), chunk == self.chunks - 1
        last = last_chunk & (pixel == self.pixels - 1)
        m.d.comb += [
            known.addr.eq(pixel * self.chunks + chunk),
            out.valid.eq(there),
            out.payload.last.eq(last_chunk),
        ]
        for lane in range(self.lanes):
            value = Mux(begun.bit_select(pixel, 1), known.data[lane], 0)
            m.d.comb += out.payload.values[lane].eq(value)
        # The word after the one that leaves is read meanwhile.
        m.d.sync += there.eq(1)
        with m.If(there & out.ready):
            after = Mux(last_chunk, pixel + 1, pixel)
            follows = Mux(last_chunk, 0, chunk + 1)
            m.d.comb += known.addr.eq(after * self.chunks + follows)
            m.d.sync += [pixel.eq(after), chunk.eq(follows)]
            with m.If(last):
                m.d.sync += [there.eq(0), started.eq(0), begun.eq(0), pixel.eq(0)]
