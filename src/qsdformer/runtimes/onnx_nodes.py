"""Nodes and constants of an ONNX graph under construction, and tensors that know their layout."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from qsdformer.errors import UserError
from qsdformer.graph.ops import Array, Conv

try:
    import onnx
    from onnx import TensorProto, helper, numpy_helper
except ImportError as error:
    raise UserError(
        "writing ONNX needs the package onnx: pip install 'qsdformer[export]'"
    ) from error

OPSET = 18
IR_VERSION = 8
FLOAT, UINT8, INT64 = TensorProto.FLOAT, TensorProto.UINT8, TensorProto.INT64
PERMUTATIONS = {"NHWC": [0, 2, 3, 1], "NCHW": [0, 3, 1, 2]}


@dataclass(frozen=True, kw_only=True)
class Value:
    """A tensor of the ONNX graph.

    `unit` is the real value of one unit of the integer graph's value; `levels` is the largest
    spike count, or None for a real number. `shape` is (C, H, W) whatever the layout.
    """

    name: str
    layout: str
    shape: tuple[int, int, int]
    unit: float = 1.0
    levels: int | None = None


@dataclass
class Nodes:
    """Collects nodes and constants; equal constants and transpositions are made once."""

    nodes: list[Any] = field(default_factory=list)
    constants: dict[str, Array] = field(default_factory=dict)
    _known: dict[Any, str] = field(default_factory=dict)

    def constant(self, value: Any) -> str:
        """The name of a constant."""
        array = np.ascontiguousarray(value) if np.ndim(value) else np.asarray(value)
        key = (array.dtype.str, array.shape, array.tobytes())
        if key not in self._known:
            self._known[key] = f"constant_{len(self.constants)}"
            self.constants[self._known[key]] = array
        return self._known[key]

    def reals(self, value: Any) -> str:
        """The name of a float32 constant."""
        return self.constant(np.asarray(value, np.float32))

    def integers(self, *values: int) -> str:
        """The name of an int64 vector."""
        return self.constant(np.array(values, np.int64))

    def per_channel(self, values: Array, layout: str) -> str:
        """The name of a float32 constant with one value per channel, to broadcast in `layout`."""
        return self.reals(values.reshape(-1, 1, 1) if layout == "NCHW" else values)

    def add(self, kind: str, *inputs: str, **attributes: Any) -> str:
        """Append a node; the name of its output."""
        name = f"{kind}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), [name], name=name, **attributes))
        return name

    def split(self, value: str, parts: int) -> list[str]:
        """Append a node that cuts the batch in equal parts; the names of its outputs."""
        name = f"Split_{len(self.nodes)}"
        outputs = [f"{name}_{i}" for i in range(parts)]
        # Without sizes the parts are equal, which the batch, a multiple of T, allows.
        node = helper.make_node("Split", [value], outputs, name=name, axis=0, num_outputs=parts)
        self.nodes.append(node)
        return outputs

    def to(self, value: Value, layout: str) -> str:
        """The name of `value` in `layout`."""
        if value.layout == layout:
            return value.name
        key = (value.name, layout)
        if key not in self._known:
            self._known[key] = self.add("Transpose", value.name, perm=PERMUTATIONS[layout])
        return self._known[key]

    def model(
        self,
        inputs: dict[str, tuple[int, list[str | int]]],
        outputs: dict[str, tuple[int, list[str | int]]],
        metadata: dict[str, str],
    ) -> onnx.ModelProto:
        """The checked model; inputs and outputs are name -> (type, shape)."""
        graph = helper.make_graph(
            self.nodes,
            "qsdformer",
            [helper.make_tensor_value_info(n, *spec) for n, spec in inputs.items()],
            [helper.make_tensor_value_info(n, *spec) for n, spec in outputs.items()],
            [numpy_helper.from_array(a, n) for n, a in self.constants.items()],
        )
        model = helper.make_model(
            graph,
            opset_imports=[helper.make_opsetid("", OPSET)],
            ir_version=IR_VERSION,
            producer_name="qsdformer",
        )
        helper.set_model_props(model, metadata)
        onnx.checker.check_model(model, full_check=True)
        return model


def conv_shape(op: Conv, x: Value) -> tuple[int, int, int]:
    """(C, H, W) of a convolution's result."""
    kernel = op.codes.shape[-1]
    height, width = ((n + 2 * op.padding - kernel) // op.stride + 1 for n in x.shape[1:])
    return len(op.codes), height, width


def conv_attributes(op: Conv) -> dict[str, int | list[int]]:
    """The attributes of ONNX's Conv."""
    return {
        "kernel_shape": [op.codes.shape[-1]] * 2,
        "strides": [op.stride] * 2,
        "pads": [op.padding] * 4,
        "group": op.groups,
    }
