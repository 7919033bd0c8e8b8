"""What a simulation says of a design: time, energy and where it goes, for one image."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from qsdformer.accelerator.design import Design
from qsdformer.accelerator.simulate import Simulation, Stage, UnitTotal
from qsdformer.accelerator.traffic import DRAM
from qsdformer.analysis.energy import DRAM_PJ_PER_BIT

PARTS = ("compute", "buffers", "dram", "leakage")
PJ_PER_MJ = 1e9


@dataclass(frozen=True, kw_only=True)
class Figures:
    """The figures of a stage or of all of them, means an image.

    `energy` is in pJ by `PARTS`; `reads` and `writes` are bits by buffer; `busy` is the share of
    all cycles in which each unit works, `used` that of its lanes' capacity in all cycles.
    """

    cycles: float
    stalls: float
    dram_stalls: float
    synaptic: float
    energy: dict[str, float]
    reads: dict[str, float]
    writes: dict[str, float]
    busy: dict[str, float]
    used: dict[str, float]
    microseconds: float

    @property
    def total(self) -> float:
        """pJ."""
        return sum(self.energy.values())

    @property
    def millijoules(self) -> float:
        """mJ."""
        return self.total / PJ_PER_MJ

    @property
    def frames_per_second(self) -> float:
        """Images a second, one after the other."""
        return 1e6 / self.microseconds

    @property
    def gsops(self) -> float:
        """Additions that spikes cause, in thousands of millions a second."""
        return self.synaptic / self.microseconds / 1e3

    @property
    def gsops_per_watt(self) -> float:
        """The same a watt: additions a nanojoule."""
        return self.synaptic / self.total * 1e3

    @property
    def milliwatts(self) -> float:
        """Mean power."""
        return self.total / self.microseconds / 1e3


def figures(simulation: Simulation) -> Figures:
    """Those of all stages together."""
    return _figures(simulation.stages, simulation)


def stage_figures(stage: Stage, simulation: Simulation) -> Figures:
    """Those of one stage."""
    return _figures((stage,), simulation)


def _figures(stages: Iterable[Stage], simulation: Simulation) -> Figures:
    design, images = simulation.design, simulation.images
    stages = tuple(stages)
    cycles = sum(stage.cycles for stage in stages) / images
    reads, writes = (
        {
            name: sum(getattr(stage.traffic, way)[name] for stage in stages) / images
            for name in (*design.buffers.named(), DRAM)
        }
        for way in ("reads", "writes")
    )
    units: dict[str, UnitTotal] = {}
    for stage in stages:
        for name, unit in stage.units.items():
            units.setdefault(name, UnitTotal()).add(unit)
    moved = {name: reads[name] + writes[name] for name in reads}
    microseconds = cycles / design.clock_mhz
    return Figures(
        cycles=cycles,
        stalls=sum(stage.stalls for stage in stages) / images,
        dram_stalls=sum(stage.dram_stalls for stage in stages) / images,
        synaptic=sum(stage.synaptic for stage in stages) / images,
        energy={
            "compute": sum(unit.energy for unit in units.values()) / images,
            "buffers": sum(
                moved[name] * buffer.pj_per_bit for name, buffer in design.buffers.named().items()
            ),
            "dram": moved[DRAM] * DRAM_PJ_PER_BIT,
            "leakage": design.leakage_mw * microseconds * 1e3,
        },
        reads=reads,
        writes=writes,
        busy={name: unit.cycles / images / cycles for name, unit in units.items() if cycles},
        used=_used(units, design, cycles * images),
        microseconds=microseconds,
    )


def _used(units: dict[str, UnitTotal], design: Design, cycles: float) -> dict[str, float]:
    """Share of each unit's capacity over all cycles."""
    if not cycles:
        return {}
    lanes = {name: unit.total for name, unit in design.units.named().items()}
    return {name: unit.operations / (lanes[name] * cycles) for name, unit in units.items()}
