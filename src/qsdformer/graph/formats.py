"""The number formats of the integer graph, and how they are chosen.

Membrane potentials: 32 bits with 24 fractional ones (range +-128), fewer if the norms' statistics
ask for more range; or 16 bits with at most 14, usually 13 (range +-4). They saturate. Factors: 26
bits, or 16 for 16-bit membranes, and a shift per channel; larger ones for channels without
variance, at most 63. Biases: as many bits as they need.

Inputs of a convolution that are not spikes (pixels, and inside RepConv and SepConv as published)
get as many bits as let its sums fit 32 bits at worst, at most 24 (16). Logits: 32 bits with 16
fractional ones.
"""

from __future__ import annotations

import math
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn

from qsdformer.errors import UserError
from qsdformer.graph.ops import Array
from qsdformer.models.metaspikeformer import MetaSpikeFormer, Stage
from qsdformer.nn.attention import LayerScale, TransformerBlock
from qsdformer.nn.blocks import ConvBlock

MOST_FRACTION = {32: 24, 16: 14}  # fractional bits of membrane potentials
ROOM = 10  # deviations of a membrane potential that count as its reach
# The share of the reach, 1 / KEPT, that saturation leaves. Neurons tell potentials apart in (0, 1)
# alone, so that 16 bits gain more from resolution than they lose by saturating.
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


def membrane_reach(model: MetaSpikeFormer) -> float:
    """Largest membrane potential to expect in the shortcuts, judged from the norms.

    A norm's output has mean `bias` and deviation `weight`; along a shortcut these add up.
    """

    def spread(norm: nn.BatchNorm2d) -> Array:
        return np.abs(real(norm.bias)) + ROOM * np.abs(real(norm.weight))

    largest = 0.0
    for stage in cast(list[Stage], list(model.stages)):
        reach = spread(stage.downsample.norm)
        for block in stage.blocks:
            if isinstance(block, ConvBlock):
                reach = reach + spread(block.sepconv.norm2) + spread(block.norm2)
                continue
            assert isinstance(block, TransformerBlock)
            branches = (
                (block.attention.projection.norm, block.scale1),
                (block.mlp.norm2, block.scale2),
            )
            for norm, scale in branches:
                factor = np.abs(real(scale.scale)) if isinstance(scale, LayerScale) else 1.0
                reach = reach + spread(norm) * factor
        largest = max(largest, float(reach.max()))
    return largest


def membrane_fraction_of(model: MetaSpikeFormer, bits: int) -> int:
    """Fractional bits of membranes of 32 or 16 bits, from the reach that the norms let expect."""
    reach = membrane_reach(model) / KEPT[bits]
    if not math.isfinite(reach):
        raise UserError("cannot lower the model to integers: its norms hold NaN or infinity")
    return max(0, min(MOST_FRACTION[bits], bits - 1 - math.ceil(math.log2(max(reach, 1.0)))))


def real(value: Tensor) -> Array:
    """A tensor as float64 in NumPy."""
    with torch.no_grad():
        return value.detach().cpu().double().numpy()
