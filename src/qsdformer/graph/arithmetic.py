"""What sums, products and concatenations of values mean, and of values with constants."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from qsdformer.graph.call import Call
from qsdformer.graph.layout import axes_text, repeated
from qsdformer.graph.steps import Constant, Step

SUMS = {"add": 1, "sub": -1, "subtract": -1}
PRODUCTS = ("mul", "multiply", "div", "truediv", "divide")


def summed(op: Call, name: str) -> Step:
    """A shortcut, or a constant added."""
    sign = SUMS[name]
    a, (b, alpha) = op.first, op.arguments("other", "alpha")
    if alpha not in (None, 1):
        raise op.fail("a sum with alpha is not supported")
    if isinstance(a, Step) and isinstance(b, Step):
        if sign < 0:
            raise op.fail("the difference of two values is not supported")
        if a.size != b.size or a.axes != b.axes or a.time != b.time:
            raise op.fail(f"the sum of {axes_text(a)} and {axes_text(b)}: of unequal shapes")
        if a is b:
            return op.make("scale", factor=2.0)
        op.inputs = (a, b)
        return op.make("add")
    if not isinstance(a, Step) and sign < 0:
        raise op.fail("a constant minus a value is not supported")
    return op.make("shift", offset=_constant(op, b if isinstance(a, Step) else a, sign))


def multiplied(op: Call, *, divide: bool) -> Step:
    """A product of spikes, or with a constant factor."""
    a, (b,) = op.first, op.arguments("other")
    if isinstance(a, Step) and isinstance(b, Step):
        grids = 1 in (a.tokens, b.tokens) or a.size == b.size
        if divide or not grids or a.axes != b.axes or (a.channels, a.time) != (b.channels, b.time):
            raise op.fail(
                f"{axes_text(a)} times {axes_text(b)}: products are of equal shapes, or one "
                "grid is 1x1"
            )
        op.inputs = (a, b)
        op.x = max(a, b, key=lambda s: s.tokens)
        return op.make("multiply")
    if divide and not isinstance(a, Step):
        raise op.fail("a constant divided by a value is not supported")
    constant = _constant(op, b if isinstance(a, Step) else a, 1)
    if divide:
        return op.make("scale", factor=_inverse(constant))
    return op.make("scale", factor=constant)


def _constant(op: Call, value: Any, sign: int) -> float | Constant:
    """A number, or one for each channel (C,)."""
    if isinstance(value, (int, float)):
        return float(sign * value)
    if not isinstance(value, Constant):
        raise op.fail("only numbers and parameters can be added or multiplied")
    position = op.x.axes.index("c") - len(op.x.axes)

    def compute() -> Tensor:
        found = sign * value.compute()
        if found.numel() == 1:
            return found.reshape(1)
        if found.dim() < -position or found.numel() != found.shape[position]:
            raise op.fail(f"a constant of shape {tuple(found.shape)} is not one per channel")
        return found.flatten()

    return Constant(compute)


def concatenated(op: Call) -> Step:
    """Values joined along their channels; a value joined with itself in time is repeated."""
    values, (dim,) = op.first, op.arguments("dim")
    dim = dim or 0
    if len(values) == 1:
        return op.x
    if all(value is values[0] for value in values) and dim == 0:
        return repeated(op)
    axes = op.x.axes
    same = all(isinstance(v, Step) and (v.axes, v.time) == (axes, op.x.time) for v in values)
    if not same or axes[dim] != "c":
        raise op.fail("only values of one kind can be concatenated, along their channels")
    if len(set(values)) != len(values):
        raise op.fail("a value concatenated with itself is not supported")
    op.inputs = tuple(values)
    return op.make("concat")


def _inverse(value: float | Constant) -> float | Constant:
    if isinstance(value, Constant):
        return Constant(lambda: 1 / value.compute())
    return 1 / value
