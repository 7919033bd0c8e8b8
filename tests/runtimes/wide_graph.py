"""A graph of two products with many channels, whose activity follows that of the pixels."""

from __future__ import annotations

import numpy as np

from qsdformer.data.preprocessing import Preprocessing
from qsdformer.graph.integer import IntegerGraph, Output
from qsdformer.graph.ops import IELIF, INT32_MAX, Conv, Normalise, Op, Rescale

SIZE = 33
CHANNELS = (140, 360)  # in between, and out: neither is a multiple of a vector


def _layer(name: str, source: str, codes: np.ndarray, multiplier: np.ndarray) -> list[Op]:
    """A convolution, a factor and a neuron that is silent at 0."""
    channels, padding = codes.shape[0], codes.shape[2] // 2
    rest = {"limit": INT32_MAX, "fraction": 8}
    return [
        Conv(name=f"{name}.conv", inputs=(source,), codes=codes, bits=4, stride=1, padding=padding,
             groups=1),
        Rescale(name=f"{name}.scale", inputs=(f"{name}.conv",), multiplier=multiplier,
                shift=np.full(channels, 3, np.int8), bias=np.zeros(channels, np.int64), **rest),
        IELIF(name=name, inputs=(f"{name}.scale",), steps=1, limit=INT32_MAX,
              thresholds=(20, 61, 99, 140), resets=(0, 40, 80, 120, 160), decay=0),
    ]  # fmt: skip


def wide_graph(kernel: int) -> IntegerGraph:
    """White pixels fire at random channels of the first layer, black ones at none. Some factors of
    the second are negative.
    """
    rng = np.random.default_rng(kernel)
    between, out = CHANNELS
    table = np.zeros((1, 256), np.int32)
    table[0, 255] = 9
    first = rng.integers(-7, 8, (between, 1, 1, 1)).astype(np.int8)
    second = rng.integers(-7, 8, (out, between, kernel, kernel)).astype(np.int8)
    ops: list[Op] = [Normalise(name="pixels", inputs=(), table=table, fraction=0)]
    ops += _layer("first", "pixels", first, np.full(between, 20, np.int64))
    ops += _layer("second", "first", second, rng.integers(-9, 30, out))
    return IntegerGraph(
        ops=tuple(ops),
        preprocessing=Preprocessing(image_size=SIZE, channels=1, mean=(0.5,), std=(0.5,)),
        class_names=(),
        config={},
        membrane_bits=32,
        membrane_fraction=8,
        outputs=(
            Output(name="sums", op="second.conv", scale=(1.0,)),
            Output(name="spikes", op="second", scale=(1.0,)),
        ),
    )
