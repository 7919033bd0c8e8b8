"""The ledger: every operation of a network, what it does for one image, and what that costs.

Rows come from `operations` (what there is to do) and `Measured` (how many spikes did it). The
formats are those of `qsd export --membrane-bits 16`: membranes, factors and real inputs of layers
in 16 bits, pixels in 8. A network with full-precision weights computes in fp32 throughout.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from qsdformer.analysis.energy import KINDS, CostModel, Row
from qsdformer.analysis.information import FLOAT_BITS, packed_bytes
from qsdformer.analysis.measure import Measured, firing_rates
from qsdformer.analysis.operations import Operation, neuron_arithmetic, operations
from qsdformer.graph.lowering import MULTIPLIER_BITS, REAL_INPUT_BITS

MEMBRANE_BITS = 16
FACTOR_BITS = MULTIPLIER_BITS[MEMBRANE_BITS]
LAYER_INPUT_BITS = REAL_INPUT_BITS[MEMBRANE_BITS]
PIXEL_BITS = 8
MAX_ACCUMULATOR_BITS = 32  # what lowering guarantees


@dataclass(frozen=True, kw_only=True)
class Ledger:
    """The rows of one network, with its size; `accuracy` is a fraction where measured.

    `left_out` says in words what of the network has no rows: energies are those of the rest, sizes
    those of all.
    """

    name: str
    rows: tuple[Row, ...]
    parameters: int
    packed_bytes: int
    float_bytes: int
    accuracy: float | None = None
    left_out: str | None = None

    def energies(self, model: CostModel) -> list[float]:
        """pJ an image of each row."""
        return model.energies(self.rows)

    def total(self, model: CostModel) -> float:
        """pJ an image."""
        return sum(self.energies(model))

    def by_kind(self, model: CostModel) -> dict[str, float]:
        """pJ an image for each kind of operation, in the order of `KINDS`."""
        sums = dict.fromkeys(KINDS, 0.0)
        for row, energy in zip(self.rows, self.energies(model), strict=True):
            sums[row.kind] += energy
        return sums

    @property
    def synaptic_operations(self) -> float:
        """Additions that spikes cause, an image: layers and attention."""
        return sum(row.count for row in self.rows if row.kind in ("ac", "attention"))

    @property
    def macs(self) -> float:
        """Multiply-accumulates on real inputs, an image."""
        return sum(row.count for row in self.rows if row.kind == "mac")


def make_ledger(
    name: str,
    model: nn.Module,
    measured: Measured,
    network: nn.Module | None = None,
    more: Sequence[Row] = (),
    left_out: str | None = None,
) -> Ledger:
    """The ledger of a spiking `model` from its spikes on some images.

    Sizes are those of the whole `network` that it is a part of, where there is one; `more` are rows
    of other parts, and `left_out` says what is in none.
    """
    found = operations(model, measured.size, measured.frames)
    network = model if network is None else network
    return Ledger(
        name=name,
        rows=(*spiking_rows(found, measured, firing_rates(measured)), *more, *post_rows(measured)),
        parameters=sum(p.numel() for p in network.parameters()),
        packed_bytes=packed_bytes(network),
        float_bytes=float_bytes(network),
        accuracy=measured.accuracy,
        left_out=left_out,
    )


def post_rows(measured: Measured) -> tuple[Row, ...]:
    """The row of post-processing, if there was one."""
    return (measured.post.row(),) if measured.post.images else ()


def float_bytes(model: nn.Module) -> int:
    """Bytes of the same network in fp32: weights and norm statistics, no step sizes."""
    return sum(
        value.numel() * FLOAT_BITS // 8
        for name, value in model.state_dict().items()
        if not name.endswith(("num_batches_tracked", "log_step_size"))
    )


def papers_energy(
    model: nn.Module,
    image_size: tuple[int, int],
    rates: Mapping[str, float] | float,
    cost: CostModel,
) -> float:
    """pJ an image of a network that need not be trained, from its firing rates, by a papers' model.

    `rates` are by neuron name, or one for all; the model may be on the meta device. Meant for the
    cost models "papers" and "papers-inner", which know no exact counts.
    """
    found = operations(model, image_size)
    if not isinstance(rates, Mapping):
        rates = {op.source: rates for op in found if op.source}
    return sum(cost.energies(spiking_rows(found, None, rates)))


def spiking_rows(
    found: Sequence[Operation],
    measured: Measured | None,
    rates: Mapping[str, float],
) -> tuple[Row, ...]:
    """A row for each operation; without `measured`, only what papers estimate from `rates`."""
    as_float = is_float(found)
    return tuple(_row(op, measured, rates, as_float) for op in found)


def exact_total(op: Operation, measured: Measured) -> int:
    """Additions (spikes * fan-out), or MACs on real input, over all measured images."""
    if op.partner is not None:
        return measured.pairs[op.name.rpartition(".")[0]]
    if op.kind in ("ac", "attention"):
        return reached_by(measured.spikes, op)
    per_pass = op.reached if op.kind == "mac" else op.elements
    return per_pass * op.passes * measured.images


def reached_by(sums: Mapping[str, Tensor], op: Operation) -> int:
    """Additions or MACs that `op` carries out for what its neuron emitted, by place, (C, H, W)."""
    assert op.source is not None
    assert op.reach is not None
    return int((sums[op.source] * op.reach).sum())


def accumulator_bits(op: Operation, bits: int, largest_input: int) -> int:
    """Bits of a sum of `fan_in` products of `bits`-bit weights and inputs up to `largest_input`."""
    return min(MAX_ACCUMULATOR_BITS, bits + math.ceil(math.log2(op.fan_in * largest_input)))


def attention_bits(op: Operation, largest: int) -> tuple[int, int]:
    """Bits of an entry of k^T v and of q (k^T v), for counts up to `largest`."""
    kv = math.ceil(math.log2(op.tokens * largest**2 + 1))
    return kv, min(MAX_ACCUMULATOR_BITS, math.ceil(math.log2(op.fan_in * largest)) + kv)


def is_float(found: Sequence[Operation]) -> bool:
    """Whether a network computes in fp32, for want of low-bit weights in most of its layers."""
    layers = [op for op in found if op.weights]
    return 2 * sum(op.weight_bits is None for op in layers) > len(layers)


def _row(
    op: Operation, measured: Measured | None, rates: Mapping[str, float], as_float: bool
) -> Row:
    total = None if measured is None else exact_total(op, measured)
    images = 1 if measured is None else measured.images
    count = 0.0 if total is None else total / images
    if op.kind in ("ac", "attention"):
        assert op.source is not None
        rate, steps = rates[op.source], op.passes * op.levels
        estimate = op.dense_macs * rate * steps
    else:
        rate, steps = None, op.passes
        estimate = float(op.dense_macs * steps)
    row = dict(_arithmetic(op, count, as_float))
    return Row(
        name=op.name,
        kind=op.kind,
        role=op.role,
        source=op.source,
        dense_macs=op.dense_macs,
        steps=steps,
        rate=rate,
        total=total,
        images=images,
        count=count,
        estimate=estimate,
        weights=op.weights,
        weight_bits=op.weight_bits,
        weights_read=op.weights_read * (op.weight_bits or FLOAT_BITS),
        moved=_moved(op, as_float),
        **row,
    )


def _arithmetic(op: Operation, count: float, as_float: bool) -> dict[str, Any]:
    if op.kind == "mac":
        return _mac_arithmetic(op, count, as_float)
    if op.kind == "ac":
        bits = None
        if op.weight_bits is not None:
            bits = accumulator_bits(op, op.weight_bits, op.levels)
        return {"additions": count, "add_bits": bits}
    if op.kind == "attention":
        if as_float:
            return {"additions": count}
        kv, qkv = attention_bits(op, op.levels)
        return {"additions": count, "add_bits": kv if op.partner else qkv}
    return elementwise_arithmetic(op, count, as_float)


def real_input(op: Operation) -> tuple[int, int]:
    """Bits of a layer's real input and its largest magnitude: pixels, or signed membranes."""
    if op.role == "stem":
        return PIXEL_BITS, 2**PIXEL_BITS
    return LAYER_INPUT_BITS, 2 ** (LAYER_INPUT_BITS - 1)


def _mac_arithmetic(op: Operation, count: float, as_float: bool) -> dict[str, Any]:
    work: dict[str, Any] = {"additions": count, "multiplications": count}
    if op.weight_bits is None or (op.role == "inner" and as_float):
        return work
    bits, largest = real_input(op)
    accumulator = accumulator_bits(op, op.weight_bits, largest)
    return {**work, "add_bits": accumulator, "mult_bits": (op.weight_bits, bits)}


def elementwise_arithmetic(op: Operation, count: float, as_float: bool) -> dict[str, Any]:
    """Work of neurons, norms (one multiplication and addition) and shortcuts (one addition)."""
    adds, mults = {"neuron": (0, 0), "norm": (1, 1), "shortcut": (1, 0)}[op.kind]
    if op.neuron is not None:
        adds, mults = neuron_arithmetic(op.neuron)
    work = {"additions": adds * count, "multiplications": mults * count}
    if as_float:
        return work
    return {**work, "add_bits": MEMBRANE_BITS, "mult_bits": (MEMBRANE_BITS, FACTOR_BITS)}


def _moved(op: Operation, as_float: bool) -> float:
    """Bits of activations to and from memory, with a layer, its norm and its neuron in one go.

    A layer reads its input; a neuron writes its spikes, and with T > 1 reads and writes its
    membrane; a shortcut reads one operand and writes the sum; a norm before a layer writes.
    """
    membrane = FLOAT_BITS if as_float else MEMBRANE_BITS
    if op.kind == "mac":
        bits = FLOAT_BITS if as_float and op.role == "inner" else real_input(op)[0]
        return op.passes * op.layer_input * bits
    if op.kind in ("ac", "attention"):
        return op.passes * op.layer_input * op.levels
    if op.kind == "neuron":
        state = 2 * membrane if op.neuron is not None and op.neuron.time_steps > 1 else 0
        return op.passes * op.elements * (op.levels + state)
    if op.kind == "shortcut":
        return op.passes * op.elements * 2 * membrane
    return op.passes * op.elements * (membrane if op.to_layer else 0)
