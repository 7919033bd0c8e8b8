"""Another order of channels, in which those that fire together are neighbours.

An executor that skips groups of neighbouring channels which are all silent has more to skip then.
The network stays the same: weights and factors are reordered with the channels, and what goes in
and out keeps its order.
"""

from __future__ import annotations

import dataclasses
from collections import defaultdict

import numpy as np

from qsdformer.graph.integer import IntegerGraph
from qsdformer.graph.ops import (
    Array,
    Attention,
    Concat,
    Conv,
    ConvTranspose,
    Normalise,
    Op,
    Rescale,
    Reshape,
)

GROUP = 4
MOST_PIXELS = 4000  # of a neuron by which channels are compared
MOST_CANDIDATES = 64  # channels that are tried for a place


def group_channels(graph: IntegerGraph, images: Array) -> IntegerGraph:
    """The graph with channels reordered by what fires at `images`, uint8 (B, C, H, W) pixels.

    Its logits, outputs and spikes are the same integers, spikes in another order of channels.
    """
    spaces = _Spaces(graph)
    _, counts = graph.run_with_counts(images)
    active: dict[str, list[Array]] = defaultdict(list)
    for name, count in counts.items():
        fires = np.moveaxis(count, 1, -1).reshape(-1, count.shape[1]) > 0
        step = -(-len(fires) // MOST_PIXELS)
        active[spaces.of(name)].append(fires[::step])
    orders = {}
    for space, rows in active.items():
        block = spaces.block.get(space, 0)
        if block > GROUP:
            orders[space] = _order(np.concatenate(rows), block)
    ops = tuple(_reordered(op, spaces, orders) for op in graph.ops)
    return dataclasses.replace(graph, ops=ops)


class _Spaces:
    """Which values must have one order of channels, each set named by one of them; and `block`,
    the run of channels within which its order is free, 0 where it is not.
    """

    def __init__(self, graph: IntegerGraph) -> None:
        self._parent = {op.name: op.name for op in graph.ops}
        self.channels: dict[str, int] = {}
        limits: list[tuple[str, int]] = []
        for op in graph.ops:
            self.channels[op.name] = self._count(op)
            limits += self._join(op)
        limits += [(output.op, 0) for output in graph.outputs] + [(graph.ops[-1].name, 0)]
        self.block = {self.of(name): count for name, count in self.channels.items()}
        for name, most in limits:
            space = self.of(name)
            small, large = sorted((most, self.block[space]))
            self.block[space] = small if small and large % small == 0 else 0

    def of(self, name: str) -> str:
        """The set that the value belongs to."""
        while self._parent[name] != name:
            name = self._parent[name]
        return name

    def _count(self, op: Op) -> int:
        if isinstance(op, Normalise):
            return op.table.shape[0]
        if isinstance(op, Conv):
            return op.codes.shape[0]
        if isinstance(op, ConvTranspose):
            return op.codes.shape[1]
        if isinstance(op, Reshape):
            return op.channels
        if isinstance(op, Concat):
            return sum(self.channels[name] for name in op.inputs)
        return self.channels[op.inputs[-1]]  # of attention, the last is v

    def _join(self, op: Op) -> list[tuple[str, int]]:
        """Makes one of the sets that `op` binds; limits of values' blocks."""
        if isinstance(op, Normalise):
            return [(op.name, 0)]
        if isinstance(op, Concat | Reshape) or (
            isinstance(op, Conv) and op.groups > 1 and not _is_depthwise(op)
        ):
            return [(name, 0) for name in (op.name, *op.inputs)]
        if isinstance(op, ConvTranspose) or (isinstance(op, Conv) and op.groups == 1):
            return []
        if isinstance(op, Attention):
            q, k, v = op.inputs
            self._parent[self.of(k)] = self.of(q)
            self._parent[self.of(op.name)] = self.of(v)
            return [(name, self.channels[name] // op.heads) for name in (q, v)]
        for name in op.inputs:
            self._parent[self.of(op.name)] = self.of(name)
        return []


def _is_depthwise(op: Conv) -> bool:
    return op.codes.shape[1] == 1 and op.groups == op.codes.shape[0]


def _order(active: Array, block: int) -> Array:
    """Channels in fours within each block: a four begins with the busiest channel left, and takes
    those that make it fire at the fewest more pixels. `active` is (pixels, channels) booleans.
    """
    order: list[int] = []
    for first in range(0, active.shape[1], block):
        rates = active[:, first : first + block].sum(axis=0)
        left = [first + int(c) for c in np.argsort(-rates, kind="stable")]
        while left:
            fires = active[:, left[0]].copy()
            order.append(left.pop(0))
            for _ in range(min(GROUP - 1, len(left))):
                candidates = active[:, left[:MOST_CANDIDATES]]
                shared = (candidates & fires[:, None]).sum(axis=0)
                added = candidates.sum(axis=0) - shared
                best = left.pop(int(np.lexsort((-shared, added))[0]))
                fires |= active[:, best]
                order.append(best)
    return np.array(order)


def _reordered(op: Op, spaces: _Spaces, orders: dict[str, Array]) -> Op:
    """The operation for the new orders of what it reads and of what it gives."""
    out = orders.get(spaces.of(op.name), slice(None))
    if isinstance(op, Rescale):
        return dataclasses.replace(
            op, multiplier=op.multiplier[out], shift=op.shift[out], bias=op.bias[out]
        )
    if isinstance(op, Conv) and op.groups > 1:
        return dataclasses.replace(op, codes=op.codes[out])
    if isinstance(op, Conv | ConvTranspose):
        into = orders.get(spaces.of(op.inputs[0]), slice(None))
        first, second = (out, into) if isinstance(op, Conv) else (into, out)
        return dataclasses.replace(op, codes=np.ascontiguousarray(op.codes[first][:, second]))
    return op
