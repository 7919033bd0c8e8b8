"""Designs of accelerators as YAML files: every number with its source.

A leaf of a design file is `{value: ..., source: ...}`; a source that begins with "assumption" says
that nobody has published the number. A unit that a design does not have is `none`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from qsdformer.accelerator.encoding import Encoding
from qsdformer.analysis.energy import sram_energy
from qsdformer.errors import UserError
from qsdformer.parsing import describe, load_yaml, nearest, one_of, type_hints

FOLDER = Path(__file__).parent / "designs"
ASSUMPTION = "assumption"
KIB_BITS = 8 * 1024
LARGEST = 2**20  # of any number: lanes, KiB, MHz; beyond is a slip of the pen


@dataclass(frozen=True, kw_only=True)
class Lanes:
    """`engines` that each work on lists of their own, with `lanes` adders or comparators."""

    lanes: int
    engines: int

    @property
    def total(self) -> int:
        """Adders or comparators in all."""
        return self.lanes * self.engines


@dataclass(frozen=True, kw_only=True)
class AdderUnit(Lanes):
    """Adders of weights; engines that share weights work in step."""

    shares_weights: bool


@dataclass(frozen=True, kw_only=True)
class ConvolutionUnit(AdderUnit):
    """Over all channels it gathers what a pixel sees, or scatters what a spike reaches."""

    order: Literal["gather", "scatter"]


@dataclass(frozen=True, kw_only=True)
class EncoderUnit(Lanes):
    """An engine compares `lanes` potentials a cycle and writes `ports` entries."""

    ports: int


@dataclass(frozen=True, kw_only=True)
class ArrayUnit:
    """A dense array of multipliers and adders: output pixels by output channels."""

    rows: int
    columns: int
    gates_zeros: bool  # a factor of 0 costs no arithmetic energy, though its cycle

    @property
    def total(self) -> int:
        """Multipliers, and as many adders."""
        return self.rows * self.columns


@dataclass(frozen=True, kw_only=True)
class VectorUnit:
    """`lanes` values a cycle."""

    lanes: int

    @property
    def total(self) -> int:
        """Values a cycle."""
        return self.lanes


@dataclass(frozen=True, kw_only=True)
class Units:
    """The units of a design; None for one that it has not."""

    array: ArrayUnit | None  # convolutions of real values; of everything in dense designs
    linear: AdderUnit | None  # 1x1 convolutions of spikes
    convolution: ConvolutionUnit | None  # other convolutions of spikes
    pool: Lanes | None  # max pools of spikes
    mask_add: Lanes | None  # products of spikes, sums over tokens, masks
    attention: Lanes | None  # q (k^T v)
    encoder: EncoderUnit | None  # neurons
    scale: VectorUnit | None  # factors and biases
    residual: VectorUnit | None  # membrane shortcuts
    maps: VectorUnit | None  # tables of pixels, means, pools of potentials, rearranged maps

    def named(self) -> dict[str, Any]:
        """The units that the design has, by name."""
        found = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return {name: unit for name, unit in found.items() if unit is not None}


@dataclass(frozen=True, kw_only=True)
class Buffer:
    """On-chip memory; its energy an access is that of one of its banks."""

    kib: float
    banks: int

    @property
    def bits(self) -> int:
        """Capacity."""
        return int(self.kib * KIB_BITS)

    @property
    def pj_per_bit(self) -> float:
        """Energy of reading or writing a bit."""
        return sram_energy(self.kib / self.banks)


@dataclass(frozen=True, kw_only=True)
class Buffers:
    """The buffers, by what they hold."""

    weights: Buffer
    spikes: Buffer
    accumulators: Buffer
    membranes: Buffer

    def named(self) -> dict[str, Buffer]:
        """All buffers by name."""
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}


@dataclass(frozen=True, kw_only=True)
class Design:
    """An accelerator. `sources` says of every number, by its path in the file, where it is from."""

    name: str
    title: str
    kind: Literal["sparse", "dense"]
    clock_mhz: float
    encoding: Encoding
    word_bits: int  # bits of a bitmap that a unit scans in a cycle
    dram_bits: int  # bits to or from DRAM in a cycle
    leakage_uw_per_kib: float
    leakage_uw_per_adder: float
    units: Units
    buffers: Buffers
    sources: Mapping[str, str] = dataclasses.field(default_factory=dict, compare=False)

    @property
    def adders(self) -> int:
        """Adders of the widest unit: units work in turns, and are assumed to share them."""
        names = ("array",) if self.kind == "dense" else ("linear", "convolution", "attention")
        found = (getattr(self.units, name) for name in names)
        return max((unit.total for unit in found if unit is not None), default=0)

    @property
    def kib(self) -> float:
        """On-chip memory."""
        return sum(buffer.kib for buffer in self.buffers.named().values())

    @property
    def peak_gsops(self) -> float:
        """Additions a nanosecond with all adders at work."""
        return self.adders * self.clock_mhz / 1000

    @property
    def leakage_mw(self) -> float:
        """Power without any activity."""
        memory = self.leakage_uw_per_kib * self.kib
        return (memory + self.leakage_uw_per_adder * self.adders) / 1000

    @property
    def assumptions(self) -> dict[str, str]:
        """What nobody has published, with the reason for the number taken."""
        return {path: s for path, s in self.sources.items() if s.startswith(ASSUMPTION)}


def designs() -> dict[str, Path]:
    """The designs that come with the package."""
    return {path.stem: path for path in sorted(FOLDER.glob("*.yaml"))}


def published_names() -> list[str]:
    """Designs that come with the package as formulas; see `accelerator.published`."""
    return sorted(path.stem for path in (FOLDER / "published").glob("*.yaml"))


def load_design(name: str) -> Design:
    """A design of the package by name, or that of a YAML file; a `UserError` if it is not right."""
    known = designs()
    path = known.get(name, Path(name))
    if name in published_names():
        raise UserError(
            f"design {name!r} is published, a formula without units: only qsd simulate has its "
            "figures"
        )
    if not path.is_file():
        names = [*known, *published_names()]
        raise UserError(f"no design {name!r}: neither a file nor {one_of(names, name)}")
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read design {name}: {error}") from error
    return parse_design(load_yaml(text, f"design {name}"), path.stem)


def paths(design: Design) -> list[str]:
    """The paths of all numbers of a design."""
    return [path for path in design.sources if _at(design, path) is not None]


def changed(design: Design, path: str, value: Any) -> Design:
    """`design` with the number at `path` replaced, for want of a source by a sweep's."""
    sources = {**design.sources, path: f"{ASSUMPTION}: swept"}
    made = dataclasses.replace(_replaced(design, path.split("."), value), sources=sources)
    _check(made, f"design {design.name}")
    return made


def _at(section: Any, path: str) -> Any:
    for name in path.split("."):
        section = getattr(section, name, None)
    return section


def _replaced(section: Any, names: list[str], value: Any) -> Any:
    first, rest = names[0], names[1:]
    if rest:
        inner = _replaced(getattr(section, first), rest, value)
    else:
        inner = _checked(type_hints(type(section))[first], value, "--sweep", first)
    return dataclasses.replace(section, **{first: inner})


def parse_design(values: Any, name: str) -> Design:
    """Check the plain values of a design file."""
    sources: dict[str, str] = {}
    where = f"design {name}"
    if not isinstance(values, Mapping):
        raise UserError(f"{where}: must be a mapping with title, kind, units and buffers")
    if "name" in values:
        raise UserError(f"{where}: leave name out: a design has the name of its file")
    given = {**values, "name": name}
    design = parse_section(Design, given, where, "", sources, skip=("sources",))
    design = dataclasses.replace(design, sources=sources)
    _check(design, where)
    return design


def parse_section(
    cls: Any,
    values: Any,
    where: str,
    prefix: str,
    sources: dict[str, str],
    skip: tuple[str, ...] = (),
) -> Any:
    """A section of a design file as `cls`; notes in `sources` where its numbers are from."""
    names = [f.name for f in dataclasses.fields(cls) if f.name not in skip]
    if not isinstance(values, Mapping):
        raise UserError(f"{where}: {prefix.rstrip('.')}={values!r}: must be a section")
    for key in values:
        if key not in names:
            raise UserError(f"{where}: unknown key {prefix}{key}{nearest(str(key), names, prefix)}")
    found = {}
    for key in names:
        if key not in values:
            none = "; none if the design has no such unit" if cls is Units else ""
            raise UserError(f"{where}: {prefix}{key} is missing{none}")
        found[key] = _field(type_hints(cls)[key], values[key], where, prefix + key, sources)
    return cls(**found)


def _field(kind: Any, value: Any, where: str, path: str, sources: dict[str, str]) -> Any:
    section = next((k for k in (kind, *get_args(kind)) if dataclasses.is_dataclass(k)), None)
    if section is not None:
        if type(None) in get_args(kind) and value in (None, "none"):
            return None
        return parse_section(section, value, where, path + ".", sources)
    if path in ("name", "title", "kind"):
        return _checked(kind, value, where, path)
    if not isinstance(value, Mapping) or set(value) != {"value", "source"}:
        raise UserError(f"{where}: {path} must be {{value: ..., source: ...}}")
    source = value["source"]
    if not isinstance(source, str) or not source.strip():
        raise UserError(f"{where}: {path} has no source: say where the number is from")
    sources[path] = source
    return _checked(kind, value["value"], where, path)


def _checked(kind: Any, value: Any, where: str, path: str) -> Any:
    wrong = UserError(f"{where}: {path}={value!r}: must be {describe(kind)}")
    allowed = get_args(kind)
    if allowed:
        if value not in allowed:
            raise wrong
        return value
    whole = kind is float and type(value) is int
    if type(value) is not kind and not whole:
        raise wrong
    least = 0 if path.rpartition(".")[2].startswith("leakage") else None
    if kind in (int, float) and not (value > 0 or value == least):
        raise UserError(f"{where}: {path}={value!r}: must be above 0")
    if kind in (int, float) and not value <= LARGEST:
        raise UserError(f"{where}: {path}={value!r}: must be at most {LARGEST}")
    return float(value) if whole else value  # only now: a float may not hold what is refused


def _check(design: Design, where: str) -> None:
    sparse = ("linear", "convolution", "pool", "mask_add", "attention")
    wrong = [name for name in sparse if getattr(design.units, name) is not None]
    if design.kind == "dense" and (wrong or design.encoding != "dense"):
        what = f"units.{wrong[0]}" if wrong else f"encoding={design.encoding!r}"
        raise UserError(f"{where}: {what} is of a sparse design, and kind is dense")
    if design.kind == "sparse" and design.encoding == "dense":
        raise UserError(f"{where}: encoding='dense' is of a dense design, and kind is sparse")
    for name in ("pool", "mask_add"):
        unit = getattr(design.units, name)
        if unit is not None and unit.lanes != 1:
            raise UserError(
                f"{where}: units.{name}.lanes={unit.lanes}: must be 1, an engine takes an entry "
                "a cycle"
            )
    for name in ("encoder", "scale"):
        if getattr(design.units, name) is None:
            raise UserError(f"{where}: units.{name}: no network does without it")
