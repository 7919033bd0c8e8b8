"""The sizes of windows: convolutions and pools as one number for both sides of the map."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from qsdformer.errors import UserError

Fail = Callable[[str], UserError]


def conv_options(conv: nn.Conv2d, fail: Fail) -> dict[str, Any]:
    """Kernel, stride and padding of a convolution as one number each."""
    kernel, stride = single(conv.kernel_size, fail), single(conv.stride, fail)
    if single(conv.dilation, fail) != 1 or conv.padding_mode != "zeros":
        raise fail("a convolution must have dilation 1 and zeros for padding")
    padding: Any = conv.padding
    if isinstance(padding, str):
        if padding == "same" and kernel % 2 == 0:
            raise fail("a convolution with padding='same' must have an odd kernel")
        padding = kernel // 2 if padding == "same" else 0
    padding = single(padding, fail)
    if padding > kernel // 2:
        raise fail("a convolution's padding must be at most half its kernel")
    return {"kernel": kernel, "stride": stride, "padding": padding}


def single(value: Any, fail: Fail) -> int:
    """A size that is the same along both sides."""
    values = (value,) if isinstance(value, int) else tuple(value)
    if len(set(values)) != 1:
        raise fail(f"kernels, strides and paddings must be square, {values} given")
    return int(values[0])


def pool_options(given: Mapping[str, Any], fail: Fail) -> dict[str, Any]:
    """Kernel, stride and padding of a pool from a module's or a function's arguments."""
    kernel = single(given["kernel_size"], fail)
    stride = given.get("stride")
    stride = kernel if stride is None or stride == [] else single(stride, fail)
    odd = [k for k in ("ceil_mode", "return_indices", "divisor_override") if given.get(k)]
    if single(given.get("dilation") or 1, fail) != 1:
        odd.append("dilation")
    if odd:
        raise fail(f"a pool with {', '.join(odd)} is not supported")
    return {"kernel": kernel, "stride": stride, "padding": single(given.get("padding") or 0, fail)}
