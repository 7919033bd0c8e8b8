"""Models' variants, what they see, and images for them."""

from __future__ import annotations

import shutil
import sysconfig
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from qsdformer.data.base import DataInfo
from qsdformer.models.metaspikeformer import MetaSpikeFormer

SIZE = 32
# Whether torch.compile can generate code here: it needs a C++ compiler and Python's headers.
COMPILES = (
    shutil.which("g++") is not None and Path(sysconfig.get_path("include"), "Python.h").exists()
)

LIF = {"neuron": "lif", "threshold": 0.15, "rectify": "all", "residual_gain": 1.0}

VARIANTS: dict[str, dict[str, Any]] = {
    **{
        f"{kind}-D{levels}-T{steps}": {
            "levels": levels,
            "time_steps": steps,
            "fully_spiking": kind == "fully",
        }
        for kind in ("published", "fully")
        for levels in (1, 2, 4, 8)
        for steps in (1, 4)
    },
    "lif-T1": {**LIF, "time_steps": 1},
    "lif-T4": {**LIF, "time_steps": 4},
    "lif-fully-T4": {**LIF, "time_steps": 4, "fully_spiking": True},
    "reference": {
        "attention_norm": False,
        "attention_scale": 0.25,
        "attention_gain": 2.0,
        "layer_scale": 0.5,
        "residual_gain": 1.0,
        "stem_bits": 4,
        "head_bits": 4,
    },
    "2-bit": {"weight_bits": 2},
    "ternary": {"weight_bits": "ternary"},
    "3-bit": {"weight_bits": 3, "stem_stride": 1},
    "8-bit": {"weight_bits": 8, "stem_kernel": 7, "in_channels": 1},
}


def info_for(model: MetaSpikeFormer, size: int = SIZE) -> DataInfo:
    """Square images of noise in the model's channels."""
    channels = model.config.in_channels
    return DataInfo(
        image_size=size,
        channels=channels,
        class_names=tuple(f"class {i}" for i in range(model.config.num_classes)),
        mean=(0.5, 0.4, 0.6)[:channels],
        std=(0.25, 0.3, 0.2)[:channels],
    )


def random_pixels(model: MetaSpikeFormer, count: int = 2, seed: int = 0) -> Tensor:
    """(count, C, H, W) uint8."""
    generator = torch.Generator().manual_seed(seed)
    shape = (count, model.config.in_channels, SIZE, SIZE)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
