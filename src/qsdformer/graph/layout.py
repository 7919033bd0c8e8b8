"""What reshaping, reducing and repeating mean for time, channels and grid; see `steps.py`."""

from __future__ import annotations

import math
from typing import Any

from qsdformer.graph.call import Call
from qsdformer.graph.steps import Step

GRID = {"nchw": "hw", "tbchw": "hw", "ncp": "p", "npc": "p", "tbcp": "p", "tbpc": "p"}


def axes_text(step: Step) -> str:
    """The shape of a value in letters and numbers."""
    numbers = dict(zip("chwp", (*step.size, step.tokens), strict=True))
    letters = {"n": "T*B", "t": "T", "b": "B"}
    return f"({', '.join(letters.get(a) or str(numbers[a]) for a in step.axes)})"


def reshaped(op: Call) -> Step:
    """A view: the axes that fit the new shape, found in this order."""
    x, shape = op.x, op.shape()
    c, h, w = x.size
    batch = _batch(op)
    n, p = x.time * batch, h * w
    if x.axes.endswith("pc"):
        candidates = {"npc": (n, p, c), "tbpc": (x.time, batch, p, c)}
    else:
        candidates = {
            "nchw": (n, c, h, w),
            "tbchw": (x.time, batch, c, h, w),
            "ncp": (n, c, p),
            "tbcp": (x.time, batch, c, p),
        }
    if p == 1:
        candidates |= {"nc": (n, c), "tbc": (x.time, batch, c)}
    axes = next((axes for axes, sizes in candidates.items() if sizes == shape), None)
    if axes is not None:
        return op.make("view", axes=axes, size=x.size)
    flat = {"nc": (n, c * p), "tbc": (x.time, batch, c * p)}
    axes = next((axes for axes, sizes in flat.items() if sizes == shape), None)
    if axes is not None and not x.axes.endswith("pc"):
        return op.make("view", axes=axes, size=(c * p, 1, 1), flattened=True)
    if math.prod(shape) != math.prod(op.input_shape()):
        raise op.fail(f"a part of {axes_text(x)} is taken: only whole values are supported")
    raise op.fail(
        f"{axes_text(x)} cannot be seen as {shape}: time, batch, channels and grid must stay apart"
    )


def reduced(op: Call, what: str, dim: Any, keepdim: Any, *, folded: bool = False) -> Step:
    """A mean or sum over the whole grid, or over time."""
    x, mean = op.x, what == "mean"
    if folded:
        return op.make("time_sum", time=1, axes=x.axes, size=x.size, mean=mean)
    count = len(x.axes)
    dims = range(count) if dim is None else ([dim] if isinstance(dim, int) else dim)
    over = "".join(sorted(x.axes[d % count] for d in dims))
    if over == "t" and not keepdim:
        axes = "n" + x.axes[2:]
        return op.make("time_sum", time=1, axes=axes, size=x.size, mean=mean)
    if over == GRID.get(x.axes):
        axes = x.axes if keepdim else "".join(a for a in x.axes if a not in over)
        return op.make("spatial_sum", axes=axes, size=(x.channels, 1, 1), mean=mean)
    raise op.fail(
        f"a {what} of {axes_text(x)} over dim={dim} is not supported: only over the whole grid, "
        "or over a time axis that stands apart, (T, B, ...)"
    )


def repeated(op: Call) -> Step:
    """Still values at every time step, time slowest: (B, ...) to (T*B, ...) or (T, B, ...)."""
    x, shape = op.x, op.shape()
    if len(op.inputs) > 1:
        raise op.fail("only copies of one value can be put behind each other in time")
    before = op.input_shape()
    if shape == before:
        return x
    folded = len(shape) == len(before) and shape[1:] == before[1:]
    times, axes = shape[0] // before[0], x.axes
    if len(shape) == len(before) + 1 and shape[1:] == before and x.axes.startswith("n"):
        folded, times, axes = True, shape[0], "tb" + x.axes[1:]
    if not folded or x.time != 1:
        raise op.fail(f"{axes_text(x)} repeated to {shape}: only time steps can be repeated, once")
    return op.make("repeat", time=times, axes=axes, size=x.size)


def _batch(op: Call) -> int:
    before = dict(zip(op.x.axes, op.input_shape(), strict=True))
    return before["b"] if "b" in before else before["n"] // op.x.time
