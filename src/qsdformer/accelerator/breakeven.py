"""Where one way of handling spikes overtakes another, as a function of the firing rate.

One layer of random spikes goes through the units: counts of a place are binomial, as of D
independent spikes of the rate given. What a layer costs is what its unit did, with the traffic of
its lists and weights; leakage and DRAM are left out, since they depend on the rest of the chip.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from qsdformer.accelerator.design import Design
from qsdformer.accelerator.encoding import (
    Encoding,
    Layout,
    Spikes,
    address_bits,
    bits_to_tell,
    encode,
    stored_bits,
)
from qsdformer.accelerator.units.dense import Products, dense_work
from qsdformer.accelerator.units.linear import linear_work
from qsdformer.accelerator.units.work import Work


@dataclass(frozen=True, kw_only=True)
class Layer:
    """A 1x1 convolution of `inputs` to `outputs` channels on a map of side x side pixels."""

    inputs: int = 256
    outputs: int = 256
    side: int = 14
    bits: int = 4


@dataclass(frozen=True, kw_only=True)
class Costs:
    """What a layer costs: cycles, pJ of arithmetic and of buffers, and bits of its stored input."""

    cycles: int
    compute: float
    buffers: float
    stored: int

    @property
    def energy(self) -> float:
        """pJ."""
        return self.compute + self.buffers


def random_spikes(
    rate: float, levels: int, layer: Layer, layout: Layout = "pixel", seed: int = 0
) -> Spikes:
    """Binomial counts of one image at a firing rate."""
    shape = (layer.inputs, 1, layer.side, layer.side)
    counts = np.random.default_rng(seed).binomial(levels, rate, shape)
    return encode(counts.astype(np.int32), levels, layout)


def layer_costs(spikes: Spikes, layer: Layer, design: Design) -> Costs:
    """What `layer` costs on `design`, the writing of its input among it."""
    largest = 2 ** (layer.bits - 1) * layer.inputs * spikes.levels
    sum_bits = largest.bit_length() + 1
    stored = stored_bits(spikes, design.encoding)
    work: Work
    if design.kind == "sparse":
        unit = design.units.linear
        assert unit is not None
        work = linear_work("layer", layer.outputs, layer.bits, sum_bits, spikes, unit, design)
    else:
        array = design.units.array
        assert array is not None
        places = spikes.list_count * spikes.length
        products = Products(
            pixels=spikes.list_count,
            fan_in=layer.inputs,
            outputs=layer.outputs,
            times=1,
            nonzero=len(spikes.counts) / places,
            weight_bits=layer.bits,
            input_bits=bits_to_tell(spikes.levels + 1),
            sum_bits=sum_bits,
            inputs=(stored,),
        )
        work = dense_work(products, array, synaptic=spikes.spikes * layer.outputs)
    buffers = design.buffers
    moved = (stored + sum(work.inputs)) * buffers.spikes.pj_per_bit
    return Costs(
        cycles=work.cycles,
        compute=work.energy,
        buffers=moved + work.weights * buffers.weights.pj_per_bit,
        stored=stored,
    )


def crossing(rates: Sequence[float], ratios: Sequence[float]) -> float | None:
    """The rate at which a ratio that grows with the rate passes 1; None if it does not."""
    for i in range(1, len(rates)):
        low, high = ratios[i - 1], ratios[i]
        if low <= 1 < high:
            return rates[i - 1] + (rates[i] - rates[i - 1]) * (1 - low) / (high - low)
    return None


def compare(
    rates: Sequence[float],
    levels: int,
    layer: Layer,
    first: Design,
    second: Design,
    measure: Callable[[Costs], float],
) -> list[float]:
    """How many times as much `first` costs as `second`, for each rate."""
    ratios = []
    for rate in rates:
        spikes = random_spikes(rate, levels, layer)
        a, b = (measure(layer_costs(spikes, layer, design)) for design in (first, second))
        ratios.append(a / b)
    return ratios


def storage_break_even(length: int, levels: int, encoding: Encoding) -> float:
    """The firing rate at which lists of `length` take as many bits as a bitmap of D passes.

    Of binomial counts; lengths of lists are counted. Pass by pass a spike takes an address, so that
    the rate is (1 - header / length) / address, whatever D is.
    """
    address, header = address_bits(length), bits_to_tell(length + 1)
    if encoding == "address":
        return (length - header) / (length * address)
    each = address + bits_to_tell(levels)
    active = (levels * length - header) / (length * each)
    return 1.0 if active >= 1 else 1 - (1 - active) ** (1 / levels)
