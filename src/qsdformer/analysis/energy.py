"""What an operation costs: constants with unit and source, and the cost models made of them.

Sources:
[H14] M. Horowitz, "Computing's energy problem (and what we can do about it)", ISSCC 2014, 45 nm,
      0.9 V: table of arithmetic, cache and DRAM energies.
[Yao] M. Yao et al., "Spike-driven Transformer", NeurIPS 2023, and the papers after it: energy as
      E_MAC * MACs of the first layer + E_AC * MACs * firing rate * time steps of all others.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from qsdformer.errors import UserError

# Arithmetic, pJ an operation [H14].
INT8_ADD_PJ = 0.03
INT32_ADD_PJ = 0.1
INT8_MULT_PJ = 0.2
INT32_MULT_PJ = 3.1
FP32_ADD_PJ = 0.9
FP32_MULT_PJ = 3.7

# The convention of the spiking-transformer papers [Yao], pJ: both in 32-bit floating point.
E_MAC_PJ = 4.6  # FP32_MULT_PJ + FP32_ADD_PJ
E_AC_PJ = 0.9  # FP32_ADD_PJ

# Memory, pJ a bit [H14]: a 64-bit access to a 1 MB cache 100 pJ, to DRAM 1.3 to 2.6 nJ.
SRAM_PJ_PER_BIT = 100 / 64
DRAM_PJ_PER_BIT = 1300 / 64  # the lower end
# The same for smaller caches [H14]: size in KiB, pJ a bit.
SRAM_TABLE = ((8, 10 / 64), (32, 20 / 64), (1024, SRAM_PJ_PER_BIT))
# Weights up to this many bits stay on the chip: the 1 MB that SRAM is priced at.
ON_CHIP_BITS = 8 * 2**20

Kind = Literal["mac", "ac", "attention", "neuron", "norm", "shortcut", "post"]
Role = Literal["stem", "inner", "other"]

KINDS: dict[str, str] = {
    "mac": "MAC on real input",
    "ac": "AC on spikes",
    "attention": "attention additions",
    "neuron": "neurons",
    "norm": "norms and scales",
    "shortcut": "membrane shortcuts",
    "post": "float post-processing",
}


@dataclass(frozen=True, kw_only=True)
class Row:
    """One operation of a network and its work for one image, the mean over those measured.

    `count` is how often the operation is carried out: additions of weights for spikes, MACs for
    real inputs, elements for neurons, norms and shortcuts; `total` is its sum over all `images`,
    exact. `estimate` is what papers compute instead, dense MACs * rate * T * D. Arithmetic is
    `additions` at `add_bits` and `multiplications` at `mult_bits`; None means fp32. `weight_bits`
    is per weight. `weights_read` and `moved` are bits of weights and of everything else that pass
    between memory and arithmetic, if each tensor is moved once: a layer that is called again does
    not read its weights again.
    """

    name: str
    kind: Kind
    role: Role = "other"
    source: str | None = None  # the neuron whose spikes come in
    dense_macs: int = 0  # of one time step, borders included
    steps: int = 1  # T * D for spikes; for real inputs the passes an image
    rate: float | None = None  # of `source`
    total: int | None = None
    images: int = 1
    count: float = 0.0
    estimate: float = 0.0
    weights: int = 0
    weight_bits: int | None = None
    additions: float = 0.0
    add_bits: int | None = None
    multiplications: float = 0.0
    mult_bits: tuple[int, int] | None = None
    weights_read: int = 0
    moved: float = 0.0

    @property
    def deviation(self) -> float | None:
        """The papers' estimate relative to the exact count, minus 1; None where there is none."""
        return self.estimate / self.count - 1 if self.estimate and self.count else None


def add_energy(bits: int | None) -> float:
    """pJ of an addition; linear in the operand bits through 0, 8 and 32 bits; None is fp32."""
    if bits is None:
        return FP32_ADD_PJ
    return _interpolated(bits, (8, INT8_ADD_PJ), (32, INT32_ADD_PJ))


def mult_energy(bits: tuple[int, int] | None) -> float:
    """pJ of a multiplication of operands of these bits; None is fp32.

    Linear in the product of the bits, the number of partial products, through 0, 8*8 and 32*32.
    """
    if bits is None:
        return FP32_MULT_PJ
    return _interpolated(bits[0] * bits[1], (64, INT8_MULT_PJ), (1024, INT32_MULT_PJ))


def sram_energy(kib: float) -> float:
    """pJ a bit of a memory of `kib` KiB: a power of its size between the sizes of the table.

    Beyond them the nearest power holds; it is a square root below 32 KiB.
    """
    (a, low), (b, high) = SRAM_TABLE[:2] if kib <= SRAM_TABLE[1][0] else SRAM_TABLE[1:]
    exponent = math.log(high / low) / math.log(b / a)
    return low * (kib / a) ** exponent


def _interpolated(x: float, low: tuple[float, float], high: tuple[float, float]) -> float:
    if x <= low[0]:
        return low[1] * x / low[0]
    return low[1] + (x - low[0]) * (high[1] - low[1]) / (high[0] - low[0])


@dataclass(frozen=True, kw_only=True)
class CostModel:
    """A way to charge the rows of a network; `energies` gives pJ an image for each row."""

    name: str
    title: str
    energies: Callable[[Sequence[Row]], list[float]]


def _papers(rows: Sequence[Row], *, charge_inner: bool) -> list[float]:
    return [_papers_row(row, charge_inner) for row in rows]


def _papers_row(row: Row, charge_inner: bool) -> float:
    if row.kind in ("ac", "attention"):
        return E_AC_PJ * row.estimate
    if row.kind == "mac" and (charge_inner or row.role != "inner"):
        return E_MAC_PJ * row.estimate
    return 0.0


def _arithmetic(rows: Sequence[Row]) -> list[float]:
    return [
        row.additions * add_energy(row.add_bits) + row.multiplications * mult_energy(row.mult_bits)
        for row in rows
    ]


def _with_memory(rows: Sequence[Row]) -> list[float]:
    stays = sum(row.weights_read for row in rows) <= ON_CHIP_BITS
    weight = SRAM_PJ_PER_BIT if stays else DRAM_PJ_PER_BIT
    return [
        energy + row.weights_read * weight + row.moved * SRAM_PJ_PER_BIT
        for energy, row in zip(_arithmetic(rows), rows, strict=True)
    ]


COST_MODELS: dict[str, CostModel] = {
    model.name: model
    for model in (
        CostModel(
            name="papers",
            title="as in papers: 4.6 pJ a MAC, 0.9 pJ an AC, inner convolutions not charged",
            energies=lambda rows: _papers(rows, charge_inner=False),
        ),
        CostModel(
            name="papers-inner",
            title="as in papers, and every MAC on real input charged",
            energies=lambda rows: _papers(rows, charge_inner=True),
        ),
        CostModel(
            name="bit-aware",
            title="exact counts, every operation, integer energies by operand bits",
            energies=_arithmetic,
        ),
        CostModel(
            name="memory",
            title="bit-aware, and every weight and activation moved once",
            energies=_with_memory,
        ),
    )
}


def cost_model(name: str) -> CostModel:
    """The cost model called `name`; a `UserError` lists them all."""
    if name not in COST_MODELS:
        raise UserError(f"unknown cost model {name!r}: choose from {', '.join(COST_MODELS)}")
    return COST_MODELS[name]
