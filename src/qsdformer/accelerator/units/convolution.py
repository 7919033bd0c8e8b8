"""The sparse convolution unit: a spike adds its weights to every output that it reaches.

Reads lists of the `channel` layout: positions of one input channel. An entry reaches some taps of
the kernel, fewer at borders and under strides, and each tap adds to all outputs of the channel's
group: additions = taps * outputs, done `lanes` a cycle, so that the entry takes
ceil(additions / lanes) cycles, and one cycle if it reaches nothing. All engines join for one list
where lists add to the same sums; where groups have sums of their own, as in depthwise
convolutions, the channels of group g go to engine g modulo their number, of as many engines as
accumulators hold maps for.

The weights of a channel stay in the lanes for its whole list if they fit there, k*k*outputs of
them; else they are read for every entry. The sums of the map that is being made lie in
accumulators, and each addition reads and writes one. Where these hold the maps of fewer outputs,
the lists are read once more for each part of them.

This is a scatter; a convolution over all channels may gather instead (`linear.py`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from scipy import sparse  # type: ignore[import-untyped]

from qsdformer.accelerator.design import Design, Lanes
from qsdformer.accelerator.encoding import Spikes, stored_bits
from qsdformer.accelerator.units.work import (
    Work,
    lane_energy,
    pass_weights,
    passes,
    require_output,
    tiles,
    walk,
)
from qsdformer.graph.ops import Array, Conv

FILL = 2


@dataclass(frozen=True, kw_only=True)
class Window:
    """A square window that moves over a map (height, width)."""

    kernel: int
    stride: int
    padding: int
    height: int
    width: int

    @property
    def sides(self) -> tuple[int, int]:
        """Height and width of the result."""
        reach = 2 * self.padding - self.kernel
        return (self.height + reach) // self.stride + 1, (self.width + reach) // self.stride + 1

    def taps(self, positions: Array) -> Iterator[tuple[int, Array, Array]]:
        """For each tap: its index, which entries at `positions` it sees, and their outputs."""
        row, column = np.divmod(positions, self.width)
        height, width = self.sides
        for tap in range(self.kernel**2):
            i, j = divmod(tap, self.kernel)
            y, y_off = np.divmod(row + self.padding - i, self.stride)
            x, x_off = np.divmod(column + self.padding - j, self.stride)
            seen = (y_off == 0) & (x_off == 0) & (y >= 0) & (y < height) & (x >= 0) & (x < width)
            (entries,) = np.nonzero(seen)
            yield tap, entries, y[entries] * width + x[entries]

    def reached(self, positions: Array) -> Array:
        """How many outputs each entry reaches, (n,)."""
        found = np.zeros(len(positions), np.int64)
        for _, entries, _ in self.taps(positions):
            found[entries] += 1
        return found


def window_of(op: Conv, height: int, width: int) -> Window:
    """The window of a convolution."""
    kernel = op.codes.shape[-1]
    return Window(kernel=kernel, stride=op.stride, padding=op.padding, height=height, width=width)


def convolution_sums(op: Conv, spikes: Spikes) -> Array:
    """Sums (C_out, B, H', W') int32, addition by addition of what spikes reach."""
    channels, batch, height, width = spikes.shape
    window = window_of(op, height, width)
    sides = window.sides
    outputs, per_group = op.codes.shape[:2]
    channel, image, position = spikes.indices
    rows, columns, counts = [], [], []
    for tap, entries, places in window.taps(position):
        rows.append(image[entries] * (sides[0] * sides[1]) + places)
        columns.append(tap * channels + channel[entries])
        counts.append(spikes.counts[entries])
    row, column, count = (np.concatenate(parts) for parts in (rows, columns, counts))
    size = batch * sides[0] * sides[1]
    codes = op.codes.reshape(outputs, per_group, -1)  # (C_out, C_in / groups, taps)
    if op.groups == channels == outputs:
        taps, own = np.divmod(column, channels)
        added = codes[own, 0, taps].astype(np.int64) * count
        sums = np.bincount(own * size + row, added, minlength=outputs * size)
        return sums.astype(np.int32).reshape(outputs, batch, *sides)
    groups = []
    for g in range(op.groups):
        mine = (column % channels) // per_group == g
        taps, own = np.divmod(column[mine], channels)
        table = sparse.csr_matrix(
            (count[mine].astype(np.int32), (row[mine], taps * per_group + own % per_group)),
            (size, codes.shape[2] * per_group),
        )
        part = codes[g * (outputs // op.groups) : (g + 1) * (outputs // op.groups)]
        weights = np.ascontiguousarray(part.transpose(2, 1, 0), dtype=np.int32)
        groups.append(table @ weights.reshape(table.shape[1], -1))
    sums = np.concatenate(groups, axis=1).T.astype(np.int32)
    return np.ascontiguousarray(sums).reshape(outputs, batch, *sides)


def convolution_work(op: Conv, sum_bits: int, spikes: Spikes, unit: Lanes, design: Design) -> Work:
    """What the unit does for a convolution with sums of `sum_bits`."""
    channels, batch, height, width = spikes.shape
    window = window_of(op, height, width)
    map_bits = window.sides[0] * window.sides[1] * sum_bits
    outputs, per_group = len(op.codes), len(op.codes) // op.groups
    engines = min(op.groups, unit.engines)
    lanes = unit.lanes * (unit.engines // engines)
    require_output(op.name, design, "weights", op.codes[0].size * op.bits)
    require_output(op.name, design, "accumulators", map_bits)
    # With several groups at work, each has sums of its own.
    engines = min(engines, design.buffers.accumulators.bits // map_bits)
    at_once = design.buffers.accumulators.bits // (map_bits * engines)
    parts = tiles(per_group, min(per_group, at_once))
    taps = window.reached(spikes.addresses)
    walks = [
        walk(spikes, -(-taps * size // lanes), design.encoding, design.word_bits) * times
        for size, times in parts
    ]
    owner = (np.arange(spikes.list_count) // batch) // (channels // op.groups) % engines
    cycles, stalls = sum(walks[1:], walks[0]).on(engines, owner)
    entries = pass_weights(spikes, design.encoding)
    additions = int((entries * taps).sum()) * per_group
    held = window.kernel**2 * parts[0][0] <= lanes
    codes_read = additions
    if held:
        codes_read = sum(
            len(np.unique(spikes.lists[met])) for met in passes(spikes, design.encoding)
        ) * (window.kernel**2 * per_group)
    drained = outputs * batch * map_bits
    return Work(
        unit="convolution",
        cycles=cycles + FILL,
        stalls=stalls,
        operations=additions,
        synaptic=int((spikes.counts * taps).sum()) * per_group,
        capacity=(cycles + FILL) * unit.total,
        energy=additions * lane_energy(spikes, design, sum_bits, op.bits),
        inputs=(stored_bits(spikes, design.encoding) * sum(times for _, times in parts),),
        weights=codes_read * op.bits,
        reads=additions * sum_bits + drained,
        writes=additions * sum_bits,
    )
