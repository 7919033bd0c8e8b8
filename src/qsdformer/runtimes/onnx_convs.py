"""Convolutions as ONNX nodes, on integer kernels wherever they read spike counts.

Runtimes find integer kernels with float32 output in different shapes: ONNX Runtime fuses
dequantised matrix products (`products`), OpenVINO dequantised convolutions.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from qsdformer.graph.ops import Array, Conv, ConvTranspose, Neuron, Rescale
from qsdformer.runtimes.onnx_neurons import rounds
from qsdformer.runtimes.onnx_nodes import FLOAT, Nodes, Value, conv_attributes, conv_shape
from qsdformer.runtimes.onnx_thresholds import (
    BYTE_PAIR,
    ThresholdConv,
    factor_and_bias,
    membrane_thresholds,
    threshold_conv,
)

# Codes of 8 bits leave no room to place every threshold between the right two sums; with many sums
# to a count that hardly matters. Where it would matter, the neuron gets real numbers instead.
MAX_ERROR = 0.05


@dataclass(frozen=True, kw_only=True)
class ConvNodes:
    """Makes real sums and, of a convolution with its norm and neuron, what is to be rounded."""

    nodes: Nodes
    quantised: bool
    products: bool

    def real(self, op: Conv, x: Value, factor: Array, bias: Array) -> Value:
        """factor * convolution + bias as real numbers."""
        flip = np.where(factor < 0, -1, 1)
        # A code of -128 has no opposite: such a channel keeps its negative scale.
        flip = np.where((op.codes == -128).any(axis=(1, 2, 3)), 1, flip)
        codes = (op.codes * flip.reshape(-1, 1, 1, 1)).astype(np.int8)
        scale = factor * flip / x.unit
        shape = conv_shape(op, x)
        integer = self.quantised and x.levels is not None and _safe(x.levels, codes)
        if integer and op.groups == 1 and self.products:
            name = self._product(op, x, codes, scale, shape)
            layout = "NHWC"
        elif integer and not self.products:
            name = self.nodes.add(
                "Conv",
                self._dequantised(self.nodes.to(x, "NCHW")),
                self._weights(codes, scale, axis=0),
                **conv_attributes(op),
            )
            layout = "NCHW"
        else:
            name, bias = self._float_conv(op, x, codes, scale, bias), 0 * bias
            layout = "NCHW"
        if bias.any():
            name = self.nodes.add("Add", name, self.nodes.per_channel(bias, layout))
        return Value(name=name, layout=layout, shape=shape)

    def fused(self, conv: Conv, rescale: Rescale, neuron: Neuron, x: Value) -> str | None:
        """The real numbers, NCHW, whose rounding gives the counts; None if there are none.

        Not quantised, the floor of 0.5 more, clipped, is the count.
        """
        if not self.quantised:
            standard = rounds(neuron, 2.0**-rescale.fraction, even=False)
            return self._fused_float(conv, rescale, neuron, x) if standard else None
        if x.levels is None:
            return None
        made = threshold_conv(conv, rescale, neuron, x.levels)
        return self._threshold(conv, made, x) if made.error <= MAX_ERROR else None

    def _threshold(self, conv: Conv, made: ThresholdConv, x: Value) -> str:
        scale = made.scale.astype(np.float32)
        zeros = self.nodes.constant(np.zeros(len(scale), np.int32))
        bias = self.nodes.add(
            "DequantizeLinear",
            self.nodes.constant(made.bias),
            self.nodes.constant(scale),
            zeros,
            axis=0,
        )
        return self.nodes.add(
            "Conv",
            self._dequantised(self.nodes.to(x, "NCHW")),
            self._weights(made.codes, scale, axis=0),
            bias,
            **conv_attributes(conv),
        )

    def _fused_float(self, conv: Conv, rescale: Rescale, neuron: Neuron, x: Value) -> str:
        """D*u + 1/2, the factor in the weights."""
        factor, bias = factor_and_bias(rescale)
        per_level = float(neuron.levels)
        first = membrane_thresholds(neuron)[0] * 2.0**-rescale.fraction
        offset = 1.0 - first * per_level
        return self.real(conv, x, factor * per_level, bias * per_level + offset).name

    def _float_conv(self, op: Conv, x: Value, codes: Array, scale: Array, bias: Array) -> str:
        """A convolution in float32; its codes become weights when a runtime loads the model."""
        factors = scale.reshape(-1, 1, 1, 1)
        name = self.nodes.to(x, "NCHW")
        if self.quantised:
            if x.levels is not None:
                name = self.nodes.add("Cast", name, to=FLOAT)
            weights = self.nodes.add("Cast", self.nodes.constant(codes), to=FLOAT)
            weights = self.nodes.add("Mul", weights, self.nodes.reals(factors))
        else:
            weights = self.nodes.reals(codes * factors)
        return self.nodes.add("Conv", name, weights, self.nodes.reals(bias), **conv_attributes(op))

    def _product(
        self, op: Conv, x: Value, codes: Array, scale: Array, shape: tuple[int, int, int]
    ) -> str:
        """The convolution as a matrix product of gathered windows, channels last."""
        columns = self.nodes.to(x, "NHWC")
        kernel = op.codes.shape[-1]
        if kernel > 1 or op.stride > 1:
            columns = self._windows(op, columns, shape)
        matrix = codes.transpose(2, 3, 1, 0).reshape(-1, len(codes))
        return self.nodes.add(
            "MatMul", self._dequantised(columns), self._weights(matrix, scale, axis=1)
        )

    def _windows(self, op: Conv, name: str, shape: tuple[int, int, int]) -> str:
        """(B, H, W, C) counts to (B, H', W', k*k*C): what each output pixel sees."""
        kernel, p, stride = op.codes.shape[-1], op.padding, op.stride
        if p:
            pads = self.nodes.integers(0, p, p, 0, 0, p, p, 0)
            name = self.nodes.add("Pad", name, pads, self.nodes.constant(np.uint8(0)))
        axes, steps = self.nodes.integers(1, 2), self.nodes.integers(stride, stride)
        ends = [(size - 1) * stride + 1 for size in shape[1:]]
        parts = [
            self.nodes.add(
                "Slice",
                name,
                self.nodes.integers(i, j),
                self.nodes.integers(i + ends[0], j + ends[1]),
                axes,
                steps,
            )
            for i in range(kernel)
            for j in range(kernel)
        ]
        return parts[0] if len(parts) == 1 else self.nodes.add("Concat", *parts, axis=3)

    def _dequantised(self, counts: str) -> str:
        """Counts as real numbers of the same value."""
        zero = self.nodes.constant(np.uint8(0))
        return self.nodes.add("DequantizeLinear", counts, self.nodes.reals(1.0), zero)

    def _weights(self, codes: Array, scale: Array, axis: int) -> str:
        zeros = self.nodes.constant(np.zeros(len(scale), codes.dtype))
        name = self.nodes.constant(codes)
        return self.nodes.add("DequantizeLinear", name, self.nodes.reals(scale), zeros, axis=axis)


def as_convolution(op: Conv | ConvTranspose) -> Conv:
    """A transposed convolution as a 1x1 convolution to 2x2 pixels for each channel."""
    if isinstance(op, Conv):
        return op
    codes = op.codes.transpose(1, 2, 3, 0).reshape(-1, len(op.codes), 1, 1)
    return Conv(
        name=op.name,
        inputs=op.inputs,
        codes=np.ascontiguousarray(codes),
        bits=op.bits,
        stride=1,
        padding=0,
        groups=1,
    )


def _safe(levels: int, codes: Array) -> bool:
    """Whether two products of bytes always fit the 16 bits in which processors add them."""
    return 2 * levels * int(np.abs(codes.astype(np.int16)).max()) <= BYTE_PAIR
