"""From a trained float model to the integer graph.

Every value is integer * scale + bias per channel. Convolutions, norms and layer scales only change
scale and bias, in float64; where a neuron or a shortcut needs actual numbers, one `Rescale` is
made of them. The result depends on nothing but the model and the options; `formats.py` has the
number formats.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, cast

import numpy as np
from torch import nn

from qsdformer.errors import UserError
from qsdformer.graph.check import Shape, check_graph, result_shape
from qsdformer.graph.formats import (
    LOGIT_FRACTION,
    MAX_FACTOR,
    MULTIPLIER_BITS,
    REAL_INPUT_BITS,
    fixed_point,
    membrane_fraction_of,
    real,
)
from qsdformer.graph.integer import IntegerGraph
from qsdformer.graph.ops import (
    FACTOR_BITS,
    IELIF,
    INT32_MAX,
    LIF,
    Add,
    Array,
    Attention,
    Conv,
    Normalise,
    Op,
    Preprocessing,
    Repeat,
    Rescale,
    SpatialMean,
    TimeSum,
)
from qsdformer.graph.walk import walk
from qsdformer.models.metaspikeformer import MetaSpikeFormer
from qsdformer.nn.attention import Attention as AttentionModule
from qsdformer.nn.attention import LayerScale
from qsdformer.nn.neurons import IELIF as IELIFModule
from qsdformer.nn.neurons import LIF as LIFModule
from qsdformer.nn.neurons import SpikingNeuron
from qsdformer.nn.quantizers import QuantConv2d, QuantLinear
from qsdformer.runtimes.binary import attention_scale, check_spiking

if TYPE_CHECKING:
    from qsdformer.data.base import DataInfo


def lower(
    model: MetaSpikeFormer,
    info: DataInfo | None = None,
    *,
    membrane_bits: int = 32,
    membrane_fraction: int | None = None,
) -> IntegerGraph:
    """The integer graph of a trained spiking model in eval mode.

    `info` describes the images; models read by `qsdformer.load` bring it. `membrane_fraction`
    replaces the fractional bits of membrane potentials. Raises `UserError` for a model that
    cannot be lowered, or whose sums could leave 32 bits.
    """
    if membrane_bits not in MULTIPLIER_BITS:
        raise ValueError(f"membrane_bits={membrane_bits}: must be 16 or 32")
    check_spiking(model)
    info = info if info is not None else getattr(model, "data_info", None)
    if info is None:
        raise UserError("the model does not say what images it takes: give lower() a DataInfo")
    if info.channels != model.config.in_channels:
        raise UserError(
            f"images have {info.channels} channels, but the model takes {model.config.in_channels}"
        )
    if len(info.class_names) != model.config.num_classes:
        raise UserError(
            f"{len(info.class_names)} class names for a model of {model.config.num_classes} classes"
        )
    fraction = membrane_fraction
    if fraction is None:
        fraction = membrane_fraction_of(model, membrane_bits)
    pre = Preprocessing(
        image_size=info.image_size,
        channels=info.channels,
        mean=tuple(info.mean),
        std=tuple(info.std),
        interpolation=info.interpolation,
        crop_pct=info.crop_pct,
    )
    lowering = _Lowering(pre=pre, bits=membrane_bits, fraction=fraction)
    try:
        walk(model, lowering, None)
        graph = IntegerGraph(
            ops=tuple(lowering.ops),
            preprocessing=pre,
            class_names=tuple(info.class_names),
            config=model.config.to_dict(),
            membrane_bits=membrane_bits,
            membrane_fraction=fraction,
        )
        check_graph(graph)
    except ValueError as error:
        raise UserError(f"cannot lower the model to integers: {error}") from error
    return graph


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


Value = Symbol | None  # None is the image, before its first convolution


@dataclass
class _Lowering:
    """The backend of the walk; it appends operations and hands symbols on."""

    pre: Preprocessing
    bits: int
    fraction: int
    ops: list[Op] = field(default_factory=list)
    shapes: dict[str, Shape] = field(default_factory=dict)

    @property
    def limit(self) -> int:
        return 2 ** (self.bits - 1) - 1

    def emit(self, op: Op, scale: Array | float, bias: Array | None = None) -> Symbol:
        shape = result_shape(op, [self.shapes[name] for name in op.inputs], self.pre)
        self.ops.append(op)
        self.shapes[op.name] = shape
        scales = np.broadcast_to(np.asarray(scale, np.float64), shape.channels)
        biases = np.zeros(shape.channels) if bias is None else bias
        return Symbol(op=op.name, shape=shape, scale=scales, bias=biases)

    def conv(self, name: str, layer: QuantConv2d, x: Value) -> Symbol:
        codes = layer.codes().numpy()
        groups, step = layer.groups, real(layer.step_size)
        bias = np.zeros(len(codes)) if layer.bias is None else real(layer.bias)
        depthwise = groups == codes.shape[0] and codes.shape[1] == 1
        if x is None:
            x = self._normalise(codes)
        if x.bias.any():
            # A constant passes a 1x1 convolution as a constant; elsewhere borders would differ.
            assert codes.shape[-1] == 1
            assert groups == 1
            bias = bias + step * (codes[:, :, 0, 0] @ x.bias)
            x = _without_bias(x)
        if not x.is_uniform and not depthwise:
            x = self._real_input(x, codes)
        assert layer.bits is not None
        op = Conv(
            name=name,
            inputs=(x.op,),
            codes=codes,
            bits=layer.bits,
            stride=layer.stride[0],
            padding=int(layer.padding[0]),
            groups=groups,
        )
        return self.emit(op, x.scale * step if depthwise else x.scale[0] * step, bias)

    def bordered(
        self, name: str, norm: nn.Module, name2: str, conv: QuantConv2d, x: Value
    ) -> Symbol:
        # The border value is constant: it adds a constant to the depthwise sums, so that these
        # can be taken over the raw integers, with zeros for padding.
        scale, border = _folded(cast(nn.BatchNorm2d, norm))
        y = self.conv(name2, conv, _without_bias(_scaled(_known(x), scale)))
        share = border * real(conv.effective_weight()).sum(axis=(1, 2, 3))
        return Symbol(op=y.op, shape=y.shape, scale=y.scale, bias=y.bias + share)

    def norm(self, name: str, layer: nn.BatchNorm2d, x: Value) -> Symbol:
        scale, shift = _folded(layer)
        y = _scaled(_known(x), scale)
        return Symbol(op=y.op, shape=y.shape, scale=y.scale, bias=y.bias + shift)

    def layer_scale(self, name: str, layer: LayerScale, x: Value) -> Symbol:
        return _scaled(_known(x), real(layer.scale))

    def neuron(self, name: str, layer: SpikingNeuron, x: Value) -> Symbol:
        u = self._membrane(_known(x))
        one = 1 << self.fraction
        if isinstance(layer, LIFModule):
            op: Op = LIF(
                name=name,
                inputs=(u.op,),
                steps=layer.time_steps,
                limit=self.limit,
                threshold=_nearest(layer.threshold * one),
                leak=_nearest(2**FACTOR_BITS / layer.tau),
            )
        else:
            assert isinstance(layer, IELIFModule)
            d = layer.levels
            # floor(D*u + 1/2) >= k where u >= (k - 1/2) / D; on integers the ceiling is exact.
            op = IELIF(
                name=name,
                inputs=(u.op,),
                steps=layer.time_steps,
                limit=self.limit,
                thresholds=tuple(-((1 - 2 * k) * one // (2 * d)) for k in range(1, d + 1)),
                resets=tuple((2 * k * one + d) // (2 * d) for k in range(d + 1)),
                decay=_nearest(2**FACTOR_BITS * layer.decay),
            )
        return self.emit(op, layer.step)

    def attention(self, name: str, layer: AttentionModule, q: Value, k: Value, v: Value) -> Symbol:
        known = [_known(x) for x in (q, k, v)]
        op = Attention(name=name, inputs=tuple(x.op for x in known), heads=layer.heads)
        tokens = known[0].shape.height * known[0].shape.width
        steps = [float(x.scale[0]) for x in known]
        return self.emit(op, math.prod(steps) * attention_scale(layer, tokens))

    def add(self, name: str, x: Value, y: Value) -> Symbol:
        a = self._membrane(_known(x))
        b = self._membrane(_known(y))
        return self.emit(Add(name=name, inputs=(a.op, b.op), limit=self.limit), a.scale)

    def repeat(self, name: str, steps: int, x: Value) -> Symbol:
        u = self._membrane(_known(x))
        if steps == 1:
            return u
        return self.emit(Repeat(name=name, inputs=(u.op,), steps=steps), u.scale)

    def spatial_mean(self, name: str, x: Value) -> Symbol:
        u = self._membrane(_known(x))
        return self.emit(SpatialMean(name=name, inputs=(u.op,)), u.scale)

    def head(self, name: str, layer: QuantLinear, steps: int, x: Value) -> Symbol:
        y = _known(x)
        if steps > 1:
            y = self.emit(
                TimeSum(name=f"{name}.time", inputs=(y.op,), steps=steps), y.scale / steps
            )
        codes = layer.codes().numpy()[:, :, None, None]
        assert layer.bits is not None
        op = Conv(
            name=name, inputs=(y.op,), codes=codes, bits=layer.bits, stride=1, padding=0, groups=1
        )
        bias = None if layer.bias is None else real(layer.bias)
        sums = self.emit(op, y.scale[0] * real(layer.step_size), bias)
        return self._rescaled(sums, LOGIT_FRACTION, INT32_MAX)

    def _normalise(self, codes: Array) -> Symbol:
        """The image as fixed point: pixel/255 normalised, so that padding with 0 stays right."""
        pixels = np.arange(256) / 255
        real = np.stack(
            [(pixels - m) / s for m, s in zip(self.pre.mean, self.pre.std, strict=True)]
        )
        fraction = self._fraction_for(float(np.abs(real).max()), codes)
        table = np.rint(real * 2.0**fraction).astype(np.int32)
        op = Normalise(name="normalise", inputs=(), table=table, fraction=fraction)
        return self.emit(op, 2.0**-fraction)

    def _real_input(self, x: Symbol, codes: Array) -> Symbol:
        largest = float((x.shape.bound * np.abs(x.scale)).max())
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
        return self.emit(op, 2.0**-fraction)


def _folded(norm: nn.BatchNorm2d) -> tuple[Array, Array]:
    """A batch norm in evaluation as scale and shift, (C,) float64."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    scale = real(norm.weight) / np.sqrt(real(norm.running_var) + norm.eps)
    return scale, real(norm.bias) - real(norm.running_mean) * scale


def _scaled(x: Symbol, scale: Array) -> Symbol:
    return Symbol(op=x.op, shape=x.shape, scale=x.scale * scale, bias=x.bias * scale)


def _without_bias(x: Symbol) -> Symbol:
    return Symbol(op=x.op, shape=x.shape, scale=x.scale, bias=np.zeros_like(x.bias))


def _known(x: Value) -> Symbol:
    assert x is not None
    return x


def _nearest(value: float) -> int:
    return math.floor(value + 0.5)
