"""Neurons as ONNX nodes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from qsdformer.graph.ops import FACTOR_BITS, IELIF, LIF, Neuron
from qsdformer.runtimes.onnx_nodes import FLOAT, UINT8, Nodes
from qsdformer.runtimes.onnx_thresholds import membrane_thresholds


@dataclass(frozen=True, kw_only=True)
class NeuronNodes:
    """Makes spike counts of real membrane potentials, in uint8 or, not `quantised`, in float32.

    `clip_bytes` chooses between two ways to keep counts at D or below: the minimum of bytes, which
    ONNX Runtime leaves beside its quantised convolution, or clipping real numbers before they are
    rounded, which OpenVINO makes part of the convolution. `fraction` is that of thresholds.
    """

    nodes: Nodes
    quantised: bool
    clip_bytes: bool
    fraction: int

    def counts(self, op: Neuron, potential: str) -> str:
        """Spike counts of real potentials at one time step."""
        if isinstance(op, IELIF) and self.quantised:
            return self.rounded(potential, op.levels)
        threshold = membrane_thresholds(op)[0] * 2.0**-self.fraction
        if isinstance(op, IELIF):
            y = self.nodes.add("Mul", potential, self.nodes.reals(op.levels))
            y = self.nodes.add("Add", y, self.nodes.reals(0.5))
            y = self.nodes.add("Clip", y, *map(self.nodes.reals, (0.0, op.levels + 0.5)))
            return self.nodes.add("Floor", y)
        fires = self.nodes.add("GreaterOrEqual", potential, self.nodes.reals(threshold))
        return self.nodes.add("Cast", fires, to=UINT8 if self.quantised else FLOAT)

    def rounded(self, name: str, levels: int) -> str:
        """round(D*u) clipped to 0..D as uint8; exactly between two counts the even one."""
        if not self.clip_bytes:
            name = self.nodes.add("Clip", name, self.nodes.reals(0.0), self.nodes.reals(1.0))
        zero = self.nodes.constant(np.uint8(0))
        name = self.nodes.add("QuantizeLinear", name, self.nodes.reals(1.0 / levels), zero)
        if self.clip_bytes:
            name = self.nodes.add("Min", name, self.nodes.constant(np.uint8(levels)))
        return name

    def over_time(self, op: Neuron, potential: str) -> str:
        """The neuron's steps one after the other, its potential carried in float32."""
        carried: str | None = None
        counts = []
        for number, u in enumerate(self.nodes.split(potential, op.steps)):
            if isinstance(op, LIF):
                h, spikes = self._lif_step(op, u, carried)
                last = number == op.steps - 1
                carried = None if last else self._reset_to_zero(h, spikes)
            else:
                assert isinstance(op, IELIF)
                h = u if carried is None else self.nodes.add("Add", u, carried)
                spikes = self.counts(op, h)
                if number < op.steps - 1:
                    carried = self._soft_reset(op, h, spikes)
            counts.append(spikes)
        return self.nodes.add("Concat", *counts, axis=0)

    def _soft_reset(self, op: IELIF, h: str, counts: str) -> str:
        """decay * (h - count / D)."""
        value = self.nodes.add("Cast", counts, to=FLOAT) if self.quantised else counts
        value = self.nodes.add("Mul", value, self.nodes.reals(1.0 / op.levels))
        v = self.nodes.add("Sub", h, value)
        return self.nodes.add("Mul", v, self.nodes.reals(op.decay / 2**FACTOR_BITS))

    def _lif_step(self, op: LIF, u: str, v: str | None) -> tuple[str, str]:
        """h = v + (u - v) * leak, and its spikes."""
        leak = op.leak / 2**FACTOR_BITS
        h = self.nodes.add("Mul", u, self.nodes.reals(leak))
        if v is not None:
            kept = self.nodes.add("Mul", v, self.nodes.reals(1.0 - leak))
            h = self.nodes.add("Add", h, kept)
        threshold = op.threshold * 2.0**-self.fraction
        fires = self.nodes.add("GreaterOrEqual", h, self.nodes.reals(threshold))
        return h, self.nodes.add("Cast", fires, to=UINT8 if self.quantised else FLOAT)

    def _reset_to_zero(self, h: str, spikes: str) -> str:
        silent = self.nodes.add("Cast", spikes, to=FLOAT) if self.quantised else spikes
        silent = self.nodes.add("Sub", self.nodes.reals(1.0), silent)
        return self.nodes.add("Mul", h, silent)
