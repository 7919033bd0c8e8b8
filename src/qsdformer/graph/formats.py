"""The number formats of the integer graph, and how they are chosen.

Membrane potentials: 32 bits with 24 fractional ones (range +-128), fewer if the norms' statistics
ask for more range; or 16 bits with at most 14, usually 13 (range +-4). Either has fewer where a
neuron fires at more than its range. They saturate. Factors: 26 bits, or 16 for 16-bit membranes,
and a shift per channel; larger ones for channels without variance, at most 63. Biases: as many bits
as they need.

Inputs of a convolution that are not spikes (pixels, and inside RepConv and SepConv as published)
get as many bits as let its sums fit 32 bits at worst, at most 24 (16). Logits: 32 bits with 16
fractional ones.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from qsdformer.errors import UserError
from qsdformer.graph.check import MOST_FRACTION
from qsdformer.graph.ops import Array
from qsdformer.graph.steps import Constant, Step, Traced
from qsdformer.nn.neurons import IELIF, LIF

ROOM = 10  # deviations of a membrane potential that count as its reach
# The share of the reach, 1 / KEPT, that saturation leaves. Neurons tell potentials apart in their
# window alone, so that 16 bits gain more from resolution than they lose by saturating beyond it.
KEPT = {32: 1, 16: 8}
MULTIPLIER_BITS = {32: 26, 16: 16}
REAL_INPUT_BITS = {32: 24, 16: 16}
LOGIT_FRACTION = 16
MAX_SHIFT = 31
MAX_FACTOR = 2.0**61


def fixed_point(factors: Array, bits: int) -> tuple[Array, Array]:
    """Factors (C,) as integer multipliers of `bits` signed bits and right shifts 0..31.

    A factor too large for that takes more bits, up to 62, at shift 0; beyond is a ValueError.
    """
    if not np.isfinite(factors).all():
        raise ValueError("a scale is not finite: the weights hold NaN or infinity")
    _, exponent = np.frexp(factors)  # |factor| < 2^exponent
    shift = np.clip(bits - 1 - exponent, 0, MAX_SHIFT)
    multiplier = np.rint(np.ldexp(factors, shift))
    # Rounding can carry into one bit more.
    carried = (np.abs(multiplier) >= 2 ** (bits - 1)) & (shift > 0)
    shift = np.where(carried, shift - 1, shift)
    multiplier = np.rint(np.ldexp(factors, shift))
    if np.abs(multiplier).max() > MAX_FACTOR:
        raise ValueError(f"a scale of {np.abs(factors).max():.3g} units leaves 62 bits")
    return multiplier.astype(np.int64), shift.astype(np.int8)


def membrane_reach(traced: Traced) -> float:
    """Largest membrane potential to expect in the shortcuts, judged from the norms.

    A norm's output has mean `bias` and deviation `weight`; along a shortcut these add up. A
    convolution without a norm reaches as far as its weights allow.
    """
    known: dict[Step, Array] = {}

    def reach(step: Step) -> Array:
        """Largest value to expect of each channel, (C,)."""
        if step not in known:
            known[step] = np.broadcast_to(_reach(step, reach), step.channels)
        return known[step]

    return max((float(reach(step).max()) for step in traced.of_kind("add")), default=0.0)


def _reach(step: Step, reach: Callable[[Step], Array]) -> Array | float:
    module: Any = step.module
    if step.kind == "norm":
        bias = 0.0 if module.bias is None else np.abs(real(module.bias))
        return bias + ROOM * (1.0 if module.weight is None else np.abs(real(module.weight)))
    if step.kind == "neuron":
        return float(module.gain)
    if step.kind in ("image", "attention"):
        return float(ROOM)
    inputs = [reach(x) for x in step.inputs]
    if step.kind in ("conv", "linear", "border_conv", "conv_transpose"):
        weight = real(module.effective_weight() if hasattr(module, "bits") else module.weight)
        axes = (0, 2, 3) if step.kind == "conv_transpose" else tuple(range(1, weight.ndim))
        sums = np.abs(weight).sum(axis=axes)
        return sums * inputs[0].max() + (0.0 if module.bias is None else np.abs(real(module.bias)))
    if step.kind == "add":
        return inputs[0] + inputs[1]
    if step.kind == "multiply":
        return inputs[0] * inputs[1]
    if step.kind == "concat":
        return np.concatenate(inputs)
    if step.kind == "scale":
        return inputs[0] * np.abs(constant(step, "factor"))
    if step.kind == "shift":
        return inputs[0] + np.abs(constant(step, "offset"))
    return inputs[0] if len(inputs[0]) == step.channels else float(inputs[0].max())


def membrane_fraction_of(traced: Traced, bits: int) -> int:
    """Fractional bits of membranes of 32 or 16 bits, from the reach that the norms let expect.

    The potentials at which neurons fire, and one unit more, fit in any case.
    """
    reach = membrane_reach(traced) / KEPT[bits]
    if not math.isfinite(reach):
        raise UserError("cannot lower the model to integers: its norms hold NaN or infinity")
    firing = max([1.0, *(firing_potential(step.module) for step in traced.of_kind("neuron"))])
    fitting = math.floor(math.log2((2 ** (bits - 1) - 2) / firing))
    reaching = bits - 1 - math.ceil(math.log2(max(reach, 1.0)))
    return max(0, min(MOST_FRACTION[bits], reaching, fitting))


def firing_potential(neuron: nn.Module | None) -> float:
    """The potential at which a neuron at rest emits its largest count at once."""
    if isinstance(neuron, LIF):
        return neuron.tau * neuron.threshold
    return neuron.window if isinstance(neuron, IELIF) else 0.0


def constant(step: Step, name: str) -> Array | float:
    """The factor or the offset of a step: one number, or one for each channel (C,)."""
    value = step.options[name]
    if isinstance(value, Constant):
        found = real(value.compute())
        return float(found[0]) if len(found) == 1 else found
    return float(value)


def real(value: Tensor) -> Array:
    """A tensor as float64 in NumPy."""
    with torch.no_grad():
        return value.detach().cpu().double().numpy()


def thresholds(neuron: IELIF, one: int) -> tuple[int, ...]:
    """The least potentials, in units of 1/`one`, at which a neuron emits 1, 2, ... D counts.

    Potentials are whole numbers of units, so that a bound between two of them is exact.
    """
    window, d = Fraction(neuron.window), neuron.levels
    found = []
    for k in range(1, d + 1):
        half = (2 * k - 1) * window * one / (2 * d)  # where the count is k - 1/2 before rounding
        even = neuron.rounding == "even" and k % 2 == 1  # the half rounds down, to k - 1
        found.append(math.floor(half) + 1 if even else math.ceil(half))
    return tuple(found)


def resets(neuron: IELIF, one: int) -> tuple[int, ...]:
    """What 0, 1, ... D counts take from the potential, to the nearest unit of 1/`one`."""
    window, d = Fraction(neuron.window), neuron.levels
    return tuple(math.floor(k * window * one / d + Fraction(1, 2)) for k in range(d + 1))


def folded(norm: Any) -> tuple[Array, Array]:
    """A batch norm in evaluation as scale and shift, (C,) float64."""
    scale = 1 / np.sqrt(real(norm.running_var) + norm.eps)
    if norm.weight is not None:
        scale = real(norm.weight) / np.sqrt(real(norm.running_var) + norm.eps)
    bias = 0.0 if norm.bias is None else real(norm.bias)
    return scale, bias - real(norm.running_mean) * scale
