"""Units with their encoders and list memories: from spike counts to sums, or to masked spikes."""

from __future__ import annotations

from typing import Any

from amaranth.hdl import Cat, Module
from amaranth.lib.wiring import Component, In, Out, connect, flipped

from qsdformer.accelerator.hardware.encoder import SpikeEncoder
from qsdformer.accelerator.hardware.linear import SparseLinear
from qsdformer.accelerator.hardware.lists import SpikeLists
from qsdformer.accelerator.hardware.mask_add import MaskAdd


class EncodedLists(Component):
    """An encoder and the memory that it writes its lists to; `encoding` while it is at work."""

    clear: Any
    words: Any
    read: Any
    encoding: Any

    def __init__(
        self, *, positions: int, lists: int, lanes: int, ports: int = 1, levels: int = 1
    ) -> None:
        self.encoder = SpikeEncoder(positions=positions, lanes=lanes, ports=ports, levels=levels)
        self.lists = SpikeLists(positions=positions, lists=lists, ports=ports, levels=levels)
        super().__init__(
            {
                "clear": In(1),
                "words": self.encoder.signature.members["words"],
                "read": self.lists.signature.members["read"],
                "encoding": Out(1),
            }
        )

    def elaborate(self, platform: object) -> Module:
        """The circuit."""
        m = Module()
        m.submodules.encoder, m.submodules.lists = self.encoder, self.lists
        connect(m, self.encoder.entries, self.lists.written)
        connect(m, flipped(self.words), self.encoder.words)
        connect(m, flipped(self.read), self.lists.read)
        busy = self.words.valid | self.encoder.entries.valid
        m.d.comb += [self.encoding.eq(busy), self.lists.clear.eq(self.clear)]
        return m


class EncodedLinear(Component):
    """A sparse linear unit with an encoder of its own, of `encoder_lanes` and `ports`."""

    clear: Any
    words: Any
    encoding: Any
    start: Any
    busy: Any
    weights: Any
    sums: Any

    def __init__(self, linear: SparseLinear, *, encoder_lanes: int, ports: int = 1) -> None:
        self.linear = linear
        self.lists = EncodedLists(
            positions=linear.inputs,
            lists=linear.pixels * linear.passes,
            lanes=encoder_lanes,
            ports=ports,
            levels=linear.levels,
        )
        inner = {**self.lists.signature.members, **linear.signature.members}
        super().__init__({k: v for k, v in inner.items() if k not in ("read", "lists")})

    def elaborate(self, platform: object) -> Module:
        """The circuit."""
        m = Module()
        m.submodules.lists, m.submodules.linear = self.lists, self.linear
        connect(m, self.lists.read, self.linear.lists)
        connect(m, flipped(self.words), self.lists.words)
        for name in ("weights", "sums"):
            connect(m, flipped(getattr(self, name)), getattr(self.linear, name))
        m.d.comb += [
            self.lists.clear.eq(self.clear),
            self.encoding.eq(self.lists.encoding),
            self.linear.start.eq(self.start),
            self.busy.eq(self.linear.busy),
        ]
        return m


class EncodedMaskAdd(Component):
    """A mask-add unit with an encoder each for q, k and v, of `encoder_lanes` and `ports`."""

    clear: Any
    encoding: Any
    start: Any
    merging: Any
    filtering: Any
    total: Any
    thresholds: Any
    masked: Any

    def __init__(self, unit: MaskAdd, *, encoder_lanes: int, ports: int = 1) -> None:
        self.unit = unit
        self.lists = {
            name: EncodedLists(
                positions=unit.tokens,
                lists=unit.channels,
                lanes=encoder_lanes,
                ports=ports,
                levels=unit.levels,
            )
            for name in "qkv"
        }
        inner = {k: v for k, v in unit.signature.members.items() if k not in "qkv"}
        words = {name: lists.signature.members["words"] for name, lists in self.lists.items()}
        super().__init__({"clear": In(1), "encoding": Out(1), **words, **inner})

    def elaborate(self, platform: object) -> Module:
        """The circuit."""
        m = Module()
        unit = m.submodules.unit = self.unit
        for name, lists in self.lists.items():
            m.submodules[name] = lists
            connect(m, lists.read, getattr(unit, name))
            connect(m, flipped(getattr(self, name)), lists.words)
            m.d.comb += lists.clear.eq(self.clear)
        for name in ("thresholds", "masked"):
            connect(m, flipped(getattr(self, name)), getattr(unit, name))
        m.d.comb += [
            unit.start.eq(self.start),
            self.encoding.eq(Cat(lists.encoding for lists in self.lists.values()).any()),
            self.merging.eq(unit.merging),
            self.filtering.eq(unit.filtering),
            self.total.eq(unit.total),
        ]
        return m
