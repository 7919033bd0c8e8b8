"""The steps of a traced model carried out on symbols: operations of the integer graph come out.

Spike counts stay integers as long as they can: pools, sums, products and means of
them are exact.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from qsdformer.errors import UserError
from qsdformer.graph.emission import Emitter, Image, Symbol, Value
from qsdformer.graph.formats import LOGIT_FRACTION, constant, folded, real, resets, thresholds
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
    Repeat,
    Reshape,
    SpatialMean,
    SpatialSum,
    TimeSum,
    Upsample,
)
from qsdformer.graph.spikes import spike_values
from qsdformer.graph.steps import Step, Traced
from qsdformer.nn.neurons import IELIF as IELIFModule
from qsdformer.nn.neurons import LIF as LIFModule

ONES_BITS = 2  # the narrowest codes that hold a 1


@dataclass(kw_only=True)
class Lowering(Emitter):
    """Makes operations of steps."""

    traced: Traced

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
            self.rescaled(self.known(logits), LOGIT_FRACTION, INT32_MAX)
            return ()
        outputs = []
        for name, value in found.items():
            step = self.traced.outputs[name]
            x = self.known(value)
            x = x if step in self.spiking else self.output(x)
            outputs.append(Output(name=name, op=x.op, scale=(float(x.scale[0]),)))
        return tuple(outputs)

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
        x = self.pixels(x, codes) if isinstance(x, Image) else x
        if x.bias.any() and size == 1 and groups == 1 and padding == 0:
            # A constant passes a 1x1 convolution as a constant; elsewhere borders would differ.
            bias = bias + unit * (codes[:, :, 0, 0] @ x.bias)
            x = _without_bias(x)
        if x.bias.any() or (not x.is_uniform and not depthwise):
            x = self.real_input(x, codes)

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

        if not self.fits(made(x)):
            x = self.real_input(x, codes)
        return self.emit(made(x), x.scale * unit if depthwise else x.scale[0] * unit, bias)

    def _conv_transpose(self, step: Step, x: Value) -> Symbol:
        layer: Any = step.module
        codes = layer.codes().cpu().numpy()
        x = self.known(x)

        def made(x: Symbol) -> ConvTranspose:
            return ConvTranspose(name=step.name, inputs=(x.op,), codes=codes, bits=layer.bits)

        if not x.is_uniform or not self.fits(made(x)):
            x = self.real_input(x, codes.swapaxes(0, 1))
        bias = None if layer.bias is None else real(layer.bias)
        return self.emit(made(x), x.scale[0] * real(layer.step_size), bias)

    def _border_conv(self, step: Step, x: Value) -> Symbol:
        # The border value is constant: it adds a constant to the depthwise sums, so that these
        # can be taken over the raw integers, with zeros for padding.
        layer: Any = step.module
        scale, border = folded(step.options["norm"])
        y = self.known(x)
        if y.bias.any():  # padding has none, so that it must be in the integers themselves
            y = self.real_input(y, layer.codes().cpu().numpy())
        y = self._conv(step, _scaled(y, scale))
        share = border * real(layer.effective_weight()).sum(axis=(1, 2, 3))
        return dataclasses.replace(y, bias=y.bias + share)

    def _norm(self, step: Step, x: Value) -> Symbol:
        scale, shift = folded(step.module)
        y = _scaled(self.known(x), scale)
        return dataclasses.replace(y, bias=y.bias + shift)

    def _scale(self, step: Step, x: Value) -> Symbol:
        return _scaled(self.known(x), constant(step, "factor"))

    def _shift(self, step: Step, x: Value) -> Symbol:
        y = self.known(x)
        return dataclasses.replace(y, bias=y.bias + constant(step, "offset"))

    def _neuron(self, step: Step, x: Value) -> Symbol:
        u, layer = self.membrane(self.known(x)), step.module
        one, still = 1 << self.fraction, False
        if isinstance(layer, LIFModule):
            still = layer.time_steps != step.time
            op: IELIF | LIF = LIF(
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
        firing = _firing(op)
        if firing > self.limit:
            raise UserError(
                f"{step.name}: its largest count takes a potential of {firing / one:g}, and those "
                f"of {self.bits} bits with {self.fraction} fractional ones end at "
                f"{self.limit / one:g}: take fewer fractional bits, or 32 bits"
            )
        return self.emit(op, layer.step)

    def _attention(self, step: Step, q: Value, k: Value, v: Value) -> Symbol:
        layer: Any = step.module
        known = [self.known(x) for x in (q, k, v)]
        for letter, x in zip("qkv", step.inputs, strict=True):
            if x not in self.spiking:
                raise UserError(f"{step.name}: its {letter} is no spike count: put a neuron before")
        op = Attention(name=step.name, inputs=tuple(x.op for x in known), heads=layer.heads)
        units = [float(x.scale[0]) for x in known]
        return self.emit(op, math.prod(units) * layer.factor(step.inputs[0].tokens))

    # Sums, products and shapes.

    def _add(self, step: Step, x: Value, y: Value) -> Symbol:
        a, b = self.known(x), self.known(y)
        if step in self.spiking:
            return self.emit(CountAdd(name=step.name, inputs=(a.op, b.op)), a.scale)
        a, b = self.membrane(a), self.membrane(b)
        return self.emit(Add(name=step.name, inputs=(a.op, b.op), limit=self.limit), a.scale)

    def _multiply(self, step: Step, x: Value, y: Value) -> Symbol:
        a, b = self.known(x), self.known(y)
        if a.bias.any() or b.bias.any() or any(s not in self.spiking for s in step.inputs):
            raise UserError(f"{step.name}: only spike counts can be multiplied with each other")
        return self.emit(Multiply(name=step.name, inputs=(a.op, b.op)), a.scale * b.scale)

    def _concat(self, step: Step, *values: Value) -> Symbol:
        known = [self.known(x) for x in values]
        counts = [x in self.spiking for x in step.inputs]
        if all(counts):
            units = [float(x.scale[0]) for x in known]
            if len(set(units)) > 1:
                raise UserError(
                    f"{step.name}: spikes worth {', '.join(f'{u:g}' for u in units)} are "
                    "concatenated: give their neurons the same levels and gain, and their maps the "
                    "same size where means of them are taken"
                )
        else:
            known = [self.membrane(x) for x in known]
        op = Concat(name=step.name, inputs=tuple(x.op for x in known))
        return self.emit(op, known[0].scale[0])

    def _repeat(self, step: Step, x: Value) -> Value:
        if isinstance(x, Image):
            return Image(time=Repeat, name=step.name, steps=step.time)
        u = x if step.inputs[0] in self.spiking else self.membrane(x)
        if step.time == step.inputs[0].time:
            return u
        return self.emit(Repeat(name=step.name, inputs=(u.op,), steps=step.time), u.scale)

    def _time_sum(self, step: Step, x: Value) -> Symbol:
        y, steps = self.known(x), step.inputs[0].time
        if steps == 1:
            return y
        reader = self.readers.get(step)
        named = reader is not None and reader.kind == "linear"
        y = self.with_room(y, steps)
        op = TimeSum(
            name=f"{reader.name}.time" if named and reader is not None else step.name,
            inputs=(y.op,),
            steps=steps,
        )
        if step.options["mean"]:
            return self.emit(op, y.scale / steps, y.bias)
        return self.emit(op, y.scale, y.bias * steps)

    def _spatial_sum(self, step: Step, x: Value) -> Symbol:
        y, places = self.known(x), step.inputs[0].tokens
        factor = 1 / places if step.options["mean"] else 1.0
        if step.inputs[0] in self.spiking:
            return self.emit(SpatialSum(name=step.name, inputs=(y.op,)), y.scale * factor)
        u = self.membrane(y)
        return self.emit(SpatialMean(name=step.name, inputs=(u.op,)), u.scale * factor * places)

    def _max_pool(self, step: Step, x: Value) -> Symbol:
        y = self.known(x)
        y = y if step.inputs[0] in self.spiking else self.membrane(y)
        op = MaxPool(name=step.name, inputs=(y.op,), **step.options)
        return self.emit(op, y.scale)

    def _plane_pool(self, step: Step, x: Value) -> Symbol:
        """A pool over channels and tokens: planes are seen as maps, and the result as before."""
        y, heads = self.known(x), step.options["heads"]
        y = y if step.inputs[0] in self.spiking else self.membrane(y)
        (channels, height, width), name = step.size, step.name
        planes = {"channels": heads, "height": channels // heads, "width": height * width}
        before = self.emit(Reshape(name=f"{name}.planes", inputs=(y.op,), **planes), y.scale[0])
        pool = MaxPool(name=f"{name}.pool", inputs=(before.op,), kernel=3, stride=1, padding=1)
        pooled = self.emit(pool, y.scale[0])
        after = {"channels": channels, "height": height, "width": width}
        return self.emit(Reshape(name=name, inputs=(pooled.op,), **after), y.scale)

    def _avg_pool(self, step: Step, x: Value) -> Symbol:
        """A depthwise convolution with weights of 1."""
        y, kernel = self.known(x), step.options["kernel"]
        y = y if step.inputs[0] in self.spiking else self.membrane(y)
        y = self.with_room(y, kernel**2)
        op = Conv(
            name=step.name,
            inputs=(y.op,),
            codes=np.ones((step.channels, 1, kernel, kernel), np.int8),
            bits=ONES_BITS,
            stride=step.options["stride"],
            padding=step.options["padding"],
            groups=step.channels,
        )
        return self.emit(op, y.scale / kernel**2)

    def _upsample(self, step: Step, x: Value) -> Symbol:
        y, mode = self.known(x), step.options["mode"]
        if mode == "nearest":
            return self.emit(Upsample(name=step.name, inputs=(y.op,), mode=mode), y.scale, y.bias)
        y = self.with_room(y, 16)
        op = Upsample(name=step.name, inputs=(y.op,), mode=mode)
        return self.emit(op, y.scale / 16, y.bias)

    def _view(self, step: Step, x: Value) -> Value:
        places = step.inputs[0].tokens
        if not step.options.get("flattened") or places == 1:
            return x
        y = self.known(x)
        op = Reshape(name=step.name, inputs=(y.op,), channels=step.channels, height=1, width=1)
        return self.emit(op, y.scale.repeat(places), y.bias.repeat(places))


CONV_DEFAULTS = {"kernel": 1, "stride": 1, "padding": 0}


def _scaled(x: Symbol, scale: Array | float) -> Symbol:
    return dataclasses.replace(x, scale=x.scale * scale, bias=x.bias * scale)


def _without_bias(x: Symbol) -> Symbol:
    return dataclasses.replace(x, bias=np.zeros_like(x.bias))


def _firing(neuron: IELIF | LIF) -> int:
    """The least potential at which a neuron at rest emits its largest count at once."""
    if isinstance(neuron, IELIF):
        return neuron.thresholds[-1]
    half = 1 << (FACTOR_BITS - 1)
    return -((half - (neuron.threshold << FACTOR_BITS)) // neuron.leak)


def _nearest(value: float) -> int:
    return math.floor(value + 0.5)
