"""An integer graph's operations carried out by the units of a design, one image at a time.

Values are what the units make: spikes as lists, everything else as arrays (C, B, H, W) with B the
time steps. Of the reference executor only the arithmetic of units that work on plain values is
taken: factors, thresholds, shortcuts, maps, and the products of the dense array.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from qsdformer.accelerator.design import Design
from qsdformer.accelerator.encoding import (
    Layout,
    Spikes,
    bits_to_tell,
    encode,
    list_bits,
    stored_bits,
)
from qsdformer.accelerator.signals import VIEWS, Signals, is_linear
from qsdformer.accelerator.units import attention, pool, product
from qsdformer.accelerator.units.convolution import (
    Window,
    convolution_sums,
    convolution_work,
    window_of,
)
from qsdformer.accelerator.units.dense import Products, dense_work
from qsdformer.accelerator.units.encoder import encoder_work
from qsdformer.accelerator.units.linear import gather_work, linear_sums, linear_work
from qsdformer.accelerator.units.vector import vector_work
from qsdformer.accelerator.units.work import Work
from qsdformer.analysis.energy import add_energy, mult_energy
from qsdformer.errors import UserError
from qsdformer.graph.formats import MULTIPLIER_BITS
from qsdformer.graph.ops import (
    Add,
    Array,
    Attention,
    Conv,
    ConvTranspose,
    MaxPool,
    Multiply,
    Neuron,
    Normalise,
    Op,
    Repeat,
    Rescale,
    SpatialSum,
)
from qsdformer.graph.reference import EXECUTE

PIXEL_BITS = 8
WHAT = {
    "array": "convolutions of real values",
    "linear": "1x1 convolutions of spikes",
    "convolution": "convolutions of spikes",
    "pool": "max pools of spikes",
    "mask_add": "products of spikes",
    "attention": "attention by q (k^T v)",
    "residual": "shortcuts",
    "maps": "operations on maps",
}
Done = tuple[Any, list[Work]]


class Machine:
    """The units of a design, with the values of one image that they have made so far.

    An image of `frames` has one for each time step, and is not repeated.
    """

    def __init__(
        self, signals: Signals, design: Design, membrane_bits: int, *, frames: bool = False
    ) -> None:
        self.signals = signals
        self.design = design
        self.membrane_bits = membrane_bits
        self.frames = frames
        self.arrays: dict[str, Array] = {}
        self.lists: dict[str, dict[Layout, Spikes]] = {}

    def do(self, op: Op, pixels: Array) -> list[Work]:
        """Carry out `op`; what the units did. `pixels` are (C, B, H, W) uint8."""
        value, works = self._handler(op)(op, pixels)
        if op.name in self.signals.spikes:
            self.lists[op.name] = value
        else:
            self.arrays[op.name] = value
        return works

    def forget(self, name: str) -> None:
        """Drop a value that nobody reads any more."""
        self.arrays.pop(name, None)
        self.lists.pop(name, None)

    def value(self, name: str) -> Array:
        """A value as an array (C, B, H, W), spikes decoded."""
        if name in self.lists:
            return next(iter(self.lists[name].values())).decode()
        return self.arrays[name]

    def spikes(self, name: str, layout: Layout) -> Spikes:
        """The lists of a value in a layout that its encoder has written."""
        made = self.lists[name]
        if layout not in made:
            made[layout] = next(iter(made.values())).in_layout(layout)
        return made[layout]

    def any_spikes(self, name: str) -> Spikes:
        """The lists of a value in any layout."""
        return next(iter(self.lists[name].values()))

    def bits(self, name: str) -> int:
        """Bits of one number of a value that is no spikes."""
        op = self.signals.ops[name]
        if isinstance(op, Normalise):
            return PIXEL_BITS
        if isinstance(op, (Rescale, Add)):
            return int(op.limit).bit_length() + 1
        if isinstance(op, VIEWS):
            return self.bits(op.inputs[0])
        return self.signals.sum_bits(name)

    def stored_bits(self, name: str) -> dict[str, int]:
        """Bits of a value in memory, by layout of its lists."""
        if name in self.lists:
            wanted = self.signals.layouts(name)
            found = {at: s for at, s in self.lists[name].items() if at in wanted}
            if not found:  # it would be moved for nothing
                raise RuntimeError(f"{name}: its spikes are in no layout that is read")
            return {at: stored_bits(s, self.design.encoding) for at, s in found.items()}
        return {"": self.arrays[name].size * self.bits(name)}

    def longest_list(self, name: str) -> int:
        """Bits of the longest list of spikes."""
        lists = self.lists[name].values()
        return max(int(list_bits(s, self.design.encoding).max()) for s in lists)

    def _unit(self, name: str, op: Op) -> Any:
        unit = getattr(self.design.units, name)
        if unit is None:
            raise UserError(
                f"{op.name}: design {self.design.name} has no unit for {WHAT[name]} "
                f"(units.{name} is none)"
            )
        return unit

    def _handler(self, op: Op) -> Callable[[Any, Array], Done]:
        spikes = bool(op.inputs) and all(name in self.signals.spikes for name in op.inputs)
        sparse = spikes and self.design.kind == "sparse"
        if isinstance(op, (Conv, ConvTranspose)):
            if isinstance(op, ConvTranspose) and not sparse:
                return self._dense_transposed
            return self._sparse_conv if sparse else self._dense_conv
        if isinstance(op, Attention):
            return self._attention if sparse else self._dense_attention
        if isinstance(op, Multiply) and sparse:
            return self._multiply
        if isinstance(op, MaxPool) and sparse:
            return self._pool
        if isinstance(op, Neuron):
            return self._neuron
        if isinstance(op, Rescale):
            return self._rescale
        if isinstance(op, Add):
            return self._add
        return self._maps

    # Layers.

    def _sparse_conv(self, op: Conv | ConvTranspose, pixels: Array) -> Done:
        sum_bits = self.signals.sum_bits(op.name)
        if isinstance(op, Conv) and not is_linear(op):
            unit = self._unit("convolution", op)
            if unit.order == "gather" and op.groups == 1:
                spikes = self.spikes(op.inputs[0], "pixel")
                work = gather_work(op, sum_bits, spikes, unit, self.design)
                return convolution_sums(op, spikes), [_reading(work, spikes)]
            spikes = self.spikes(op.inputs[0], "channel")
            work = convolution_work(op, sum_bits, spikes, unit, self.design)
            return convolution_sums(op, spikes), [_reading(work, spikes)]
        unit = self._unit("linear", op)
        spikes = self.spikes(op.inputs[0], "pixel")
        if isinstance(op, Conv):
            spikes, codes = _strided(spikes, op.stride), op.codes[:, :, 0, 0]
        else:
            codes = op.codes.reshape(len(op.codes), -1).T
        work = linear_work(op.name, len(codes), op.bits, sum_bits, spikes, unit, self.design)
        sums = linear_sums(codes, spikes)
        _, batch, height, width = spikes.shape
        if isinstance(op, Conv):
            value = sums.reshape(batch, height, width, -1).transpose(3, 0, 1, 2)
        else:
            squares = sums.reshape(batch, height, width, -1, 2, 2).transpose(3, 0, 1, 4, 2, 5)
            value = squares.reshape(-1, batch, 2 * height, 2 * width)
        return np.ascontiguousarray(value, np.int32), [_reading(work, spikes)]

    def _dense_conv(self, op: Conv, pixels: Array) -> Done:
        x, name = self.value(op.inputs[0]), op.inputs[0]
        value = EXECUTE[Conv](op, x)
        depthwise = op.codes.shape[1] == 1 and op.groups == len(op.codes)
        products = self._products(
            op,
            pixels=value[0].size,
            fan_in=op.codes[0].size,
            outputs=len(op.codes) if depthwise else len(op.codes) // op.groups,
            times=1 if depthwise else op.groups,
            depthwise=depthwise,
        )
        window = window_of(op, *x.shape[2:])
        synaptic = self._synaptic(name, x, window, len(op.codes) // op.groups)
        return value, [dense_work(products, self._unit("array", op), synaptic=synaptic)]

    def _dense_transposed(self, op: ConvTranspose, pixels: Array) -> Done:
        x, name = self.value(op.inputs[0]), op.inputs[0]
        outputs = op.codes[0].size
        products = self._products(
            op, pixels=x[0].size, fan_in=len(op.codes), outputs=outputs, times=1
        )
        window = Window(kernel=1, stride=1, padding=0, height=x.shape[2], width=x.shape[3])
        synaptic = self._synaptic(name, x, window, outputs)
        work = dense_work(products, self._unit("array", op), synaptic=synaptic)
        return EXECUTE[ConvTranspose](op, x), [work]

    def _products(
        self, op: Conv | ConvTranspose, *, depthwise: bool = False, **sizes: int
    ) -> Products:
        name = op.inputs[0]
        x = self.value(name)
        return Products(
            **sizes,
            depthwise=depthwise,
            nonzero=int(np.count_nonzero(x)) / x.size,
            weight_bits=op.bits,
            input_bits=self._input_bits(name),
            sum_bits=self.signals.sum_bits(op.name),
            inputs=(x.size * self._input_bits(name),),
        )

    def _input_bits(self, name: str) -> int:
        if name in self.signals.spikes:
            return bits_to_tell(self.signals.levels(name) + 1)
        return self.bits(name)

    def _synaptic(self, name: str, x: Array, window: Window, outputs: int) -> int:
        if name not in self.signals.spikes:
            return 0
        reached = window.reached(np.arange(x[0, 0].size)).reshape(x.shape[2:])
        return int((x.sum(axis=(0, 1), dtype=np.int64) * reached).sum()) * outputs

    # Attention.

    def _attention(self, op: Attention, pixels: Array) -> Done:
        q, k, v = (self.spikes(name, "pixel") for name in op.inputs)
        bits, unit = self.signals.sum_bits(op.name), self._unit("attention", op)
        work = product.product_work(op.name, q, k, v, op.heads, bits, unit, self.design)
        return product.product_sums(q, k, v, op.heads), [_reading(work, q, k, v)]

    def _dense_attention(self, op: Attention, pixels: Array) -> Done:
        unit = self._unit("array", op)
        q, k, v = (self.value(name) for name in op.inputs)
        value = EXECUTE[Attention](op, q, k, v)
        d, d_v = q.shape[0] // op.heads, v.shape[0] // op.heads
        tokens, times = q.shape[2] * q.shape[3], op.heads * q.shape[1]
        bits = [self._input_bits(name) for name in op.inputs]
        sizes = [x.size * b for x, b in zip((q, k, v), bits, strict=True)]
        bound = tokens * self.signals.levels(op.inputs[1]) * self.signals.levels(op.inputs[2])
        table_bits = bits_to_tell(bound + 1)
        shared = {"outputs": d_v, "times": times}
        first = Products(
            pixels=d,
            fan_in=tokens,
            nonzero=int(np.count_nonzero(k)) / k.size,
            weight_bits=bits[2],
            input_bits=bits[1],
            sum_bits=table_bits,
            inputs=(sizes[1],),
            **shared,
        )
        second = Products(
            pixels=tokens,
            fan_in=d,
            nonzero=int(np.count_nonzero(q)) / q.size,
            weight_bits=table_bits,
            input_bits=bits[0],
            sum_bits=self.signals.sum_bits(op.name),
            inputs=(sizes[0],),
            **shared,
        )
        pairs, rows = 0, 0
        if all(name in self.signals.spikes for name in op.inputs):
            q_lists, k_lists, v_lists = (self.any_spikes(name) for name in op.inputs)
            pairs, rows = product.spike_additions(q_lists, k_lists, v_lists, op.heads)
        made = dense_work(first, unit, synaptic=pairs)
        used = dense_work(second, unit, synaptic=rows)
        # The second factor is v in the first product, and the table of k^T v in the other.
        table = times * d * d_v * table_bits
        made = dataclasses.replace(
            made, inputs=(0, made.inputs[0], made.weights), weights=0, writes=table
        )
        used = dataclasses.replace(
            used, inputs=(used.inputs[0], 0, 0), weights=0, reads=used.weights
        )
        return value, [made, used]

    def _multiply(self, op: Multiply, pixels: Array) -> Done:
        unit = self._unit("mask_add", op)
        if self.signals.masks(op):
            # The filter passes lists on as they are: their layout is what its readers want.
            q, mask = sorted(op.inputs, key=self.signals.tokens, reverse=True)
            mask_lists = self.spikes(mask, "channel")
            factors = mask_lists.decode()[:, :, 0, 0]
            made: dict[Layout, Spikes] = {}
            works = []
            for layout in self.signals.layouts(op.name):
                lists = self.spikes(q, layout)
                made[layout] = attention.masked(lists, factors, self.signals.levels(op.name))
                work = attention.mask_work(lists, mask_lists, unit, self.design)
                works.append(_for_inputs(_reading(work, lists, mask_lists), op, (q, mask)))
            return made, works
        a, b = (self.spikes(name, "channel") for name in op.inputs)
        both = attention.intersection(a, b)
        work = attention.merge_work(a, b, both, unit, self.design)
        return self._in_wanted_layouts(op, both), [_reading(work, a, b)]

    # Everything else.

    def _pool(self, op: MaxPool, pixels: Array) -> Done:
        spikes = self.spikes(op.inputs[0], "channel")
        made = pool.pooled(op, spikes)
        work = pool.pool_work(op, spikes, made, self._unit("pool", op), self.design)
        return self._in_wanted_layouts(op, made), [_reading(work, spikes)]

    def _in_wanted_layouts(self, op: Op, made: Spikes) -> dict[Layout, Spikes]:
        """What a unit made, as its readers want it: only such lists are written and read."""
        return {at: made.in_layout(at) for at in self.signals.layouts(op.name)}

    def _neuron(self, op: Neuron, pixels: Array) -> Done:
        counts = EXECUTE[type(op)](op, self.value(op.inputs[0]))
        layouts = self.signals.layouts(op.name)
        made: dict[Layout, Spikes] = {at: encode(counts, op.levels, at) for at in layouts}
        unit = self._unit("encoder", op)
        works = [
            encoder_work(op, spikes, self.membrane_bits, unit, self.design, first=i == 0)
            for i, spikes in enumerate(made.values())
        ]
        return made, works

    def _rescale(self, op: Rescale, pixels: Array) -> Done:
        x = self.value(op.inputs[0])
        bits = int(op.limit).bit_length() + 1
        energy = mult_energy((bits, MULTIPLIER_BITS[self.membrane_bits])) + add_energy(bits)
        work = vector_work("scale", x.size, energy, self._unit("scale", op))
        return EXECUTE[Rescale](op, x), [work]

    def _add(self, op: Add, pixels: Array) -> Done:
        a, b = (self.value(name) for name in op.inputs)
        energy = add_energy(int(op.limit).bit_length() + 1)
        work = vector_work("residual", a.size, energy, self._unit("residual", op))
        return EXECUTE[Add](op, a, b), [work]

    def _maps(self, op: Op, pixels: Array) -> Done:
        """Tables of pixels, means, sums and rearranged maps: a value that is read or made each."""
        x = [pixels] if isinstance(op, Normalise) else [self.value(name) for name in op.inputs]
        passes = self.frames and isinstance(op, Repeat)
        value = x[0] if passes else EXECUTE[type(op)](op, *x)
        made: Any = value
        if op.name in self.signals.spikes:
            levels = self.signals.levels(op.name)
            made = {at: encode(value, levels, at) for at in self.signals.layouts(op.name)}
        if isinstance(op, VIEWS) or self._summed_by_merge(op):
            return made, []
        values = max(value.size, *(a.size for a in x))
        if isinstance(op, MaxPool):
            values = x[0].size
        return made, [vector_work("maps", values, self._map_energy(op), self._unit("maps", op))]

    def _map_energy(self, op: Op) -> float:
        """pJ for each value: an addition, or a comparison, of the bits that the values have."""
        if isinstance(op, Normalise):
            return 0.0
        if isinstance(op, Multiply):
            a, b = (self._input_bits(name) for name in op.inputs)
            return mult_energy((a, b))
        is_spikes = op.name in self.signals.spikes
        energy = add_energy(self._input_bits(op.inputs[0]) if is_spikes else self.membrane_bits)
        return energy * op.kernel**2 / op.stride**2 if isinstance(op, MaxPool) else energy

    def _summed_by_merge(self, op: Op) -> bool:
        """Whether the mask-add unit has the sums in its accumulators already."""
        if not isinstance(op, SpatialSum) or self.design.kind == "dense":
            return False
        source = self.signals.ops[op.inputs[0]]
        return isinstance(source, Multiply) and not self.signals.masks(source)


def _strided(spikes: Spikes, stride: int) -> Spikes:
    """The lists (`pixel`) of the pixels that a 1x1 convolution of this stride sees."""
    if stride == 1:
        return spikes
    counts = np.ascontiguousarray(spikes.decode()[:, :, ::stride, ::stride])
    return encode(counts, spikes.levels, "pixel")


def _reading(work: Work, *lists: Spikes) -> Work:
    """`work` with the layouts of the lists that are its inputs."""
    return dataclasses.replace(work, layouts=tuple(s.layout for s in lists))


def _for_inputs(work: Work, op: Op, order: tuple[str, ...]) -> Work:
    """`work` with the bits and layouts that it read in the order of the operation's inputs."""
    at = [order.index(name) for name in op.inputs]
    return dataclasses.replace(
        work,
        inputs=tuple(work.inputs[i] for i in at),
        layouts=tuple(work.layouts[i] for i in at),
    )
