"""The steps of a traced model carried out on symbols: operations of the integer graph come out.

A symbol is an operation's result with the real number that it stands for, integer * scale + bias
per channel. Spike counts stay integers as long as they can: pools, sums, products and means of
them are exact.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import numpy as np

from qsdformer.errors import UserError
from qsdformer.graph.check import Shape, result_shape
from qsdformer.graph.formats import (
    LOGIT_FRACTION,
    MAX_FACTOR,
    MULTIPLIER_BITS,
    REAL_INPUT_BITS,
    constant,
    fixed_point,
    real,
)
from qsdformer.graph.integer import Output
from qsdformer.graph.ops import (
    FACTOR_BITS,
    IELIF,
    INT32_MAX,
    LIF,
    Add,
    Array,
    Attention,
    Concat,
    Conv,
    ConvTranspose,
    CountAdd,
    Frames,
    MaxPool,
    Multiply,
    Normalise,
    Op,
    Preprocessing,
    Repeat,
    Rescale,
    Reshape,
    SpatialMean,
    SpatialSum,
    TimeSum,
    Upsample,
)
from qsdformer.graph.spikes import spike_values
from qsdformer.graph.trace import Step, Traced
from qsdformer.nn.neurons import IELIF as IELIFModule
from qsdformer.nn.neurons import LIF as LIFModule

ONES_BITS = 2  # the narrowest codes that hold a 1


@dataclass(frozen=True, kw_only=True, eq=False)
class Symbol:
    """A value of the graph: real number = integer * scale + bias, per channel (C,) float64."""

    op: str
    shape: Shape
    scale: Array
    bias: Array

    @property
    def is_uniform(self) -> bool:
        """Whether all channels share one scale and have no bias, as inputs of sums must."""
        return bool((self.scale == self.scale[0]).all() and not self.bias.any())


@dataclass(frozen=True, kw_only=True, eq=False)
class Image:
    """The image before its first layer; `time` is the operation that gives it a time axis."""

    time: type[Repeat] | type[Frames] | None = None
    name: str = ""
    steps: int = 1


Value = Symbol | Image


@dataclass
class Lowering:
    """Appends operations and hands symbols on."""

    traced: Traced
    pre: Preprocessing
    bits: int
    fraction: int
    ops: list[Op] = field(default_factory=list)
    shapes: dict[str, Shape] = field(default_factory=dict)

    @property
    def limit(self) -> int:
        """The largest membrane potential."""
        return 2 ** (self.bits - 1) - 1

    def run(self, is_classifier: bool) -> tuple[Output, ...]:
        """Lower all steps; the outputs besides the logits."""
        self.spiking = spike_values(self.traced)
        self.readers = {x: step for step in self.traced.steps for x in step.inputs}
        image, first = Image(), self.traced.image
        if first.axes.startswith("t"):
            image = Image(time=Frames, name="frames", steps=first.time)
        found = self.traced.walk(image, lambda step, *x: getattr(self, f"_{step.kind}")(step, *x))
        if is_classifier:
            (logits,) = found.values()
            self._rescaled(self._known(logits), LOGIT_FRACTION, INT32_MAX)
            return ()
        outputs = []
        for name, value in found.items():
            step = self.traced.outputs[name]
            x = self._known(value)
            x = x if step in self.spiking else self._membrane(x)
            outputs.append(Output(name=name, op=x.op, scale=(float(x.scale[0]),)))
        return tuple(outputs)

    def _emit(self, op: Op, scale: Array | float, bias: Array | None = None) -> Symbol:
        shape = result_shape(op, [self.shapes[name] for name in op.inputs], self.pre)
        if op.name in self.shapes:
            op = dataclasses.replace(op, name=f"{op.name}#{len(self.ops)}")
        self.ops.append(op)
        self.shapes[op.name] = shape
        scales = np.broadcast_to(np.asarray(scale, np.float64), shape.channels)
        biases = np.zeros(shape.channels) if bias is None else bias
        return Symbol(op=op.name, shape=shape, scale=scales, bias=biases)

    # Layers.

    def _conv(self, step: Step, x: Value) -> Symbol:
        layer: Any = step.module
        return self._layer(step, x, layer.codes().cpu().numpy(), layer.groups)

    def _linear(self, step: Step, x: Value) -> Symbol:
        layer: Any = step.module
        return self._layer(step, x, layer.codes().cpu().numpy()[:, :, None, None], 1)

    def _layer(self, step: Step, x: Value, codes: Array, groups: int) -> Symbol:
        layer: Any = step.module
        size, stride, padding = (step.options.get(k, v) for k, v in CONV_DEFAULTS.items())
        bias = np.zeros(len(codes)) if layer.bias is None else real(layer.bias)
        unit, depthwise = real(layer.step_size), groups == len(codes) and codes.shape[1] == 1
        x = self._pixels(x, codes) if isinstance(x, Image) else x
        if x.bias.any() and size == 1 and groups == 1 and padding == 0:
            # A constant passes a 1x1 convolution as a constant; elsewhere borders would differ.
            bias = bias + unit * (codes[:, :, 0, 0] @ x.bias)
            x = _without_bias(x)
        if x.bias.any() or (not x.is_uniform and not depthwise):
            x = self._real_input(x, codes)

        def made(x: Symbol) -> Conv:
            return Conv(
                name=step.name,
                inputs=(x.op,),
                codes=codes,
                bits=layer.bits,
                stride=stride,
                padding=padding,
                groups=groups,
            )

        if not self._fits(made(x)):
            x = self._real_input(x, codes)
        return self._emit(made(x), x.scale * unit if depthwise else x.scale[0] * unit, bias)

    def _conv_transpose(self, step: Step, x: Value) -> Symbol:
        layer: Any = step.module
        codes = layer.codes().cpu().numpy()
        x = self._known(x)

        def made(x: Symbol) -> ConvTranspose:
            return ConvTranspose(name=step.name, inputs=(x.op,), codes=codes, bits=layer.bits)

        if not x.is_uniform or not self._fits(made(x)):
            x = self._real_input(x, codes.swapaxes(0, 1))
        bias = None if layer.bias is None else real(layer.bias)
        return self._emit(made(x), x.scale[0] * real(layer.step_size), bias)

    def _border_conv(self, step: Step, x: Value) -> Symbol:
        # The border value is constant: it adds a constant to the depthwise sums, so that these
        # can be taken over the raw integers, with zeros for padding.
        layer: Any = step.module
        scale, border = folded(step.options["norm"])
        y = self._conv(step, _without_bias(_scaled(self._known(x), scale)))
        share = border * real(layer.effective_weight()).sum(axis=(1, 2, 3))
        return dataclasses.replace(y, bias=y.bias + share)

    def _norm(self, step: Step, x: Value) -> Symbol:
        scale, shift = folded(step.module)
        y = _scaled(self._known(x), scale)
        return dataclasses.replace(y, bias=y.bias + shift)

    def _scale(self, step: Step, x: Value) -> Symbol:
        return _scaled(self._known(x), constant(step, "factor"))

    def _shift(self, step: Step, x: Value) -> Symbol:
        y = self._known(x)
        return dataclasses.replace(y, bias=y.bias + constant(step, "offset"))

    def _neuron(self, step: Step, x: Value) -> Symbol:
        u, layer = self._membrane(self._known(x)), step.module
        one, still = 1 << self.fraction, False
        if isinstance(layer, LIFModule):
            still = layer.time_steps != step.time
            op: Op = LIF(
                name=step.name,
                inputs=(u.op,),
                steps=layer.time_steps,
                limit=self.limit,
                threshold=_nearest(layer.threshold * one),
                leak=_nearest(2**FACTOR_BITS / layer.tau),
            )
        elif isinstance(layer, IELIFModule):
            # Without time steps of its own it forgets: nothing carries over.
            decay = layer.decay if layer.time_steps == step.time else 0.0
            op = IELIF(
                name=step.name,
                inputs=(u.op,),
                steps=step.time,
                limit=self.limit,
                thresholds=thresholds(layer, one),
                resets=resets(layer, one),
                decay=_nearest(2**FACTOR_BITS * decay),
            )
        else:
            raise UserError(
                f"{step.name}: {type(layer).__name__} has no integer form: use IELIF or LIF"
            )
        if still:
            raise UserError(
                f"{step.name}: a LIF neuron of 1 time step among {step.time} has no integer form: "
                "build it with the network's time_steps"
            )
        return self._emit(op, layer.step)

    def _attention(self, step: Step, q: Value, k: Value, v: Value) -> Symbol:
        layer: Any = step.module
        known = [self._known(x) for x in (q, k, v)]
        for letter, x in zip("qkv", step.inputs, strict=True):
            if x not in self.spiking:
                raise UserError(f"{step.name}: its {letter} is no spike count: put a neuron before")
        op = Attention(name=step.name, inputs=tuple(x.op for x in known), heads=layer.heads)
        units = [float(x.scale[0]) for x in known]
        return self._emit(op, math.prod(units) * layer.factor(step.inputs[0].tokens))

    # Sums, products and shapes.

    def _add(self, step: Step, x: Value, y: Value) -> Symbol:
        a, b = self._known(x), self._known(y)
        if step in self.spiking:
            return self._emit(CountAdd(name=step.name, inputs=(a.op, b.op)), a.scale)
        a, b = self._membrane(a), self._membrane(b)
        return self._emit(Add(name=step.name, inputs=(a.op, b.op), limit=self.limit), a.scale)

    def _multiply(self, step: Step, x: Value, y: Value) -> Symbol:
        a, b = self._known(x), self._known(y)
        if a.bias.any() or b.bias.any() or any(s not in self.spiking for s in step.inputs):
            raise UserError(f"{step.name}: only spike counts can be multiplied with each other")
        return self._emit(Multiply(name=step.name, inputs=(a.op, b.op)), a.scale * b.scale)

    def _concat(self, step: Step, *values: Value) -> Symbol:
        known = [self._known(x) for x in values]
        counts = [x in self.spiking for x in step.inputs]
        if all(counts):
            units = [float(x.scale[0]) for x in known]
            if len(set(units)) > 1:
                raise UserError(
                    f"{step.name}: spikes worth {', '.join(f'{u:g}' for u in units)} are "
                    "concatenated: give their neurons the same levels and gain"
                )
        else:
            known = [self._membrane(x) for x in known]
        op = Concat(name=step.name, inputs=tuple(x.op for x in known))
        return self._emit(op, known[0].scale[0])

    def _repeat(self, step: Step, x: Value) -> Value:
        if isinstance(x, Image):
            return Image(time=Repeat, name=step.name, steps=step.time)
        u = x if step.inputs[0] in self.spiking else self._membrane(x)
        if step.time == step.inputs[0].time:
            return u
        return self._emit(Repeat(name=step.name, inputs=(u.op,), steps=step.time), u.scale)

    def _time_sum(self, step: Step, x: Value) -> Symbol:
        y, steps = self._known(x), step.inputs[0].time
        if steps == 1:
            return y
        reader = self.readers.get(step)
        named = reader is not None and reader.kind == "linear"
        y = self._with_room(y, steps)
        op = TimeSum(
            name=f"{reader.name}.time" if named and reader is not None else step.name,
            inputs=(y.op,),
            steps=steps,
        )
        if step.options["mean"]:
            return self._emit(op, y.scale / steps, y.bias)
        return self._emit(op, y.scale, y.bias * steps)

    def _spatial_sum(self, step: Step, x: Value) -> Symbol:
        y, places = self._known(x), step.inputs[0].tokens
        factor = 1 / places if step.options["mean"] else 1.0
        if step.inputs[0] in self.spiking:
            return self._emit(SpatialSum(name=step.name, inputs=(y.op,)), y.scale * factor)
        u = self._membrane(y)
        return self._emit(SpatialMean(name=step.name, inputs=(u.op,)), u.scale * factor * places)

    def _max_pool(self, step: Step, x: Value) -> Symbol:
        y = self._known(x)
        y = y if step.inputs[0] in self.spiking else self._membrane(y)
        op = MaxPool(name=step.name, inputs=(y.op,), **step.options)
        return self._emit(op, y.scale)

    def _plane_pool(self, step: Step, x: Value) -> Symbol:
        """A pool over channels and tokens: the planes are seen as maps, and the result as before."""
        y, heads = self._known(x), step.options["heads"]
        y = y if step.inputs[0] in self.spiking else self._membrane(y)
        (channels, height, width), name = step.size, step.name
        planes = {"channels": heads, "height": channels // heads, "width": height * width}
        before = self._emit(Reshape(name=f"{name}.planes", inputs=(y.op,), **planes), y.scale[0])
        pool = MaxPool(name=f"{name}.pool", inputs=(before.op,), kernel=3, stride=1, padding=1)
        pooled = self._emit(pool, y.scale[0])
        after = {"channels": channels, "height": height, "width": width}
        return self._emit(Reshape(name=name, inputs=(pooled.op,), **after), y.scale)

    def _avg_pool(self, step: Step, x: Value) -> Symbol:
        """A depthwise convolution with weights of 1."""
        y, kernel = self._known(x), step.options["kernel"]
        y = y if step.inputs[0] in self.spiking else self._membrane(y)
        y = self._with_room(y, kernel**2)
        op = Conv(
            name=step.name,
            inputs=(y.op,),
            codes=np.ones((step.channels, 1, kernel, kernel), np.int8),
            bits=ONES_BITS,
            stride=step.options["stride"],
            padding=step.options["padding"],
            groups=step.channels,
        )
        return self._emit(op, y.scale / kernel**2)

    def _upsample(self, step: Step, x: Value) -> Symbol:
        y, mode = self._known(x), step.options["mode"]
        if mode == "nearest":
            return self._emit(Upsample(name=step.name, inputs=(y.op,), mode=mode), y.scale, y.bias)
        y = self._with_room(y, 16)
        op = Upsample(name=step.name, inputs=(y.op,), mode=mode)
        return self._emit(op, y.scale / 16, y.bias)

    def _view(self, step: Step, x: Value) -> Value:
        places = step.inputs[0].tokens
        if not step.options.get("flattened") or places == 1:
            return x
        y = self._known(x)
        op = Reshape(name=step.name, inputs=(y.op,), channels=step.channels, height=1, width=1)
        return self._emit(op, y.scale.repeat(places), y.bias.repeat(places))

    # Formats.

    def _known(self, x: Value) -> Symbol:
        return self._pixels(x, None) if isinstance(x, Image) else x

    def _pixels(self, x: Image, codes: Array | None) -> Symbol:
        """The image as fixed point: pixel/255 normalised, so that padding with 0 stays right."""
        pixels = np.arange(256) / 255
        values = np.stack(
            [(pixels - m) / s for m, s in zip(self.pre.mean, self.pre.std, strict=True)]
        )
        fraction = self.fraction
        if codes is not None:
            fraction = self._fraction_for(float(np.abs(values).max()), codes)
        limit = INT32_MAX if codes is not None else self.limit
        table = np.clip(np.rint(values * 2.0**fraction), -limit, limit).astype(np.int32)
        op = Normalise(name="normalise", inputs=(), table=table, fraction=fraction)
        y = self._emit(op, 2.0**-fraction)
        if x.time is None:
            return y
        return self._emit(x.time(name=x.name, inputs=(y.op,), steps=x.steps), y.scale)

    def _real_input(self, x: Symbol, codes: Array) -> Symbol:
        largest = float((x.shape.bound * np.abs(x.scale) + np.abs(x.bias)).max())
        fraction = self._fraction_for(largest, codes)
        return self._rescaled(x, fraction, 2 ** (REAL_INPUT_BITS[self.bits] - 1) - 1)

    def _fraction_for(self, largest: float, codes: Array) -> int:
        """Fractional bits of a real input up to `largest`, so that its sums fit 32 bits."""
        reach = max(1, int(np.abs(codes.astype(np.int64)).sum(axis=(1, 2, 3)).max()))
        # Two units to spare: a rounded value can exceed its real bound.
        room = min(INT32_MAX // reach, 2 ** (REAL_INPUT_BITS[self.bits] - 1) - 1) - 2
        if room < 1:
            raise ValueError("the weights of a layer with real inputs leave no bits for these")
        return math.floor(math.log2(room / largest)) if largest > 0 else 0

    def _fits(self, op: Op) -> bool:
        """Whether the sums of `op` are sure to stay within 32 bits."""
        try:
            result_shape(op, [self.shapes[name] for name in op.inputs], self.pre)
        except ValueError:
            return False
        return True

    def _with_room(self, x: Symbol, times: int) -> Symbol:
        """`x` in fewer bits where `times` of its values could leave 32 of them."""
        if x.shape.bound.max() * times <= INT32_MAX:
            return x
        less = math.ceil(math.log2(times))
        return self._rescaled(x, self.fraction - less, INT32_MAX // times)

    def _membrane(self, x: Symbol) -> Symbol:
        """`x` as a membrane potential; itself if it is one already."""
        if x.is_uniform and x.scale[0] == 2.0**-self.fraction:
            return x
        return self._rescaled(x, self.fraction, self.limit)

    def _rescaled(self, x: Symbol, fraction: int, limit: int) -> Symbol:
        multiplier, shift = fixed_point(x.scale * 2.0**fraction, MULTIPLIER_BITS[self.bits])
        bias = np.clip(np.rint(x.bias * 2.0**fraction), -MAX_FACTOR, MAX_FACTOR).astype(np.int64)
        op = Rescale(
            name=f"#{len(self.ops)}",  # its place: no module of the model is like it
            inputs=(x.op,),
            multiplier=multiplier,
            shift=shift,
            bias=bias,
            limit=limit,
            fraction=fraction,
        )
        return self._emit(op, 2.0**-fraction)


CONV_DEFAULTS = {"kernel": 1, "stride": 1, "padding": 0}


def thresholds(neuron: IELIFModule, one: int) -> tuple[int, ...]:
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


def resets(neuron: IELIFModule, one: int) -> tuple[int, ...]:
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


def _scaled(x: Symbol, scale: Array | float) -> Symbol:
    return dataclasses.replace(x, scale=x.scale * scale, bias=x.bias * scale)


def _without_bias(x: Symbol) -> Symbol:
    return dataclasses.replace(x, bias=np.zeros_like(x.bias))


def _nearest(value: float) -> int:
    return math.floor(value + 0.5)
