"""The energy ledger's `memory` model beside a simulation's traffic, in bits an image."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from qsdformer.accelerator.results import figures
from qsdformer.accelerator.simulate import Simulation
from qsdformer.accelerator.traffic import DRAM
from qsdformer.analysis.energy import ON_CHIP_BITS
from qsdformer.analysis.ledger import Ledger
from qsdformer.analysis.measure import Measured
from qsdformer.analysis.operations import operations


@dataclass(frozen=True, kw_only=True)
class Line:
    """What both say of one kind of traffic, and why they differ where they do."""

    what: str
    ledger: float
    simulated: float
    why: str


def traffic_lines(
    ledger: Ledger, model: nn.Module, measured: Measured, simulation: Simulation
) -> list[Line]:
    """The traffic of a network of which `ledger` was made as it was `measured`."""
    found = figures(simulation)
    listed = operations(model, measured.size, measured.frames)
    weights = float(sum(row.weights_read for row in ledger.rows))
    image = read = written = potentials = 0.0
    for op, row in zip(listed, ledger.rows, strict=True):
        if row.role == "stem":
            image += row.moved
        elif op.kind in ("ac", "attention"):
            read += row.moved
        elif op.kind == "neuron":
            spikes = op.passes * op.elements * op.levels
            written += spikes
            potentials += row.moved - spikes
        else:
            potentials += row.moved
    dram = found.reads[DRAM] + found.writes[DRAM]
    membranes = found.reads["membranes"] + found.writes["membranes"]
    return [
        Line(
            what="weights read",
            ledger=weights,
            simulated=found.reads["weights"],
            why="the ledger reads each once; sparse units for every addition, "
            "an array for every tile of pixels",
        ),
        Line(
            what="spikes read",
            ledger=read,
            simulated=found.reads["spikes"],
            why="the ledger: D bits once; units: lists, once for each word of outputs and each tap",
        ),
        Line(
            what="spikes written",
            ledger=written,
            simulated=found.writes["spikes"],
            why="the ledger: D bits a neuron; the encoder: lists, in each layout that is read",
        ),
        Line(
            what="potentials and real inputs",
            ledger=potentials + image,
            simulated=membranes,
            why="the ledger: every shortcut, product and pool at 16 bits; units: what outlives "
            "its stage",
        ),
        Line(
            what="sums in accumulators",
            ledger=0.0,
            simulated=found.reads["accumulators"] + found.writes["accumulators"],
            why="the ledger has none; units that scatter read and write a sum for each addition",
        ),
        Line(
            what="DRAM",
            ledger=weights if weights > ON_CHIP_BITS else 0.0,
            simulated=dram,
            why="the ledger: weights beyond 1 MiB; the simulator: weights beyond the buffer, "
            "the image, what spills",
        ),
    ]
