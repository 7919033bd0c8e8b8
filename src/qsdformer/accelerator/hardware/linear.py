"""The sparse linear unit: weight columns of the stored positions, added lane by lane."""

from __future__ import annotations

from typing import Any

from amaranth.hdl import Module, Mux, Signal, signed, unsigned
from amaranth.lib import data, memory, stream
from amaranth.lib.wiring import Component, In, Out

from qsdformer.accelerator.hardware.entries import entry_layout


class SparseLinear(Component):
    """Sums of the weights of `inputs` by spike counts, for `outputs` sums, `lanes` a cycle.

    A vector's list comes in at `entries` (one token and time step); its sums leave at `sums`,
    `lanes` a cycle and in order, while its last entry is added. Weights are written at `weights`:
    row address * chunks + i holds the `lanes` weights of outputs i * lanes and on, where chunks =
    ceil(outputs / lanes). A spike count above 1 multiplies the weight, or with `repeat` the weight
    is added so many times, which needs no multiplier.

    Cycles: max(1, n) * chunks, summed over vectors, and 1 at the end of a run for the memory's
    latency; n counts a vector's entries, with `repeat` its spikes. An empty vector has no weight to
    read but its zeros to put out.
    """

    entries: Any
    weights: Any
    sums: Any

    def __init__(
        self,
        *,
        inputs: int,
        outputs: int,
        lanes: int,
        weight_bits: int = 4,
        sum_bits: int = 16,
        levels: int = 1,
        repeat: bool = False,
    ) -> None:
        if min(inputs, outputs, lanes) < 1:
            raise ValueError(f"{inputs=}, {outputs=}, {lanes=}: all must be at least 1")
        self.lanes, self.levels, self.repeat = lanes, levels, repeat
        self.chunks = -(-outputs // lanes)
        self.rows = inputs * self.chunks
        self.row = data.ArrayLayout(signed(weight_bits), lanes)
        self.result = data.ArrayLayout(signed(sum_bits), lanes)
        write = {"row": unsigned(max(1, (self.rows - 1).bit_length())), "values": self.row}
        result = {"values": self.result, "last": unsigned(1)}
        super().__init__(
            {
                "entries": In(stream.Signature(entry_layout(inputs, levels))),
                "weights": In(stream.Signature(data.StructLayout(write))),
                "sums": Out(stream.Signature(data.StructLayout(result))),
            }
        )

    def elaborate(self, platform: object) -> Module:
        """The circuit: addresses of weights and sums, then one clock later the additions."""
        m = Module()
        m.submodules.stored = stored = memory.Memory(shape=self.row, depth=self.rows, init=[])
        m.submodules.partial = partial = memory.Memory(
            shape=self.result, depth=self.chunks, init=[]
        )
        written, kept = stored.write_port(), partial.write_port()
        read = stored.read_port(domain="sync")
        known = partial.read_port(domain="sync", transparent_for=(kept,))

        entry, go = self.entries.payload, Signal()
        chunk, repeats = Signal(range(max(2, self.chunks))), Signal(range(self.levels + 1))
        first = Signal(init=1)  # of a vector: sums start at 0
        row_ends, entry_ends = chunk == self.chunks - 1, Signal()
        again = (repeats + 1 < entry.count) & ~entry.empty if self.repeat else 0
        m.d.comb += [
            written.en.eq(self.weights.valid),
            written.addr.eq(self.weights.payload.row),
            written.data.eq(self.weights.payload.values),
            self.weights.ready.eq(1),
            entry_ends.eq(row_ends & ~again),
            read.addr.eq(entry.address * self.chunks + chunk),
            read.en.eq(go & ~entry.empty),
            known.addr.eq(chunk),
            known.en.eq(go),
            self.entries.ready.eq(go & entry_ends),
        ]
        with m.If(go):
            m.d.sync += chunk.eq(Mux(row_ends, 0, chunk + 1))
            with m.If(row_ends):
                m.d.sync += repeats.eq(Mux(again, repeats + 1, 0))
                m.d.sync += first.eq(entry.last & ~again)

        # What the next clock adds.
        busy, begins, ends = Signal(), Signal(), Signal()
        place, factor = Signal.like(chunk), Signal.like(entry.count)
        stall = busy & ends & ~self.sums.ready
        m.d.comb += go.eq(self.entries.valid & ~stall)
        with m.If(~stall):
            once = 1 if self.repeat else entry.count
            m.d.sync += [
                busy.eq(self.entries.valid),
                begins.eq(first),
                ends.eq(entry.last & ~again),
                place.eq(chunk),
                factor.eq(Mux(entry.empty, 0, once)),
            ]
        total = self.sums.payload.values
        for lane in range(self.lanes):
            before = Mux(begins, 0, known.data[lane])
            m.d.comb += total[lane].eq(before + read.data[lane] * factor)
        m.d.comb += [
            kept.en.eq(busy),
            kept.addr.eq(place),
            kept.data.eq(total),
            self.sums.valid.eq(busy & ends),
            self.sums.payload.last.eq(place == self.chunks - 1),
        ]
        return m
