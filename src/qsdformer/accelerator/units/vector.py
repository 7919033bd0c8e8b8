"""Units that take values one by one: factors and biases, shortcuts, and maps."""

from __future__ import annotations

from qsdformer.accelerator.design import VectorUnit
from qsdformer.accelerator.units.work import Work


def vector_work(name: str, values: int, energy: float, unit: VectorUnit) -> Work:
    """`values`, as many a cycle as there are lanes, of `energy` pJ each."""
    cycles = -(-values // unit.lanes)
    return Work(
        unit=name,
        cycles=cycles,
        operations=values,
        capacity=cycles * unit.lanes,
        energy=values * energy,
    )
