"""The dense array: multipliers and adders for output pixels by output channels.

Output stationary: rows of the array hold pixels, columns hold channels, and a product of each
weight and input of the fan-in is added a cycle. So a convolution takes

    cycles = FILL + ceil(pixels / rows) * ceil(outputs / columns) * fan-in

group by group; depthwise, every column has a channel of its own. FILL is the skew of a systolic
array, rows + columns - 2, paid once: one tile follows the other without a gap. A weight is read
once for every tile of pixels, an input once for every tile of outputs that it is part of:
depthwise, for one.
"""

from __future__ import annotations

from dataclasses import dataclass

from qsdformer.accelerator.design import ArrayUnit
from qsdformer.accelerator.units.work import Work
from qsdformer.analysis.energy import add_energy, mult_energy


@dataclass(frozen=True, kw_only=True)
class Products:
    """Matrix products: `times` of (pixels, fan_in) by (fan_in, outputs).

    `nonzero` is the share of inputs that are not 0; `weight_bits`, `input_bits` and `sum_bits` are
    those of the operands, `inputs` how many bits all inputs have together, each counted once.
    """

    pixels: int
    fan_in: int
    outputs: int
    times: int
    nonzero: float
    weight_bits: int
    input_bits: int
    sum_bits: int
    inputs: tuple[int, ...]
    depthwise: bool = False


def dense_work(products: Products, unit: ArrayUnit, *, synaptic: int = 0) -> Work:
    """What the array does; `synaptic` are the additions that spikes would cause."""
    p = products
    row_tiles, column_tiles = -(-p.pixels // unit.rows), -(-p.outputs // unit.columns)
    fill = unit.rows + unit.columns - 2
    cycles = fill + p.times * row_tiles * column_tiles * p.fan_in
    done = p.times * p.pixels * p.outputs * p.fan_in
    each = add_energy(p.sum_bits) + mult_energy((p.weight_bits, p.input_bits))
    again = 1 if p.depthwise else column_tiles
    paid = done * (p.nonzero if unit.gates_zeros else 1.0)
    return Work(
        unit="array",
        cycles=cycles,
        operations=done,
        synaptic=synaptic,
        capacity=cycles * unit.total,
        energy=paid * each,
        inputs=tuple(bits * again for bits in p.inputs),
        weights=p.times * row_tiles * p.fan_in * p.outputs * p.weight_bits,
    )
