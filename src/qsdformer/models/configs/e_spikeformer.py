"""Configuration and named sizes of E-SpikeFormer; read without PyTorch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from qsdformer.errors import require
from qsdformer.models.registry import Family, register
from qsdformer.nn.config import PyramidConfig, Rounding
from qsdformer.parsing import option

# Named sizes, after their numbers of parameters.
SIZES: dict[str, dict[str, Any]] = {
    "e_spikeformer_tiny": {"dims": (16, 32, 64, 80), "depth": 3, "heads": 4, "stem_kernel": 3},
    "e_spikeformer_3m": {"dims": (24, 48, 96, 128)},
    "e_spikeformer_5m": {"dims": (32, 64, 128, 192)},
    "e_spikeformer_10m": {"dims": (48, 96, 192, 240)},
    "e_spikeformer_19m": {"dims": (64, 128, 256, 360)},
}


@dataclass(frozen=True, kw_only=True)
class ESpikeFormerConfig(PyramidConfig):
    """Configuration of an E-SpikeFormer of the base sizes and of its counterpart ANN."""

    family: ClassVar[str] = "e_spikeformer"

    attention_scale: float | None = option(None, "none: 2/sqrt(width of a head)")
    attention_norm: bool = option(False, "batch norm between attention and its neuron")
    count_units: bool = option(True, "membrane potential D gives D counts; else 1 does")
    rounding: Rounding = option("even", "of half counts")

    def _check_family(self) -> None:
        super()._check_family()
        scale = self.attention_scale
        require(self, "attention_scale", scale is None or scale > 0, "above 0, or none")

    @property
    def window(self) -> float:
        """Membrane potential at which an IE-LIF neuron emits its largest count."""
        return float(self.levels) if self.count_units else 1.0


register(
    Family(
        config=ESpikeFormerConfig,
        model="qsdformer.models.e_spikeformer:ESpikeFormer",
        sizes=SIZES,
        feature_maps=True,
    )
)
