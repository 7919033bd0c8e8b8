"""A network's images through a design, stage by stage.

A stage is an operation that a unit of its own carries out (a convolution, an attention, a pool)
with what follows it on the fly: factors, shortcuts, neurons. Stages run one after the other. In a
stage the units work as a pipeline, and DRAM is read and written meanwhile, so that the stage lasts
as long as the slowest of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from qsdformer.accelerator.design import Design
from qsdformer.accelerator.machine import PIXEL_BITS, Machine
from qsdformer.accelerator.signals import VIEWS, Signals, signals
from qsdformer.accelerator.traffic import DRAM, Memory, Traffic
from qsdformer.accelerator.units.work import Work
from qsdformer.graph.integer import IntegerGraph
from qsdformer.graph.ops import Array, Conv, ConvTranspose, Neuron, Normalise, Op
from qsdformer.graph.reference import checked_images


@dataclass
class UnitTotal:
    """What a unit did, over several operations or images."""

    cycles: int = 0
    stalls: float = 0.0
    operations: int = 0
    synaptic: int = 0
    capacity: int = 0
    energy: float = 0.0  # pJ

    def add(self, work: Work | UnitTotal) -> None:
        """Add what was done for one more."""
        for name in ("cycles", "stalls", "operations", "synaptic", "capacity", "energy"):
            setattr(self, name, getattr(self, name) + getattr(work, name))

    @property
    def utilisation(self) -> float:
        """Share of its lanes' capacity that it used while it worked."""
        return self.operations / self.capacity if self.capacity else 0.0


@dataclass
class Stage:
    """A stage, over all images simulated: cycles in all, and of those the wait for DRAM."""

    name: str
    kind: str
    head: str  # the unit at its head
    cycles: int = 0
    dram_stalls: int = 0
    spikes: int = 0  # that its head reads
    places: int = 0  # where there could have been one, all D of them
    units: dict[str, UnitTotal] = field(default_factory=dict)
    traffic: Traffic = field(default_factory=Traffic)

    @property
    def rate(self) -> float | None:
        """Firing rate of what its head reads; None if that is no spikes."""
        return self.spikes / self.places if self.places else None

    @property
    def synaptic(self) -> int:
        """Additions that spikes cause."""
        return sum(unit.synaptic for unit in self.units.values())

    @property
    def stalls(self) -> float:
        """Cycles without work: of the unit at its head for want of spikes, and for DRAM."""
        head = self.units.get(self.head)
        return self.dram_stalls + (head.stalls if head else 0.0)

    def close(self, design: Design) -> None:
        """Reckon the cycles of one image from what its units did."""
        busy = max((unit.cycles for unit in self.units.values()), default=0)
        moved = self.traffic.reads[DRAM] + self.traffic.writes[DRAM]
        self.cycles = max(busy, -(-moved // design.dram_bits))
        self.dram_stalls = self.cycles - busy

    def add(self, other: Stage) -> None:
        """Add the same stage of another image."""
        self.cycles += other.cycles
        self.dram_stalls += other.dram_stalls
        self.spikes += other.spikes
        self.places += other.places
        self.traffic += other.traffic
        for name, unit in other.units.items():
            self.units.setdefault(name, UnitTotal()).add(unit)


@dataclass(frozen=True, kw_only=True)
class Simulation:
    """What a design does for the images of a network, in all of them together.

    `differing` is how many spike counts and outputs are not those of the reference executor: 0;
    None if they were not compared. `resident` says whether all weights
    stay on the chip from image to image, `weight_bits` how many bits they have.
    """

    design: Design
    images: int
    stages: tuple[Stage, ...]
    resident: bool
    weight_bits: int
    differing: int | None


def simulate(
    graph: IntegerGraph, design: Design, images: Array, *, check: bool = True
) -> Simulation:
    """Run uint8 images (B, C, H, W), or (T, B, C, H, W), through `design`, one after the other.

    With `check` every spike count and output is compared with the reference executor's, and a
    `RuntimeError` says how many are others: then the simulator is wrong. Raises `UserError` for a
    graph with operations that the design has no unit for, and for buffers that are too small for a
    layer.
    """
    graph.check_images(images)
    known = signals(graph, design)
    batch = images.shape[-4]
    totals: list[Stage] = []
    for index in range(batch):
        image = images[..., index : index + 1, :, :, :]
        run = _Run(graph, design, known, image)
        stages = run.stages()
        if check:
            differing = run.differing()
            if differing:
                raise RuntimeError(f"{design.name}: {differing} values are not the reference's")
        for total, stage in zip(totals, stages, strict=False):
            total.add(stage)
        totals = totals or stages
    return Simulation(
        design=design,
        images=batch,
        stages=tuple(totals),
        resident=_weight_bits(graph.ops) <= design.buffers.weights.bits,
        weight_bits=_weight_bits(graph.ops),
        differing=0 if check else None,
    )


class _Run:
    """One image on its way through the design."""

    def __init__(self, graph: IntegerGraph, design: Design, known: Signals, image: Array) -> None:
        self.graph = graph
        self.given = image
        self.design = design
        self.known = known
        self.pixels, frames = checked_images(graph.ops, graph.preprocessing, image)
        self.machine = Machine(known, design, graph.membrane_bits, frames=frames)
        self.memory = Memory(design)
        self.resident = _weight_bits(graph.ops) <= design.buffers.weights.bits
        self.kept: dict[str, Array] = {}
        self.last = known.last_uses()

    def stages(self) -> list[Stage]:
        """All stages of the image."""
        stages: list[Stage] = []
        number = -1
        for op in self.graph.ops:
            if self.known.stages[op.name] != number:
                number = self.known.stages[op.name]
                stages.append(Stage(name=op.name, kind=type(op).__name__, head=""))
            stage = stages[-1]
            works = self.machine.do(op, self.pixels)
            for work in works:
                stage.head = stage.head or work.unit
                stage.units.setdefault(work.unit, UnitTotal()).add(work)
            self._move(op, works, stage)
            if stage.name == op.name:
                self._fired(op, stage)
            self._keep_for_check(op)
            self._forget(op)
        for stage in stages:
            stage.close(self.design)
        return stages

    def _move(self, op: Op, works: Sequence[Work], stage: Stage) -> None:
        """The traffic of `op`: its inputs, weights, accumulators and its result."""
        traffic, known = stage.traffic, self.known
        for work in works:
            traffic.reads["weights"] += work.weights
            traffic.reads["accumulators"] += work.reads
            traffic.writes["accumulators"] += work.writes
            layouts = work.layouts or ("",) * len(work.inputs)
            for name, bits, layout in zip(op.inputs, work.inputs, layouts, strict=False):
                self._read(name, bits, traffic, layout)
        if not any(work.inputs for work in works) and not isinstance(op, VIEWS):
            for name in op.inputs:  # values that come on the fly are free
                if known.stages[known.home(name)] != known.stages[op.name]:
                    stored = self.machine.stored_bits(name)
                    wanted = [at for at in known.wanted(op, name) if at in stored]
                    layout = next(iter([*wanted, *stored]))
                    self._read(name, stored[layout], traffic, layout)
        if isinstance(op, (Conv, ConvTranspose)) and not self.resident:
            traffic.reads[DRAM] += op.codes.size * op.bits
            traffic.writes["weights"] += op.codes.size * op.bits
        if isinstance(op, Normalise):
            traffic.reads[DRAM] += self.machine.value(op.name).size * PIXEL_BITS
        if isinstance(op, Neuron) and op.steps > 1:
            elements = self.machine.value(op.name).size // op.steps
            bits = elements * self.graph.membrane_bits
            self.memory.update("membranes", bits, op.steps - 1, traffic)
        if op.name in known.results:
            traffic.writes[DRAM] += sum(self.machine.stored_bits(op.name).values())
        if known.is_kept(op.name) and not isinstance(op, VIEWS):
            self._place(op.name, traffic)

    def _place(self, name: str, traffic: Traffic) -> None:
        spikes = name in self.machine.lists
        buffer = "spikes" if spikes else "membranes"
        if spikes:
            longest, piece = self.machine.longest_list(name), "its longest list"
        else:
            shape = self.known.shapes[name]
            longest = shape.channels * shape.width * self.machine.bits(name)
            piece = "one row of its map"
        self.memory.require_room(name, buffer, longest, piece)
        for layout, bits in self.machine.stored_bits(name).items():
            self.memory.place((name, layout), buffer, bits, traffic)

    def _read(self, name: str, bits: int, traffic: Traffic, layout: str = "") -> None:
        """Read from where the value is, in this layout; in the first one if all are as good."""
        home = self.known.home(name)
        places = [place for place in self.memory.placed if place[0] == home]
        if (home, layout) in places:
            places = [(home, layout)]
        for place in places[:1]:
            self.memory.read(place, bits, traffic)

    def _fired(self, op: Op, stage: Stage) -> None:
        for name in op.inputs:
            if name in self.machine.lists:
                spikes = self.machine.any_spikes(name)
                stage.spikes += spikes.spikes
                stage.places += spikes.levels * int(np.prod(spikes.shape))

    def _keep_for_check(self, op: Op) -> None:
        if isinstance(op, Neuron) or op.name in self.known.results:
            self.kept[op.name] = self.machine.value(op.name)

    def _forget(self, op: Op) -> None:
        gone = [name for name, last in self.last.items() if last == op.name]
        for name in gone:
            for place in [p for p in self.memory.placed if p[0] == name]:
                self.memory.release(place)
            self.machine.forget(name)

    def differing(self) -> int:
        """How many counts and results are not those of the reference executor."""
        found, counts = self.graph.run_values(self.given, self.known.results, collect=True)
        expected = {**found, **counts}
        return sum(
            int((self.kept[name].swapaxes(0, 1) != value).sum()) for name, value in expected.items()
        )


def _weight_bits(ops: Sequence[Op]) -> int:
    return sum(op.codes.size * op.bits for op in ops if isinstance(op, (Conv, ConvTranspose)))
