"""Configuration and named sizes of Spikformer; read without PyTorch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from qsdformer.errors import require
from qsdformer.models.configs.isotropic import IsotropicConfig
from qsdformer.models.registry import Family, register
from qsdformer.parsing import option

# Named sizes, by depth and width as in the publication.
SIZES: dict[str, dict[str, Any]] = {
    "spikformer_tiny": {"width": 96, "depth": 3, "heads": 4, "pooling": "0111"},
    "spikformer_8_384": {"width": 384, "depth": 8},
    "spikformer_6_512": {"width": 512, "depth": 6},
    "spikformer_8_512": {"width": 512, "depth": 8},
    "spikformer_10_512": {"width": 512, "depth": 10},
    "spikformer_8_768": {"width": 768, "depth": 8},
    "spikformer_cifar_4_384": {
        "width": 384,
        "depth": 4,
        "heads": 12,
        "pooling": "0011",
        "qkv_bias": True,
    },
    "spikformer_cifar10dvs_2_256": {
        "width": 256,
        "depth": 2,
        "heads": 16,
        "in_channels": 2,
        "time_steps": 16,
        "attention_scale": 0.25,
    },
}
INPUTS = {
    "spikformer_tiny": (3, 32, 32),
    "spikformer_cifar_4_384": (3, 32, 32),
    "spikformer_cifar10dvs_2_256": (2, 128, 128),
}


@dataclass(frozen=True, kw_only=True)
class SpikformerConfig(IsotropicConfig):
    """Configuration of a Spikformer and of its counterpart ANN."""

    family: ClassVar[str] = "spikformer"
    SHAPE: ClassVar[tuple[str, ...]] = (*IsotropicConfig.SHAPE, "qkv_bias")
    WITHOUT_EFFECT: ClassVar[tuple[str, ...]] = ("residual_gain",)  # branches end in neurons

    attention_scale: float | None = option(0.125, "none: 1/N for N tokens")
    qkv_bias: bool = option(False, "in the convolutions of q, k and v, as in the CIFAR network")

    def _check_family(self) -> None:
        super()._check_family()
        scale = self.attention_scale
        require(self, "attention_scale", scale is None or scale > 0, "above 0, or none for 1/N")


register(
    Family(
        config=SpikformerConfig,
        model="qsdformer.models.spikformer:Spikformer",
        sizes=SIZES,
        inputs=INPUTS,
        first_conv="stem.convs.0.conv",
    )
)
