"""Layers: neurons, quantisers, attention, blocks and taps; pure functions, thin modules on them.

What a network of one's own is built from stands here: each name is loaded when it is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from qsdformer.nn.attention import Attention as Attention
    from qsdformer.nn.attention import LayerScale as LayerScale
    from qsdformer.nn.attention import SpikeAttention as SpikeAttention
    from qsdformer.nn.blocks import border_conv as border_conv
    from qsdformer.nn.neurons import IELIF as IELIF
    from qsdformer.nn.neurons import LIF as LIF
    from qsdformer.nn.neurons import SpikingNeuron as SpikingNeuron
    from qsdformer.nn.quantizers import QuantConv2d as QuantConv2d
    from qsdformer.nn.quantizers import QuantConvTranspose2d as QuantConvTranspose2d
    from qsdformer.nn.quantizers import QuantLinear as QuantLinear
    from qsdformer.nn.taps import tap as tap
    from qsdformer.nn.timing import TimeInput as TimeInput
    from qsdformer.nn.timing import TimeMean as TimeMean
    from qsdformer.nn.timing import TimeRepeat as TimeRepeat

_HOMES = {
    "Attention": "attention",
    "IELIF": "neurons",
    "LIF": "neurons",
    "LayerScale": "attention",
    "QuantConv2d": "quantizers",
    "QuantConvTranspose2d": "quantizers",
    "QuantLinear": "quantizers",
    "SpikeAttention": "attention",
    "SpikingNeuron": "neurons",
    "TimeInput": "timing",
    "TimeMean": "timing",
    "TimeRepeat": "timing",
    "border_conv": "blocks",
    "tap": "taps",
}

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'qsdformer.nn' has no attribute {name!r}")
    return getattr(importlib.import_module(f"qsdformer.nn.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
