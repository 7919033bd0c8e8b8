"""Cycles of published designs, as their simulator has them: facts of its formulas, not its code.

Source: the simulator published with Prosperity (github.com/dubcyfor3/Prosperity, MIT), whose notes
say what it takes from the papers of each design. What it does not count is not counted here: MINT,
SATO, PTB and Eyeriss have no attention, and nobody has norms or shortcuts.

Legend as in `workload.py`: S steps, P positions, K inputs, N outputs; M = S * P rows.
"""

from __future__ import annotations

import heapq
import math
from dataclasses import dataclass

import numpy as np

from qsdformer.accelerator.published.workload import Attention, Layer, Neurons, Workload
from qsdformer.graph.ops import Array


@dataclass(frozen=True, kw_only=True)
class Mint:
    """Every spike's weights are added, `adders` a cycle; neurons on `neuron_lanes`."""

    adders: int
    neuron_lanes: int
    neuron_cycles: int

    def layer(self, layer: Layer) -> float:
        """Cycles of a layer."""
        return layer.ones() * -(-layer.outputs // self.adders)

    def neurons(self, neurons: Neurons) -> float:
        """Cycles of a layer of neurons."""
        return neurons.size * neurons.steps * self.neuron_cycles // self.neuron_lanes


@dataclass(frozen=True, kw_only=True)
class Eyeriss:
    """A dense array of `rows` inputs by `columns` outputs, which does not look for zeros."""

    rows: int
    columns: int

    def layer(self, layer: Layer) -> float:
        """Cycles of a layer."""
        return -(-layer.outputs // self.columns) * (layer.inputs * layer.rows // self.rows)

    def neurons(self, neurons: Neurons) -> float:
        """Cycles of a layer of neurons; none for fewer steps than columns."""
        return neurons.steps // self.columns * neurons.size // self.rows


@dataclass(frozen=True, kw_only=True)
class Sato:
    """Rows of the spike matrix go to the least loaded of `elements`, one after the other.

    The layer takes as long as the element with the most spikes, an addition a cycle.
    """

    elements: int

    def layer(self, layer: Layer) -> float:
        """Cycles of a layer; with a density only, those of elements with equal loads."""
        if layer.matrix is None:
            return layer.ones() / self.elements * layer.outputs
        loads = [0] * self.elements
        for ones in layer.spikes().sum(axis=2).ravel().tolist():
            heapq.heapreplace(loads, loads[0] + ones)
        return max(loads) * layer.outputs

    def neurons(self, neurons: Neurons) -> float:
        """Cycles of a layer of neurons: a tree over steps, and a comparison."""
        return neurons.size * (math.log2(neurons.steps) + 1)


@dataclass(frozen=True, kw_only=True)
class Ptb:
    """An array of `rows` outputs by `columns` positions, over windows of `window` steps.

    A position takes part in the windows in which it has a spike. Inputs whose spikes do not
    overlap, over the positions of a group of `columns`, are paired, each with the first that fits.
    """

    rows: int
    columns: int
    window: int
    dram_bits: int  # a cycle

    def layer(self, layer: Layer) -> float:
        """Cycles of a layer."""
        passes = paired_inputs(window_patterns(layer.spikes(), self.window, self.columns))
        cycles = passes * -(-layer.outputs // self.rows) * self.window
        cycles += layer.positions * self.rows * 2  # to fill the array
        first = self.rows * self.columns * (8 + self.window)
        moved = layer.rows * layer.inputs + 8 * layer.inputs * layer.outputs
        moved += layer.rows * layer.outputs
        later = (moved - first) // self.dram_bits
        return cycles + first // self.dram_bits + max(0, later - cycles)

    def neurons(self, neurons: Neurons) -> float:
        """Cycles of a layer of neurons."""
        return neurons.size * neurons.steps * 3 // self.rows


def window_patterns(spikes: Array, window: int, columns: int) -> Array:
    """Which of `columns` positions an input has spikes at, in a window: bool (groups, K, columns).

    Steps are filled up with empty ones to a power of two and to whole windows. Positions of all
    windows go to groups as they are dealt: group i has every so manieth of them, from i.
    """
    steps, positions, inputs = spikes.shape
    padded = max(window, 2 ** math.ceil(math.log2(steps)))
    spikes = np.pad(spikes, ((0, padded - steps), (0, 0), (0, 0)))
    active = spikes.reshape(-1, window, positions, inputs).any(axis=1).reshape(-1, inputs)
    active = np.pad(active, ((0, -len(active) % columns), (0, 0)))
    return active.reshape(columns, -1, inputs).transpose(1, 2, 0)


def paired_inputs(active: Array) -> int:
    """How many passes the inputs (groups, K, columns) take: none where nothing is active.

    An input that is active everywhere has a pass of its own; each of the others shares one with the
    first after it that is free and nowhere active together with it, if there is one.
    """
    columns = active.shape[2]
    patterns = (active @ (1 << np.arange(columns))).astype(np.int64)
    full = patterns == (1 << columns) - 1
    free = (patterns != 0) & ~full
    passes = int(full.sum() + free.sum())
    for i in range(patterns.shape[1] - 1):
        fits = free[:, i + 1 :] & ((patterns[:, i + 1 :] & patterns[:, i : i + 1]) == 0)
        found = np.flatnonzero(fits.any(axis=1) & free[:, i])
        partner = i + 1 + fits[found].argmax(axis=1)
        free[found, partner] = False
        passes -= len(found)
    return passes


@dataclass(frozen=True, kw_only=True)
class Prosperity:
    """Spikes by tiles, in which a row that contains another one adds what is new in it only.

    `adders` outputs a cycle; tiles of `tile_rows` rows and `tile_inputs` inputs.
    """

    adders: int
    neuron_lanes: int
    row_lanes: int  # rows whose spikes are counted in a cycle
    tile_rows: int
    tile_inputs: int
    weight_bits: int
    dram_bits: int  # a cycle

    @property
    def spike_buffer(self) -> int:
        """Bits of spikes held: a tile."""
        return self.tile_rows * self.tile_inputs

    @property
    def weight_buffer(self) -> int:
        """Bits of weights held: those of a tile."""
        return self.tile_inputs * self.adders * self.weight_bits

    def layer(self, layer: Layer) -> float:
        """Cycles of a layer, with its wait for DRAM; its input comes from there."""
        new, same, searched = self.reuse(layer.spikes())
        tiles = -(-layer.outputs // self.adders)
        cycles = max((new + same) * tiles, searched + layer.rows // self.row_lanes)
        first = min(self.tile_inputs, layer.inputs) * (
            min(self.adders, layer.outputs) * self.weight_bits + min(self.tile_rows, layer.rows)
        )
        later = (self.layer_traffic(layer) - first) // self.dram_bits
        return cycles + first // self.dram_bits + max(0, later - cycles)

    def neurons(self, neurons: Neurons) -> float:
        """Cycles that a layer of neurons needs after its layer: those of the last tile."""
        in_tile = self.tile_rows * self.adders // neurons.steps
        rounds = min(-(-in_tile // self.neuron_lanes), -(-neurons.size // self.neuron_lanes))
        return rounds * neurons.steps * 2

    def attention(self, attention: Attention) -> float:
        """Cycles of an attention: a mask's, or those of its products, one after the other."""
        if attention.products is not None:
            return sum(self.layer(product) for product in attention.products())
        if attention.kind == "product":
            raise ValueError("this design needs an attention's spikes, and they are not known")
        spikes = attention.steps * attention.tokens * attention.channels
        additions = spikes // self.adders
        rounds = -(-attention.channels // self.neuron_lanes)
        cycles = max(additions, rounds * attention.steps * 2) + additions
        first = attention.tokens * attention.channels // attention.heads * 3
        later = (3 * spikes + self._written(spikes) - first) // self.dram_bits
        return cycles + first // self.dram_bits + max(0, later - cycles)

    def reuse(self, spikes: Array) -> tuple[int, int, int]:
        """Of a spike matrix (S, P, K): additions left, rows equal to one before, rows searched.

        Within a tile, rows of two spikes and more reuse the largest other row that they contain;
        of equal ones the later reuses the earlier.
        """
        rows = spikes.transpose(1, 0, 2).reshape(-1, spikes.shape[2])
        pad = ((0, -len(rows) % self.tile_rows), (0, -rows.shape[1] % self.tile_inputs))
        bits = np.pad(rows, pad).reshape(len(rows) + pad[0][1], -1, self.tile_inputs)
        width = np.min_scalar_type((1 << self.tile_inputs) - 1)  # narrow numbers are fast
        patterns = (bits @ (1 << np.arange(self.tile_inputs)).astype(np.int32)).astype(width)
        tiles = patterns.reshape(-1, self.tile_rows, patterns.shape[1]).swapaxes(1, 2)
        new = same = searched = 0
        for tile in tiles.reshape(-1, self.tile_rows):
            found, times = np.unique(tile, return_counts=True)
            ones = np.bitwise_count(found)
            single, several = times[ones == 1], ones > 1
            reused = largest_contained(found, ones)
            new += int(single.sum() + (ones - reused)[several].sum())
            same += int((times[several] - 1).sum())
            searched += int(times[several].sum())
        return new, same, searched

    def layer_traffic(self, layer: Layer) -> int:
        """Bits from DRAM: weights for every tile of rows, spikes for every tile of outputs."""
        weights = layer.inputs * layer.outputs * self.weight_bits * -(-layer.rows // self.tile_rows)
        spikes = layer.rows * layer.inputs * -(-layer.outputs // self.adders)
        return weights + spikes // layer.kernel**2

    def traffic(self, workload: Workload) -> int:
        """Bits to and from DRAM of a network, attention and what neurons write among them."""
        total = sum(self.layer_traffic(layer) for layer in workload.layers)
        for neurons in workload.neurons:
            total += self._written(neurons.size * neurons.steps)
        for attention in workload.attentions:
            spikes = attention.steps * attention.tokens * attention.channels
            if attention.kind == "mask":
                total += 3 * spikes + self._written(spikes)
            else:
                total += attention.steps * attention.heads * self._head(attention)
        return total

    def _written(self, bits: int) -> int:
        """Bits that go to DRAM, for want of room in the buffer of spikes."""
        return 0 if bits < self.spike_buffer else bits

    def _head(self, attention: Attention) -> int:
        """Bits from DRAM of a head for one step: k, v as weights, q; k^T v if it is not kept."""
        width = attention.channels // attention.heads
        long, short = max(attention.tokens, width), min(attention.tokens, width)
        table = short * short * self.weight_bits
        lost = 0 if table < self.weight_buffer else table + long * short
        return long * short * (1 + self.weight_bits + 1) + lost


def largest_contained(patterns: Array, ones: Array) -> Array:
    """Ones of the largest other pattern that each contains; all of `patterns` are different."""
    contained = (patterns[:, None] & patterns) == patterns
    np.fill_diagonal(contained, False)
    return (contained * ones).max(axis=1)
