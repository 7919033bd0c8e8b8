"""What a model is: one frozen, validated configuration that travels with every checkpoint."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, Literal, get_args

from qsdformer.errors import require

Neuron = Literal["ielif", "lif", "relu", "gelu"]
Attention = Literal["spike", "softmax"]
Rectify = Literal["none", "qkv", "all"]
Surrogate = Literal["exp", "rect"]

ANN_NEURONS = ("relu", "gelu")
MIN_BITS, MAX_BITS = 2, 8

# Fields by the kind of number they hold.
WHOLE = (
    "in_channels",
    "num_classes",
    "depth",
    "heads",
    "stem_kernel",
    "stem_stride",
    "levels",
    "time_steps",
)
BITS = ("weight_bits", "stem_bits", "head_bits")
REAL = (
    "drop_path_rate",
    "decay",
    "tau",
    "threshold",
    "attention_gain",
    "residual_gain",
)


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Configuration of a Meta-SpikeFormer and of its counterpart ANN.

    Bits are per weight, 2 to 8, or None for full precision. `levels` is D, the largest spike
    count; `time_steps` is T. A spiking network needs T·D binary time steps at inference.
    """

    # Shape of the network.
    in_channels: int = 3
    num_classes: int = 1000
    dims: tuple[int, int, int, int] = (64, 128, 256, 360)
    depth: int = 8
    heads: int = 8
    stem_kernel: int = 7
    stem_stride: int = 2
    drop_path_rate: float = 0.0

    # Weight quantisation.
    weight_bits: int | None = 4
    stem_bits: int | None = 8
    head_bits: int | None = 8

    # Neurons.
    neuron: Neuron = "ielif"
    levels: int = 4
    time_steps: int = 1
    decay: float = 0.25  # IE-LIF membrane carry-over between time steps (beta)
    tau: float = 2.0  # LIF membrane time constant, in time steps
    threshold: float = 1.0  # LIF firing threshold
    surrogate: Surrogate = "exp"
    fully_spiking: bool = False  # a neuron before every convolution but the stem

    # Attention.
    attention: Attention = "spike"
    attention_scale: float | None = None  # None: 1/N for N tokens
    attention_norm: bool = True  # batch norm between attention and its neuron
    attention_gain: float = 1.0  # the neuron after attention emits gain * count / D

    # Initial values that decide whether training starts at all.
    rectify: Rectify = "qkv"  # which norms before neurons start centred in the firing window
    residual_gain: float = 0.2  # scale of the last norm of each residual branch
    layer_scale: float | None = None  # initial layer scale of transformer blocks; None: no scale

    def __post_init__(self) -> None:
        self._check_types()
        object.__setattr__(self, "dims", tuple(self.dims))
        self._check_choices()
        require(self, "num_classes", self.num_classes >= 0, "0 (no head) or more")
        for name in ("in_channels", "heads", "stem_kernel", "levels", "time_steps"):
            require(self, name, getattr(self, name) >= 1, "a whole number, at least 1")
        require(self, "dims", min(self.dims) >= 2, "four widths >= 2")
        require(self, "dims", self.dims[0] % 2 == 0, "an even first width (the stem has half)")
        require(self, "depth", self.depth >= 2, "at least 2 (stages 3 and 4 share the blocks)")
        require(self, "stem_kernel", self.stem_kernel % 2 == 1, "an odd number")
        require(self, "stem_stride", self.stem_stride in (1, 2), "1 or 2")
        require(self, "drop_path_rate", 0 <= self.drop_path_rate < 1, "in [0, 1)")
        for name in BITS:
            bits = getattr(self, name)
            allowed = f"{MIN_BITS} to {MAX_BITS} bits, or none for full precision"
            require(self, name, bits is None or MIN_BITS <= bits <= MAX_BITS, allowed)
        for name in ("tau", "threshold", "attention_gain", "residual_gain"):
            require(self, name, getattr(self, name) > 0, "above 0")
        scale = self.attention_scale
        require(self, "attention_scale", scale is None or scale > 0, "above 0, or none for 1/N")
        require(self, "tau", self.tau >= 1, "at least 1 time step")
        require(self, "decay", 0 <= self.decay <= 1, "in [0, 1]")
        self._check_heads()

    def _check_types(self) -> None:
        for name in (*WHOLE, *BITS):
            value = getattr(self, name)
            missing = value is None and name in BITS
            require(self, name, missing or _is_whole(value), "a whole number")
        for name in (*REAL, "attention_scale", "layer_scale"):
            value = getattr(self, name)
            missing = value is None and name not in REAL
            require(self, name, missing or _is_finite(value), "a finite number")
        for name in ("fully_spiking", "attention_norm"):
            require(self, name, isinstance(getattr(self, name), bool), "true or false")
        four = isinstance(self.dims, (tuple, list)) and len(self.dims) == 4
        require(self, "dims", four and all(map(_is_whole, self.dims)), "four widths >= 2")

    def _check_choices(self) -> None:
        choices = {
            "neuron": Neuron,
            "attention": Attention,
            "rectify": Rectify,
            "surrogate": Surrogate,
        }
        for name, literal in choices.items():
            allowed = get_args(literal)
            require(self, name, getattr(self, name) in allowed, f"one of {', '.join(allowed)}")
        if self.is_spiking != (self.attention == "spike"):
            raise ValueError(
                f"neuron={self.neuron!r} with attention={self.attention!r}: "
                "spiking neurons go with spike attention, relu and gelu with softmax"
            )
        if not self.is_spiking and self.fully_spiking:
            raise ValueError("fully_spiking=True needs a spiking neuron, 'ielif' or 'lif'")
        if self.neuron == "lif" and self.levels != 1:
            raise ValueError(f"levels={self.levels}: LIF neurons are binary, set levels to 1")

    def _check_heads(self) -> None:
        for width in self.dims[2:]:
            if width % self.heads:
                raise ValueError(f"heads={self.heads} does not divide the block width {width}")

    @property
    def is_spiking(self) -> bool:
        """Whether activations are spike counts (IE-LIF, LIF) rather than real values (ANN)."""
        return self.neuron not in ANN_NEURONS

    @property
    def stage_depths(self) -> tuple[int, int]:
        """Transformer blocks in stages 3 and 4: three quarters of `depth`, and the rest."""
        third = self.depth * 3 // 4
        return third, self.depth - third

    @property
    def reductions(self) -> tuple[int, int, int, int]:
        """Strides of the four feature maps: the stem, and the ends of stages 1, 2 and 4."""
        s = self.stem_stride
        return s, 2 * s, 4 * s, 8 * s

    def replace(self, **changes: Any) -> ModelConfig:
        """A copy with some fields changed, checked again."""
        return dataclasses.replace(self, **changes)

    def ann(self, neuron: Neuron = "relu") -> ModelConfig:
        """The counterpart ANN: same topology, real-valued neurons, fp32 weights, softmax."""
        return self.replace(
            neuron=neuron,
            attention="softmax",
            weight_bits=None,
            stem_bits=None,
            head_bits=None,
            time_steps=1,
            fully_spiking=False,
        )

    def summary(self) -> str:
        """What a report says of the network beside its neurons and weights."""
        whole = ", fully spike-driven" if self.fully_spiking else ""
        return f"{whole}; dims {', '.join(map(str, self.dims))}, depth {self.depth}"

    def to_dict(self) -> dict[str, Any]:
        """Plain values only, as stored in checkpoints."""
        return {**dataclasses.asdict(self), "dims": list(self.dims)}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> ModelConfig:
        """The inverse of `to_dict`; unknown fields are an error that names them."""
        unknown = sorted(set(values) - {f.name for f in dataclasses.fields(cls)})
        if unknown:
            raise ValueError(f"unknown model configuration fields: {', '.join(unknown)}")
        return cls(**values)


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_finite(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
