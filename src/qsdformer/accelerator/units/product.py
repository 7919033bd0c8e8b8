"""The unit of q (k^T v): sums over lists of spikes, head by head.

Reads lists of the `pixel` layout; the channels of a head are a part of a list.

1. k^T v. For every pixel, an entry of k adds the entries of v, `lanes` of them a cycle, to its row
   of the head's table: entries of k * ceil(entries of v / lanes) cycles for each pass of k with
   each pass of v, and one cycle where either part is empty.
2. q (k^T v). An entry of q adds its row of the table, `lanes` numbers a cycle, to the pixel's sums.

A head of one time step belongs to one engine; its table (d x d_v) lies in accumulators. Where they
do not hold a table for every engine, fewer engines work.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import sparse  # type: ignore[import-untyped]

from qsdformer.accelerator.design import KIB_BITS, Design, Lanes
from qsdformer.accelerator.encoding import Spikes, bits_to_tell, stored_bits
from qsdformer.accelerator.units.work import Walk, Work, lane_energy, met, passes
from qsdformer.errors import UserError
from qsdformer.graph.ops import Array

FILL = 2


@dataclass(frozen=True, kw_only=True, eq=False)
class Heads:
    """Where each entry lies: its part, (image, head, pixel) as one number, and channel in it."""

    parts: Array  # (n,)
    channels: Array  # (n,)
    count: int  # of parts
    width: int  # channels of a head


def by_head(spikes: Spikes, heads: int) -> Heads:
    """The entries of `spikes` by head."""
    channels, batch, height, width = spikes.shape
    tokens, size = height * width, channels // heads
    channel, image, position = spikes.indices
    head, within = np.divmod(channel, size)
    parts = (image * heads + head) * tokens + position
    return Heads(parts=parts, channels=within, count=batch * heads * tokens, width=size)


def product_sums(q: Spikes, k: Spikes, v: Spikes, heads: int) -> Array:
    """q (k^T v) per head, (C of v, B, H, W) int32."""
    channels, batch, height, width = v.shape
    tokens = height * width
    at_q, at_k, at_v = (by_head(s, heads) for s in (q, k, v))
    rows = at_k.parts // tokens * at_k.width + at_k.channels
    tables = batch * heads * at_k.width
    by_channel = sparse.csr_matrix((k.counts, (rows, at_k.parts)), (tables, at_k.count))
    by_part = sparse.csr_matrix((v.counts, (at_v.parts, at_v.channels)), (at_v.count, at_v.width))
    table = (by_channel @ by_part).toarray()
    columns = at_q.parts // tokens * at_q.width + at_q.channels
    sums = sparse.csr_matrix((q.counts, (at_q.parts, columns)), (at_q.count, tables)) @ table
    shaped = sums.reshape(batch, heads, tokens, at_v.width).transpose(1, 3, 0, 2)
    return np.ascontiguousarray(shaped, np.int32).reshape(channels, batch, height, width)


def product_work(
    name: str,
    q: Spikes,
    k: Spikes,
    v: Spikes,
    heads: int,
    sum_bits: int,
    unit: Lanes,
    design: Design,
) -> Work:
    """What the unit does for one attention, with results of `sum_bits`."""
    _, batch, height, width = q.shape
    at_q, at_k, at_v = (by_head(s, heads) for s in (q, k, v))
    tokens = height * width
    table_bits = bits_to_tell(tokens * k.levels * v.levels + 1)
    engines = _engines(name, at_k.width * at_v.width * table_bits, unit, design)
    first, pairs = _pairs(k, v, at_k, at_v, unit.lanes, design)
    second = _rows(q, at_q, -(-at_v.width // unit.lanes), design)
    owner = np.arange(at_q.count) // tokens % engines
    cycles, stalls = (first + second).on(engines, owner)
    met_q = met(q, design.encoding)
    rows = met_q * at_v.width
    drained = batch * at_v.width * heads * tokens * sum_bits
    passes_of_k = 1 if design.encoding == "address+count" else k.levels
    return Work(
        unit="attention",
        cycles=cycles + FILL,
        stalls=stalls,
        operations=pairs + rows,
        synaptic=sum(spike_additions(q, k, v, heads)),
        capacity=(cycles + FILL) * unit.total,
        energy=pairs * _pair_energy(k, v, table_bits, design)
        + rows * lane_energy(q, design, sum_bits, table_bits),
        inputs=(
            stored_bits(q, design.encoding),
            stored_bits(k, design.encoding),
            passes_of_k * stored_bits(v, design.encoding),
        ),
        reads=pairs * table_bits + rows * (table_bits + sum_bits) + drained,
        writes=pairs * table_bits + rows * sum_bits,
    )


def _engines(name: str, table: int, unit: Lanes, design: Design) -> int:
    buffer = design.buffers.accumulators
    if table > buffer.bits:
        raise UserError(
            f"{name}: buffers.accumulators of {buffer.kib:g} KiB of design {design.name} is too "
            f"small: k^T v of one head needs {table / KIB_BITS:.2f} KiB"
        )
    return min(unit.engines, buffer.bits // table)


def spike_additions(q: Spikes, k: Spikes, v: Spikes, heads: int) -> tuple[int, int]:
    """Additions that spikes cause: pairs of k and v in k^T v, and of q with rows of the table."""
    counted = []
    for spikes in (k, v):
        at = by_head(spikes, heads)
        counted.append(np.bincount(at.parts, spikes.counts, minlength=at.count).astype(np.int64))
    return int(counted[0] @ counted[1]), q.spikes * (v.shape[0] // heads)


def _pairs(
    k: Spikes, v: Spikes, at_k: Heads, at_v: Heads, lanes: int, design: Design
) -> tuple[Walk, int]:
    """Cycles of k^T v for each part, and how many pairs of entries meet."""
    total, idle = np.zeros(at_k.count, np.int64), np.zeros(at_k.count, np.int64)
    words = -(-at_k.width // design.word_bits) if design.encoding == "bitmap" else 1
    pairs = 0
    for entries_k in passes(k, design.encoding):
        count_k = np.bincount(at_k.parts[entries_k], minlength=at_k.count)
        for entries_v in passes(v, design.encoding):
            count_v = np.bincount(at_v.parts[entries_v], minlength=at_k.count)
            worked = count_k * -(-count_v // lanes)
            total += np.maximum(worked, words)
            idle += np.maximum(worked, words) - worked
            pairs += int(count_k @ count_v)
    return Walk(cycles=total, idle=idle), pairs


def _rows(q: Spikes, at_q: Heads, cost: int, design: Design) -> Walk:
    """Cycles of q (k^T v) for each part."""
    total, idle = np.zeros(at_q.count, np.int64), np.zeros(at_q.count, np.int64)
    words = -(-at_q.width // design.word_bits) if design.encoding == "bitmap" else 1
    for entries in passes(q, design.encoding):
        worked = np.bincount(at_q.parts[entries], minlength=at_q.count) * cost
        total += np.maximum(worked, words)
        idle += np.maximum(worked, words) - worked
    return Walk(cycles=total, idle=idle)


def _pair_energy(k: Spikes, v: Spikes, table_bits: int, design: Design) -> float:
    return lane_energy(k, design, table_bits, bits_to_tell(v.levels + 1))
