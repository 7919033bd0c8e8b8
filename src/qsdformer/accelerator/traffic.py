"""Where values lie, and the bits that move between buffers and DRAM.

A value takes what is free in its buffer when it is made; the rest is spilled to DRAM, and read
from there as often as it is read. It gives its place back after its last use.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from qsdformer.accelerator.design import KIB_BITS, Design
from qsdformer.errors import UserError

DRAM = "dram"
Place = tuple[str, str]  # a value and, of spikes, a layout


@dataclass
class Traffic:
    """Bits read and written, by buffer, DRAM among them."""

    reads: Counter[str] = field(default_factory=Counter)
    writes: Counter[str] = field(default_factory=Counter)

    def __iadd__(self, other: Traffic) -> Traffic:
        self.reads += other.reads
        self.writes += other.writes
        return self


@dataclass
class Memory:
    """The buffers of a design with what lies in them."""

    design: Design
    free: dict[str, int] = field(init=False)
    placed: dict[Place, tuple[str, int, int]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.free = {name: buffer.bits for name, buffer in self.design.buffers.named().items()}

    def require_room(self, what: str, buffer: str, bits: int, piece: str) -> None:
        """`UserError` if a `piece` of `bits` does not fit the whole buffer."""
        capacity = self.design.buffers.named()[buffer]
        if bits > capacity.bits:
            raise UserError(
                f"{what}: buffers.{buffer} of {capacity.kib:g} KiB of design {self.design.name} "
                f"is too small: {piece} needs {bits / KIB_BITS:.2f} KiB"
            )

    def place(self, name: Place, buffer: str, bits: int, traffic: Traffic) -> None:
        """Write the value `name` of `bits`."""
        here = min(bits, self.free[buffer])
        self.free[buffer] -= here
        self.placed[name] = buffer, bits, here
        traffic.writes[buffer] += here
        traffic.writes[DRAM] += bits - here

    def read(self, name: Place, bits: int, traffic: Traffic) -> None:
        """Read `bits` of the value `name`, in all its parts alike."""
        buffer, size, here = self.placed[name]
        inside = bits * here // size if size else bits
        traffic.reads[buffer] += inside
        traffic.reads[DRAM] += bits - inside

    def update(self, buffer: str, bits: int, times: int, traffic: Traffic) -> None:
        """Read and write a state of `bits` that lies in what is free of a buffer, `times` times."""
        here = min(bits, self.free[buffer])
        for moved in (traffic.reads, traffic.writes):
            moved[buffer] += here * times
            moved[DRAM] += (bits - here) * times

    def release(self, name: Place) -> None:
        """Give back the room of a value that nobody reads any more."""
        if name in self.placed:
            buffer, _, here = self.placed.pop(name)
            self.free[buffer] += here
