"""Neurons as ONNX nodes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from qsdformer.graph.ops import FACTOR_BITS, IELIF, LIF, Neuron
from qsdformer.runtimes.onnx_nodes import FLOAT, INT64, UINT8, Nodes
from qsdformer.runtimes.onnx_thresholds import membrane_thresholds


@dataclass(frozen=True, kw_only=True)
class NeuronNodes:
    """Makes spike counts of real membrane potentials, in uint8 or, not `quantised`, in float32.

    `clip_bytes` chooses between two ways to keep counts at D or below: the minimum of bytes, which
    ONNX Runtime leaves beside its quantised convolution, or clipping real numbers before they are
    rounded, which OpenVINO makes part of the convolution. `unit` is the real value of one unit of
    the neuron's potentials and thresholds.
    """

    nodes: Nodes
    quantised: bool
    clip_bytes: bool

    def counts(self, op: Neuron, potential: str, unit: float, *, ties: bool) -> str:
        """Spike counts of real potentials at one time step.

        `ties` says that potentials often lie on a threshold, as sums of counts do, so that it
        matters which way they go there; the conversion to bytes takes the even count.
        """
        if isinstance(op, IELIF):
            if (ties and self.quantised) or not rounds(op, unit, even=self.quantised):
                return self._compared(op, potential, unit)
            if self.quantised:
                return self.rounded(potential, op.levels)
            y = self.nodes.add("Mul", potential, self.nodes.reals(op.levels))
            y = self.nodes.add("Add", y, self.nodes.reals(0.5))
            return self.of_levels(y, op.levels)
        return self._fires(potential, membrane_thresholds(op)[0] * unit)

    def of_levels(self, name: str, levels: int) -> str:
        """The counts of what a fused convolution gives."""
        if self.quantised:
            return self.rounded(name, levels)
        name = self.nodes.add("Clip", name, *map(self.nodes.reals, (0.0, levels + 0.5)))
        return self.nodes.add("Floor", name)

    def _compared(self, op: IELIF, potential: str, unit: float) -> str:
        """How many thresholds the potentials reach."""
        reached = [
            self.nodes.add(
                "Cast",
                self.nodes.add("GreaterOrEqual", potential, self._limit(threshold * unit)),
                to=FLOAT,
            )
            for threshold in op.thresholds
        ]
        name = self.nodes.add("Sum", *reached)
        return self.nodes.add("Cast", name, to=UINT8) if self.quantised else name

    def rounded(self, name: str, levels: int) -> str:
        """round(D*u) clipped to 0..D as uint8; exactly between two counts the even one."""
        if not self.clip_bytes:
            name = self.nodes.add("Clip", name, self.nodes.reals(0.0), self.nodes.reals(1.0))
        zero = self.nodes.constant(np.uint8(0))
        name = self.nodes.add("QuantizeLinear", name, self.nodes.reals(1.0 / levels), zero)
        if self.clip_bytes:
            name = self.nodes.add("Min", name, self.nodes.constant(np.uint8(levels)))
        return name

    def over_time(self, op: Neuron, potential: str, unit: float, *, ties: bool) -> str:
        """The neuron's steps one after the other, its potential carried in float32."""
        carried: str | None = None
        counts = []
        for number, u in enumerate(self.nodes.split(potential, op.steps)):
            if isinstance(op, LIF):
                h = self._leaked(op, u, carried, unit)
                spikes = self._fires(h, op.threshold * unit)
                last = number == op.steps - 1
                carried = None if last else self._reset_to_zero(h, spikes)
            else:
                assert isinstance(op, IELIF)
                h = u if carried is None else self.nodes.add("Add", u, carried)
                spikes = self.counts(op, h, unit, ties=ties)
                if number < op.steps - 1:
                    carried = self._soft_reset(op, h, spikes, unit)
            counts.append(spikes)
        return self.nodes.add("Concat", *counts, axis=0)

    def _soft_reset(self, op: IELIF, h: str, counts: str, unit: float) -> str:
        """decay * (h - count / D), or what the table has instead of count / D."""
        if unit <= 1 and op.resets == _resets(op, unit):
            value = self.nodes.add("Cast", counts, to=FLOAT) if self.quantised else counts
            value = self.nodes.add("Mul", value, self.nodes.reals(1.0 / op.levels))
        else:
            index = self.nodes.add("Cast", counts, to=INT64)
            table = self.nodes.reals(np.array(op.resets, np.float64) * unit)
            value = self.nodes.add("Gather", table, index)
        v = self.nodes.add("Sub", h, value)
        v = self.nodes.add("Mul", v, self.nodes.reals(op.decay / 2**FACTOR_BITS))
        return self._whole(v) if unit == 1.0 else v

    def _leaked(self, op: LIF, u: str, v: str | None, unit: float) -> str:
        """h = v + (u - v) * leak."""
        leak = op.leak / 2**FACTOR_BITS
        h = self.nodes.add("Mul", u, self.nodes.reals(leak))
        if v is not None:
            kept = self.nodes.add("Mul", v, self.nodes.reals(1.0 - leak))
            h = self.nodes.add("Add", h, kept)
        return self._whole(h) if unit == 1.0 else h

    def _fires(self, h: str, threshold: float) -> str:
        fires = self.nodes.add("GreaterOrEqual", h, self._limit(threshold))
        return self.nodes.add("Cast", fires, to=UINT8 if self.quantised else FLOAT)

    def _limit(self, threshold: float) -> str:
        """The least float32 that is not below: rounded down, it would let a tie below it pass."""
        nearest = np.float32(threshold)
        if float(nearest) < threshold:
            nearest = np.nextafter(nearest, np.float32(np.inf))
        return self.nodes.reals(nearest)

    def _whole(self, x: str) -> str:
        """Whole numbers stay whole: rounding that real potentials do not notice decides here."""
        return self.nodes.add("Floor", self.nodes.add("Add", x, self.nodes.reals(0.5)))

    def _reset_to_zero(self, h: str, spikes: str) -> str:
        silent = self.nodes.add("Cast", spikes, to=FLOAT) if self.quantised else spikes
        silent = self.nodes.add("Sub", self.nodes.reals(1.0), silent)
        return self.nodes.add("Mul", h, silent)


def rounds(op: Neuron, unit: float, *, even: bool) -> bool:
    """Whether the count is round(D*u) clipped to 0..D, as lowering makes IE-LIF neurons.

    Exactly between two counts the larger one or, if `even` allows it, always the even one. LIF
    neurons, of one threshold, can always be made so.
    """
    if isinstance(op, LIF):
        return True
    assert isinstance(op, IELIF)
    one, twice = 1.0 / unit, 2 * op.levels
    if not one.is_integer():
        return False
    middles = [(2 * k - 1) * int(one) for k in range(1, op.levels + 1)]
    up = tuple(-(-m // twice) for m in middles)
    # Half way from an even count to the next, the even one is the smaller one.
    down = tuple(-(-m // twice) + (m % twice == 0 and k % 2 == 0) for k, m in enumerate(middles))
    return op.thresholds == up or (even and op.thresholds == down)


def _resets(op: IELIF, unit: float) -> tuple[int, ...]:
    """count / D for every count, in units, as lowering makes them."""
    one, d = round(1.0 / unit), op.levels
    return tuple((2 * k * one + d) // (2 * d) for k in range(d + 1))
