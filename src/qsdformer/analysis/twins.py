"""The same network as an ANN: what a spiking one has to be compared with.

- "ann": the counterpart ANN in fp32, ReLU and softmax attention, every MAC carried out.
- "quantised-ann": the same weights and bits, and activations of as many levels as the spiking
  network has spikes (T * D, and more where it sums spikes), as integers: one multiply-accumulate
  where the spiking network has up to T * D additions, an addition alone where an activation has one
  bit. For T = 1 it is what training computes, so its accuracy is the same.
- "quantised-ann-skip" (T = 1): the same on hardware that skips activations of 0.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from qsdformer.analysis.energy import Row
from qsdformer.analysis.information import FLOAT_BITS, packed_bytes
from qsdformer.analysis.ledger import (
    MEMBRANE_BITS,
    Ledger,
    accumulator_bits,
    attention_bits,
    elementwise_arithmetic,
    float_bytes,
    is_float,
    make_ledger,
    post_rows,
    reached_by,
    real_input,
)
from qsdformer.analysis.measure import Measured
from qsdformer.analysis.operations import Operation, operations
from qsdformer.nn.pointwise import MaskAttention
from qsdformer.nn.taps import spiking_neurons

# Inputs of q, k and v's neurons and of attention's are plain values in the counterpart ANN.
NOT_IN_ANN = ("q_neuron", "k_neuron", "v_neuron", "attention_neuron", "attention_norm")


def twins(
    name: str,
    model: nn.Module,
    measured: Measured,
    network: nn.Module | None = None,
    left_out: str | None = None,
) -> list[Ledger]:
    """The ledgers of the ANN twins of a measured spiking model.

    As in `make_ledger` sizes are those of the whole `network`, where there is one, of which
    `left_out` has no rows.
    """
    spiking = make_ledger(name, model, measured, network, left_out=left_out)
    found = operations(model, measured.size, measured.frames)
    ann = Ledger(
        name=f"{name} ann",
        rows=(*_ann_rows(_with_products(model, found)), *post_rows(measured)),
        parameters=spiking.parameters,
        packed_bytes=spiking.float_bytes,
        float_bytes=spiking.float_bytes,
        left_out=left_out,
    )
    if is_float(found):
        return [ann]
    neurons = spiking_neurons(model).values()
    steps = max(neuron.time_steps for neuron in neurons)
    same = spiking.accuracy if steps == 1 else None
    quantised = replace(
        spiking,
        name=f"{name} quantised-ann",
        rows=(*_quantised_rows(found, steps), *post_rows(measured)),
        accuracy=same,
    )
    if steps > 1:
        return [ann, quantised]
    skipping = replace(
        quantised,
        name=f"{name} quantised-ann-skip",
        rows=(*_quantised_rows(found, steps, measured), *post_rows(measured)),
    )
    return [ann, quantised, skipping]


def ann_ledger(
    name: str, model: nn.Module, image_size: tuple[int, int], accuracy: float | None
) -> Ledger:
    """The ledger of a counterpart ANN; `image_size` is (H, W).

    Its operations are found in its spiking counterpart: the model's class must build one from a
    configuration. Weights are stored and read in the bits that they have; activations are fp32,
    and so is arithmetic.
    """
    config: Any = model.config
    with torch.device("meta"):
        spiking = type(model)(config.spiking())
        found = operations(spiking, image_size)
    return Ledger(
        name=name,
        rows=_ann_rows(_with_products(spiking, found), has_codes=True),
        parameters=sum(p.numel() for p in model.parameters()),
        packed_bytes=packed_bytes(model),
        float_bytes=float_bytes(model),
        accuracy=accuracy,
    )


def activation_bits(levels: int) -> int:
    """Bits of an activation of values 0..levels."""
    return math.ceil(math.log2(levels + 1))


def _with_products(model: nn.Module, found: Sequence[Operation]) -> list[Operation]:
    """`found` with attention by products where there is one by masks, as the ANN has it."""
    cores = {f"{n}.": m for n, m in model.named_modules() if isinstance(m, MaskAttention)}
    result: list[Operation] = []
    done: set[str] = set()
    for op in found:
        path = next((path for path in cores if op.name.startswith(path)), None)
        if path is None:
            result.append(op)
        elif path not in done:
            done.add(path)
            own = [other for other in found if other.name.startswith(path)]
            result += _products(path, own, cores[path].heads)
    return result


def _products(path: str, own: Sequence[Operation], heads: int) -> list[Operation]:
    """The two products of attention whose mask makes the operations `own`."""
    values = max(op.elements for op in own)
    channels = next(op.elements for op in own if op.name == f"{path}mask_neuron")
    holder = path.removesuffix("core.")
    common: dict[str, Any] = {"kind": "attention", "heads": heads, "tokens": values // channels}
    return [
        Operation(
            name=f"{holder}kv",
            partner=f"{holder}v_neuron",
            fan_in=channels // heads,
            layer_input=2 * values,
            **common,
        ),
        Operation(name=f"{holder}qkv", layer_input=values, elements=values, **common),
    ]


def _ann_rows(found: Sequence[Operation], *, has_codes: bool = False) -> tuple[Row, ...]:
    """The rows of an ANN with weights in fp32; with `has_codes` in the bits of each layer."""
    rows: list[Row] = []
    for op in found:
        if op.name.rpartition(".")[2] in NOT_IN_ANN:
            continue
        if op.kind == "attention":
            rows += _softmax_rows(op)
        elif op.kind in ("mac", "ac"):
            rows += _pool_rows(op, FLOAT_BITS, None)
            layer = _pooled(op)
            read = layer.layer_input * FLOAT_BITS
            bits = op.weight_bits if has_codes else None
            weights_read = op.weights_read * (bits or FLOAT_BITS)
            row = _macs(layer, float(layer.reached), weights_read, read)
            rows.append(replace(row, weight_bits=bits))
        else:
            # A ReLU is one comparison.
            additions, multiplications = op.elements, op.elements * (op.kind == "norm")
            moved = {"neuron": 1, "shortcut": 2, "norm": int(op.to_layer)}[op.kind]
            rows.append(
                Row(
                    name=op.name,
                    kind=op.kind,
                    count=op.elements,
                    additions=additions,
                    multiplications=multiplications,
                    moved=moved * op.elements * FLOAT_BITS,
                )
            )
    return tuple(rows)


def _pooled(op: Operation) -> Operation:
    """A layer as an ANN has it: it pools first where spikes are read one by one and summed."""
    return replace(
        op,
        dense_macs=op.dense_macs // op.places,
        reached=op.reached // op.places,
        layer_input=op.layer_input // op.places,
        fan_in=op.fan_in // op.places,
        places=1,
    )


def _pool_rows(op: Operation, bits: int, add_bits: int | None) -> list[Row]:
    """The pool before `_pooled`: it reads activations of `bits` and adds them, place by place."""
    if op.places == 1:
        return []
    values = op.layer_input
    return [
        Row(
            name=f"{op.name}.pool",
            kind="shortcut",
            count=values,
            additions=values,
            add_bits=add_bits,
            moved=values * bits,
        )
    ]


def _macs(op: Operation, count: float, weights_read: int, moved: float) -> Row:
    return Row(
        name=op.name,
        kind="mac",
        dense_macs=op.dense_macs,
        count=count,
        estimate=float(op.dense_macs),
        weights=op.weights,
        weight_bits=op.weight_bits,
        additions=count,
        multiplications=count,
        weights_read=weights_read,
        moved=moved,
    )


def _softmax_rows(op: Operation) -> list[Row]:
    """q k^T and softmax in place of k^T v, and the product with v in place of q (k^T v)."""
    # q k^T sums over the channels of q and k; its product with v has an output for each of v's.
    channels_tokens = op.heads * op.fan_in * op.tokens if op.partner else op.elements
    macs = float(op.tokens * channels_tokens)
    # q and k are read for the first product, v for the second.
    product = replace(
        _macs(op, macs, 0, op.layer_input * FLOAT_BITS), dense_macs=int(macs), estimate=macs
    )
    if op.partner is None:
        return [product]
    scores = float(op.tokens**2 * op.heads)
    # At least a multiplication and an addition for an exponential, and one to normalise.
    softmax = Row(
        name=f"{op.name}.softmax",
        kind="norm",
        count=scores,
        additions=2 * scores,
        multiplications=2 * scores,
    )
    return [product, softmax]


def _quantised_rows(
    found: Sequence[Operation],
    steps: int,
    skipping: Measured | None = None,
) -> tuple[Row, ...]:
    rows: list[Row] = []
    for op in found:
        levels = op.levels * steps
        bits = activation_bits(levels)
        if op.kind == "mac":
            rows.append(_quantised_layer(op, *real_input(op), skipping))
        elif op.kind == "ac":
            largest = levels * op.places
            sum_bits = activation_bits(largest)
            rows += _pool_rows(op, bits, sum_bits)
            rows.append(_quantised_layer(op, sum_bits, largest, skipping))
        elif op.kind == "attention":
            rows.append(_quantised_attention(op, bits, levels, skipping))
        else:
            rows.append(_quantised_elementwise(op, levels, bits))
    return tuple(rows)


def _quantised_layer(op: Operation, bits: int, largest: int, skipping: Measured | None) -> Row:
    weight_bits = op.weight_bits or FLOAT_BITS
    active = None
    if skipping is not None and op.kind == "ac":
        active = reached_by(skipping.active, op) / skipping.images
    op = _pooled(op)
    # Of pooled values no more are not 0 than there are.
    count = float(op.reached) if active is None else min(active, op.reached)
    row = _macs(op, count, op.weights_read * weight_bits, op.layer_input * bits)
    row = _of_activations(row, bits)
    if op.weight_bits is None:
        return row
    single = replace(op, fan_in=op.fan_in // op.times)
    accumulator = accumulator_bits(single, op.weight_bits, largest)
    return replace(row, add_bits=accumulator, mult_bits=(op.weight_bits, bits))


def _of_activations(row: Row, bits: int) -> Row:
    """One of a single bit says whether a weight is added: there is nothing to multiply."""
    return replace(row, multiplications=0.0) if bits == 1 else row


def _quantised_attention(op: Operation, bits: int, levels: int, skipping: Measured | None) -> Row:
    kv, qkv = attention_bits(op, levels)
    count = float(op.dense_macs)
    if skipping is not None:
        # In k^T v those of k.
        count = reached_by(skipping.active, op) / skipping.images
    row = _of_activations(_macs(op, count, 0, op.layer_input * bits), bits)
    operands = (bits, bits) if op.partner else (bits, kv)
    return replace(row, add_bits=kv if op.partner else qkv, mult_bits=operands)


def _quantised_elementwise(op: Operation, levels: int, bits: int) -> Row:
    """An activation compares with its thresholds, as many as there are levels."""
    work = elementwise_arithmetic(op, op.elements, as_float=False)
    if op.kind == "neuron":
        work = {**work, "additions": levels * op.elements, "multiplications": 0}
    moved = {
        "neuron": bits,
        "shortcut": 2 * MEMBRANE_BITS,
        "norm": MEMBRANE_BITS * int(op.to_layer),
    }[op.kind]
    return Row(name=op.name, kind=op.kind, count=op.elements, moved=moved * op.elements, **work)
