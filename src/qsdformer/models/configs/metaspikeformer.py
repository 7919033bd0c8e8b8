"""Named sizes of Meta-SpikeFormer; read without PyTorch."""

from __future__ import annotations

from typing import Any

from qsdformer.models.registry import Family, register
from qsdformer.nn.config import ModelConfig

# Named sizes; beside each the publication's name.
SIZES: dict[str, dict[str, Any]] = {
    "metaspikeformer_tiny": {"dims": (16, 32, 64, 80), "depth": 3, "heads": 4, "stem_kernel": 3},
    "metaspikeformer_small": {"dims": (32, 64, 128, 160), "depth": 3, "heads": 4, "stem_kernel": 3},
    "metaspikeformer_8m": {"dims": (48, 96, 192, 256)},  # 8_256
    "metaspikeformer_15m": {"dims": (64, 128, 256, 360)},  # 8_15M
    "metaspikeformer_31m": {"dims": (96, 192, 384, 480)},  # 8_384
    "metaspikeformer_55m": {"dims": (128, 256, 512, 640)},  # 8_512
    "metaspikeformer_75m": {"dims": (128, 256, 512, 640), "depth": 12},  # 12_512
    "metaspikeformer_124m": {"dims": (192, 384, 768, 960)},  # 8_768
}

register(
    Family(
        config=ModelConfig,
        model="qsdformer.models.metaspikeformer:MetaSpikeFormer",
        sizes=SIZES,
        feature_maps=True,
    )
)
