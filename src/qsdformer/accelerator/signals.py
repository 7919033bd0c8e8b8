"""What is known of the values of an integer graph before anything is run.

Which values are spike counts, which layout their readers want, which operations make a stage, and
where a value lies.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from qsdformer.accelerator.design import Design
from qsdformer.accelerator.encoding import Layout
from qsdformer.graph.check import Shape, check_graph
from qsdformer.graph.integer import IntegerGraph
from qsdformer.graph.ops import (
    Attention,
    Concat,
    Conv,
    ConvTranspose,
    CountAdd,
    Frames,
    MaxPool,
    Multiply,
    Neuron,
    Op,
    Repeat,
    Reshape,
    SpatialSum,
    TimeSum,
    Upsample,
)

# Spikes in, spikes out; the rest makes potentials or sums.
KEEPS_SPIKES = (MaxPool, Repeat, CountAdd, Multiply, Concat, Reshape, SpatialSum, TimeSum, Upsample)
# What stands at the head of a stage; what follows is done on the fly.
HEADS = (Conv, ConvTranspose, Attention, Multiply, MaxPool)
# Nothing is computed: readers find the same numbers where they lay.
VIEWS = (Repeat, Frames, Reshape)


@dataclass(frozen=True, kw_only=True, eq=False)
class Signals:
    """What is known of each value, by the name of its operation."""

    shapes: dict[str, Shape]
    spikes: frozenset[str]
    readers: dict[str, list[Op]]
    ops: dict[str, Op]
    stages: dict[str, int]
    results: frozenset[str]
    gathers: bool
    dense: bool

    def layouts(self, name: str) -> list[Layout]:
        """The layouts in which readers want the spikes `name`, each once."""
        if self.dense:  # an array reads maps
            return ["pixel"]
        found: list[Layout] = []
        for reader in self.readers[name]:
            for wanted in self.wanted(reader, name):
                if wanted not in found:
                    found.append(wanted)
        return found or ["pixel"]

    def wanted(self, reader: Op, name: str) -> Iterable[Layout]:
        """The layouts in which one reader wants them."""
        if isinstance(reader, Conv):
            gathers = is_linear(reader) or (self.gathers and reader.groups == 1)
            return ("pixel",) if gathers else ("channel",)
        if isinstance(reader, (ConvTranspose, Attention)):
            return ("pixel",)
        if isinstance(reader, Multiply):
            # A mask is bits by channel; what it filters stays as its own readers want it.
            filtered = self.masks(reader) and self.tokens(name) > 1
            return self.layouts(reader.name) if filtered else ("channel",)
        if isinstance(reader, MaxPool):
            return ("channel",)
        return self.layouts(reader.name) if reader.name in self.spikes else ("pixel",)

    def tokens(self, name: str) -> int:
        """Pixels of a value's map."""
        return self.shapes[name].height * self.shapes[name].width

    def masks(self, op: Multiply) -> bool:
        """Whether one of the factors is a single pixel, and the other is not."""
        a, b = (self.tokens(name) for name in op.inputs)
        return min(a, b) == 1 < max(a, b)

    def home(self, name: str) -> str:
        """The value that lies in memory for `name`."""
        while isinstance(self.ops[name], VIEWS):
            name = self.ops[name].inputs[0]
        return name

    def levels(self, name: str) -> int:
        """The largest count of spikes."""
        return max(1, int(self.shapes[name].bound.max()))

    def sum_bits(self, name: str) -> int:
        """Bits of a signed accumulator that holds every value of `name`."""
        return int(self.shapes[name].bound.max()).bit_length() + 1

    def is_kept(self, name: str) -> bool:
        """Whether a value is read after its stage, so that it has to lie on the chip."""
        return any(
            self.is_kept(reader.name) or reader.name in self.results
            if isinstance(reader, VIEWS)
            else self.stages[reader.name] != self.stages[name]
            for reader in self.readers[name]
        )

    def last_uses(self) -> dict[str, str]:
        """The last operation that reads each value that lies in memory."""
        last: dict[str, str] = {}
        for op in self.ops.values():
            for name in op.inputs:
                last[self.home(name)] = op.name
        return last


def is_linear(op: Conv) -> bool:
    """Whether a convolution is one of 1x1 over all channels."""
    return op.codes.shape[-1] == 1 and op.groups == 1


def signals(graph: IntegerGraph, design: Design) -> Signals:
    """What is known of the values of `graph` before `design` computes them."""
    spikes: set[str] = set()
    readers: dict[str, list[Op]] = {op.name: [] for op in graph.ops}
    stages: dict[str, int] = {}
    stage = 0
    for op in graph.ops:
        bilinear = isinstance(op, Upsample) and op.mode == "bilinear"
        passed = isinstance(op, KEEPS_SPIKES) and not bilinear
        if isinstance(op, Neuron) or (passed and all(n in spikes for n in op.inputs)):
            spikes.add(op.name)
        for name in op.inputs:
            readers[name].append(op)
        stage += isinstance(op, HEADS)
        stages[op.name] = stage
    return Signals(
        shapes=check_graph(graph),
        spikes=frozenset(spikes),
        readers=readers,
        ops={op.name: op for op in graph.ops},
        stages=stages,
        results=frozenset(output.op for output in graph.results),
        gathers=design.units.convolution is not None and design.units.convolution.order == "gather",
        dense=design.kind == "dense",
    )
