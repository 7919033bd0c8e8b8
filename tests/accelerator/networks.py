"""Small designs, and networks of every family as integer graphs."""

from __future__ import annotations

import copy
import functools
from typing import Any

import numpy as np
import torch
import yaml

import qsdformer as qsd
from qsdformer.accelerator.design import Design, designs, parse_design
from qsdformer.data.base import DataInfo
from qsdformer.graph.integer import IntegerGraph

SIZE = 16
INFO = DataInfo(
    image_size=SIZE, channels=3, class_names=tuple("abcde"), mean=(0.5,) * 3, std=(0.25,) * 3
)
FLAT: dict[str, Any] = {"width": 16, "depth": 1, "heads": 2, "num_classes": 5}
PYRAMID: dict[str, Any] = {"dims": (4, 6, 8, 8), "depth": 2, "heads": 2, "num_classes": 5}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "metaspikeformer": ("metaspikeformer_tiny", PYRAMID),
    "metaspikeformer, fully": ("metaspikeformer_tiny", {**PYRAMID, "fully_spiking": True}),
    "sdt": ("sdt_tiny", FLAT),
    "sdt, dvs mode": ("sdt_tiny", {**FLAT, "dvs_mode": True}),
    "spikformer": ("spikformer_tiny", FLAT),
    "e-spikeformer": ("e_spikeformer_tiny", PYRAMID),
}


@functools.cache
def family_graph(family: str, **fields: Any) -> IntegerGraph:
    """The integer graph of a family's small network, whose neurons fire."""
    torch.manual_seed(0)
    name, own = FAMILIES[family]
    model = qsd.create_model(name, **own, **fields).train()
    with torch.no_grad():
        for _ in range(5):
            model(torch.randn(6, 3, SIZE, SIZE))
    return qsd.lower(model.eval(), INFO, membrane_bits=16)


def pixels(count: int = 1, seed: int = 0) -> np.ndarray:
    """(count, 3, SIZE, SIZE) uint8."""
    return np.random.default_rng(seed).integers(0, 256, (count, 3, SIZE, SIZE), dtype=np.uint8)


def plain_values(name: str = "sdt-sparse") -> dict[str, Any]:
    """The values of a packaged design's file."""
    return copy.deepcopy(yaml.safe_load(designs()[name].read_text(encoding="utf-8")))


def small_design(name: str = "sdt-sparse", **changes: Any) -> Design:
    """A packaged design with few lanes; `changes` are by path, dots as two underscores."""
    values = plain_values(name)
    few = {
        "units__linear__lanes": 3,
        "units__linear__engines": 2,
        "units__convolution__lanes": 4,
        "units__convolution__engines": 3,
        "units__attention__lanes": 2,
        "word_bits": 8,
    }
    for path, value in {**(few if name == "sdt-sparse" else {}), **changes}.items():
        section = values
        for part in path.split("__"):
            section = section[part]
        section["value"] = value
    return parse_design(values, name)
