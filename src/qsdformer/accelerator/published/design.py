"""Published designs as YAML files: a formula, its numbers, and power, each with its source."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qsdformer.accelerator.design import parse_section
from qsdformer.accelerator.published.formulas import Eyeriss, Mint, Prosperity, Ptb, Sato
from qsdformer.accelerator.published.workload import Workload
from qsdformer.errors import UserError
from qsdformer.parsing import load_yaml, one_of

FOLDER = Path(__file__).parent.parent / "designs" / "published"
Formula = Mint | Eyeriss | Sato | Ptb | Prosperity
FORMULAS: dict[str, type[Formula]] = {
    "mint": Mint,
    "eyeriss": Eyeriss,
    "sato": Sato,
    "ptb": Ptb,
    "prosperity": Prosperity,
}
PJ_PER_MJ = 1e9


@dataclass(frozen=True, kw_only=True)
class Power:
    """What a design's time and energy follow from.

    `dram_ratio` is its traffic to DRAM relative to Prosperity's for the same network.
    """

    clock_mhz: float
    chip_mw: float
    dram_ratio: float
    dram_pj_per_bit: float


@dataclass(frozen=True, kw_only=True)
class PublishedDesign:
    """A design whose cycles are a formula's, and whose energy is its power for as long."""

    name: str
    title: str
    power: Power
    formula: Formula
    sources: Mapping[str, str] = field(default_factory=dict, compare=False)

    def milliseconds(self, cycles: float) -> float:
        """Time of so many cycles."""
        return cycles / self.power.clock_mhz / 1e3

    def millijoules(self, milliseconds: float, dram_bits: float) -> float:
        """Energy of a network that takes so long, and for which Prosperity moves `dram_bits`."""
        dram = self.power.dram_ratio * dram_bits * self.power.dram_pj_per_bit / PJ_PER_MJ
        return self.power.chip_mw * milliseconds / 1e3 + dram


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """What a published design takes for one image, layer by layer."""

    design: PublishedDesign
    layers: Mapping[str, float]  # cycles by layer
    attention: float  # cycles of all attentions; 0 for a design that has no unit for them
    neurons: float  # cycles of all neurons
    prosperity_dram_bits: int
    left_out: tuple[str, ...]

    @property
    def cycles(self) -> float:
        """Cycles in all."""
        return sum(self.layers.values()) + self.attention + self.neurons

    @property
    def milliseconds(self) -> float:
        """Time."""
        return self.design.milliseconds(self.cycles)

    @property
    def dram_bits(self) -> float:
        """Bits to and from DRAM."""
        return self.design.power.dram_ratio * self.prosperity_dram_bits

    @property
    def millijoules(self) -> float:
        """Energy."""
        return self.design.millijoules(self.milliseconds, self.prosperity_dram_bits)


def estimate(design: PublishedDesign, workload: Workload) -> Estimate:
    """Cycles and energy of `design` for a workload of known spikes, or density where that does."""
    formula, attention = design.formula, 0.0
    if isinstance(formula, Prosperity):
        attention = sum(formula.attention(each) for each in workload.attentions)
    return Estimate(
        design=design,
        layers={layer.name: formula.layer(layer) for layer in workload.layers},
        attention=attention,
        neurons=sum(formula.neurons(neurons) for neurons in workload.neurons),
        prosperity_dram_bits=prosperity().traffic(workload),
        left_out=workload.left_out,
    )


def prosperity() -> Prosperity:
    """The design that others' traffic is relative to."""
    formula = load_published("prosperity").formula
    assert isinstance(formula, Prosperity)
    return formula


def published_designs() -> dict[str, Path]:
    """The published designs that come with the package."""
    return {path.stem: path for path in sorted(FOLDER.glob("*.yaml"))}


def load_published(name: str) -> PublishedDesign:
    """A published design by name; a `UserError` for one that is not known or not right."""
    known = published_designs()
    if name not in known:
        raise UserError(f"no published design {name!r}: not {one_of(known, name)}")
    where = f"design {name}"
    return parse_published(load_yaml(known[name].read_text(encoding="utf-8"), where), name)


def parse_published(values: Any, name: str) -> PublishedDesign:
    """Check the plain values of a published design's file."""
    where, sources = f"design {name}", dict[str, str]()
    if not isinstance(values, Mapping) or set(values) != {"title", "formula", "power", "numbers"}:
        raise UserError(f"{where}: must be a mapping with title, formula, power and numbers")
    if values["formula"] not in FORMULAS:
        allowed = one_of(FORMULAS, str(values["formula"]))
        raise UserError(f"{where}: formula={values['formula']!r}: must be {allowed}")
    formula, numbers = FORMULAS[values["formula"]], values["numbers"]
    return PublishedDesign(
        name=name,
        title=str(values["title"]),
        power=parse_section(Power, values["power"], where, "power.", sources),
        formula=parse_section(formula, numbers, where, "numbers.", sources),
        sources=sources,
    )
