"""Configuration and named sizes of Spike-driven Transformer v1; read without PyTorch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from qsdformer.models.configs.isotropic import IsotropicConfig
from qsdformer.models.registry import Family, register
from qsdformer.parsing import option

_CIFAR: dict[str, Any] = {"depth": 2, "pooling": "0011"}
_EVENTS: dict[str, Any] = {"width": 256, "depth": 2, "in_channels": 2, "time_steps": 16}

# Named sizes, by depth and width as in the publication.
SIZES: dict[str, dict[str, Any]] = {
    "sdt_tiny": {"width": 96, "depth": 3, "heads": 4, "pooling": "0111"},
    "sdt_8_384": {"width": 384, "depth": 8},
    "sdt_6_512": {"width": 512, "depth": 6},
    "sdt_8_512": {"width": 512, "depth": 8},
    "sdt_10_512": {"width": 512, "depth": 10},
    "sdt_8_768": {"width": 768, "depth": 8},
    "sdt_cifar_2_256": {**_CIFAR, "width": 256},
    "sdt_cifar_2_512": {**_CIFAR, "width": 512},
    "sdt_cifar10dvs_2_256": {**_EVENTS, "pooling": "0011", "dvs_mode": True},
    "sdt_gesture_2_256": {**_EVENTS, "pooling": "0111"},
}
INPUTS = {
    "sdt_tiny": (3, 32, 32),
    "sdt_cifar_2_256": (3, 32, 32),
    "sdt_cifar_2_512": (3, 32, 32),
    "sdt_cifar10dvs_2_256": (2, 64, 64),
    "sdt_gesture_2_256": (2, 128, 128),
}


@dataclass(frozen=True, kw_only=True)
class SDTConfig(IsotropicConfig):
    """Configuration of a Spike-driven Transformer v1 and of its counterpart ANN."""

    family: ClassVar[str] = "sdt"

    dvs_mode: bool = option(
        False, "the extra max pools in attention of the published CIFAR10-DVS network"
    )


register(
    Family(
        config=SDTConfig,
        model="qsdformer.models.sdt:SDT",
        sizes=SIZES,
        inputs=INPUTS,
        first_conv="stem.convs.0.conv",
    )
)
