"""What a model is: one frozen, validated configuration that travels with every checkpoint."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self, get_args, get_origin, get_type_hints

from qsdformer.errors import require
from qsdformer.parsing import option, written

Neuron = Literal["ielif", "lif", "relu", "gelu"]
Attention = Literal["spike", "softmax"]
Rectify = Literal["none", "qkv", "all"]
Surrogate = Literal["exp", "rect"]
Rounding = Literal["up", "even"]

ANN_NEURONS = ("relu", "gelu")
MIN_BITS, MAX_BITS = 2, 8
TERNARY = "ternary"
Coding = int | Literal["ternary"]  # of quantised weights: bits, or the codes -1, 0, 1
Bits = Coding | None  # None for full precision
MAX_LEVELS = 127  # of an artifact's neuron; up to here counts are exact in half precision as well

# Far above any use: what a damaged or forged file asks for beyond is refused before it is built.
LARGEST = {
    "in_channels": 2**16,
    "num_classes": 2**24,
    "heads": 2**10,
    "depth": 2**10,
    "width": 2**16,
    "mlp_ratio": 2**8,
    "stem_kernel": 2**8,
    "time_steps": 2**10,
}
LARGEST_WIDTH = 2**16

BITS = ("weight_bits", "stem_bits", "head_bits")
ALLOWED_BITS = f"{MIN_BITS} to {MAX_BITS} bits, ternary, or none for full precision"


@dataclass(frozen=True, kw_only=True)
class NetworkConfig:
    """What the configurations of all families share: classes, weight bits and neurons.

    Bits are per weight, 2 to 8, "ternary" (codes -1, 0, 1 in 2 bits), or None for full precision.
    `levels` is D, the largest spike count, up to 127; `time_steps` is T. A spiking network needs
    T·D binary time steps at inference. A family's configuration adds the shape of its network.
    """

    # The family's name, under which the registry finds its network.
    family: ClassVar[str]
    # Fields that a network shares with its counterpart ANN; the others are about spikes.
    SHAPE: ClassVar[tuple[str, ...]] = ("heads", "residual_gain")
    # Fields that say at a glance which network it is.
    SHOWN: ClassVar[tuple[str, ...]] = ()
    # Fields that decide nothing in a family: they are stored and read, but nobody can give them.
    WITHOUT_EFFECT: ClassVar[tuple[str, ...]] = ()
    # What other fields become in the counterpart ANN.
    ANN_FIELDS: ClassVar[dict[str, Any]] = {**dict.fromkeys(BITS), "time_steps": 1}
    # Whole numbers that are at least 1.
    COUNTS: ClassVar[tuple[str, ...]] = ("in_channels", "heads", "time_steps")

    in_channels: int = option(3, "of the images")
    num_classes: int = option(1000, "of the head; 0: none")
    heads: int = option(8, "of attention")

    # Weight quantisation.
    weight_bits: Bits = option(
        4, "bits of weights, but those of the first convolution and the head"
    )
    stem_bits: Bits = option(8, "bits of the first convolution, which reads the image")
    head_bits: Bits = option(8, "bits of a classifier; dense tasks have predictor_bits")

    # Neurons.
    neuron: Neuron = option(
        "ielif", "ielif: counts in training, binary spikes in inference; relu and gelu make an ANN"
    )
    levels: int = option(4, "D, the largest count of an IE-LIF neuron; 1 for LIF")
    time_steps: int = option(1, "T; inference takes T*D binary steps")
    decay: float = option(0.25, "of an IE-LIF membrane from one time step to the next (beta)")
    tau: float = option(2.0, "LIF membrane time constant, in time steps")
    threshold: float = option(1.0, "LIF firing threshold")
    surrogate: Surrogate = option(
        "exp", "gradient of IE-LIF outside its firing window: exp falls off, rect is 0"
    )

    # Initial values that decide whether training starts at all.
    rectify: Rectify = option(
        "qkv", "which norms before neurons start centred in the firing window"
    )
    residual_gain: float = option(0.2, "scale that the last norm of each residual branch starts at")

    def __post_init__(self) -> None:
        self._check_types()
        require(self, "num_classes", self.num_classes >= 0, "0 (no head) or more")
        for name in self.COUNTS:
            require(self, name, getattr(self, name) >= 1, "a whole number, at least 1")
        allowed = f"1 to {MAX_LEVELS} (a model with more could not be exported)"
        require(self, "levels", 1 <= self.levels <= MAX_LEVELS, allowed)
        for name, largest in LARGEST.items():
            require(self, name, getattr(self, name, 0) <= largest, f"at most {largest}")
        for name in BITS:
            require(self, name, are_bits(getattr(self, name)), ALLOWED_BITS)
        for name in ("tau", "threshold", "residual_gain"):
            require(self, name, getattr(self, name) > 0, "above 0")
        require(self, "tau", self.tau >= 1, "at least 1 time step")
        require(self, "decay", 0 <= self.decay <= 1, "in [0, 1]")
        self._check_family()
        if self.neuron == "lif" and self.levels != 1:
            raise ValueError(f"levels={self.levels}: LIF neurons are binary, set levels to 1")

    def _check_types(self) -> None:
        for name, kind in get_type_hints(type(self)).items():
            check = _CHECKS.get(kind)
            if get_origin(kind) is Literal:
                allowed = get_args(kind)
                require(self, name, getattr(self, name) in allowed, f"one of {', '.join(allowed)}")
            elif check is not None:
                require(self, name, check[0](getattr(self, name)), check[1])

    def _check_family(self) -> None:
        """ValueError for values of the family's own fields that cannot be."""

    @property
    def is_spiking(self) -> bool:
        """Whether activations are spike counts (IE-LIF, LIF) rather than real values (ANN)."""
        return self.neuron not in ANN_NEURONS

    @property
    def window(self) -> float:
        """Membrane potential at which an IE-LIF neuron emits its largest count."""
        return 1.0

    @property
    def rounding(self) -> Rounding:
        """Whether IE-LIF neurons round half counts up or to the even neighbour."""
        return "up"

    def summary(self) -> str:
        """What a report says of the network beside its weights and neurons."""
        shown = {name: getattr(self, name) for name in self.SHOWN}
        text = ", ".join(
            f"{name} {', '.join(map(str, value)) if isinstance(value, tuple) else value}"
            for name, value in shown.items()
        )
        whole = ", fully spike-driven" if getattr(self, "fully_spiking", False) else ""
        return f"{whole}; {text}" if text else whole

    def replace(self, **changes: Any) -> Self:
        """A copy with some fields changed, checked again."""
        return dataclasses.replace(self, **changes)

    def ann(self, neuron: Neuron = "relu") -> Self:
        """The counterpart ANN: same topology, real-valued neurons, fp32 weights, softmax."""
        return self.replace(neuron=neuron, **self.ANN_FIELDS)

    def spiking(self) -> Self:
        """The spiking network that an ANN is the counterpart of, with binary neurons."""
        return self.replace(neuron="ielif", levels=1)

    def to_dict(self) -> dict[str, Any]:
        """Plain values only, as stored in checkpoints; "family" says whose they are."""
        return {"family": self.family, **written(self)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """The inverse of `to_dict`; unknown fields are an error that names them."""
        fields = {k: v for k, v in values.items() if k != "family"}
        unknown = sorted(set(fields) - {f.name for f in dataclasses.fields(cls)})
        if unknown:
            raise ValueError(f"unknown model configuration fields: {', '.join(unknown)}")
        return cls(**fields)


@dataclass(frozen=True, kw_only=True)
class PyramidConfig(NetworkConfig):
    """The shape that Meta-SpikeFormer and E-SpikeFormer share: four widths, two deep stages."""

    SHAPE: ClassVar[tuple[str, ...]] = (
        *NetworkConfig.SHAPE,
        "dims",
        "depth",
        "stem_kernel",
        "stem_stride",
        "drop_path_rate",
    )
    SHOWN: ClassVar[tuple[str, ...]] = ("dims", "depth")
    COUNTS: ClassVar[tuple[str, ...]] = (*NetworkConfig.COUNTS, "stem_kernel")

    dims: tuple[int, int, int, int] = option(
        (64, 128, 256, 360), "widths of stages 1 to 4; the stem has half of the first"
    )
    depth: int = option(8, "transformer blocks")
    stem_kernel: int = option(7, "side of the first convolution, an odd number of pixels")
    stem_stride: int = option(2, "of the first convolution; 1 for small images")
    drop_path_rate: float = option(0.0, "of the last transformer block; rises to it from 0")

    def _check_types(self) -> None:
        super()._check_types()
        four = isinstance(self.dims, (tuple, list)) and len(self.dims) == 4
        require(self, "dims", four and all(map(is_whole, self.dims)), "four widths >= 2")
        object.__setattr__(self, "dims", tuple(self.dims))

    def _check_family(self) -> None:
        require(self, "dims", min(self.dims) >= 2, "four widths >= 2")
        require(self, "dims", max(self.dims) <= LARGEST_WIDTH, f"at most {LARGEST_WIDTH} each")
        require(self, "dims", self.dims[0] % 2 == 0, "an even first width (the stem has half)")
        require(self, "depth", self.depth >= 2, "at least 2 (stages 3 and 4 share the blocks)")
        require(self, "stem_kernel", self.stem_kernel % 2 == 1, "an odd number")
        require(self, "stem_stride", self.stem_stride in (1, 2), "1 or 2")
        require(self, "drop_path_rate", 0 <= self.drop_path_rate < 1, "in [0, 1)")
        for width in self.dims[2:]:
            check_heads(self.heads, width)

    @property
    def fully_spiking(self) -> bool:
        """Whether a neuron stands before every convolution but the stem."""
        return True

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


# The order in which artifacts hold a Meta-SpikeFormer's fields, so that their bytes stay the same.
STORED_ORDER = (
    *("in_channels", "num_classes", "dims", "depth", "heads"),
    *("stem_kernel", "stem_stride", "drop_path_rate"),
    *("weight_bits", "stem_bits", "head_bits"),
    *("neuron", "levels", "time_steps", "decay", "tau", "threshold", "surrogate", "fully_spiking"),
    *("attention", "attention_scale", "attention_norm", "attention_gain"),
    *("rectify", "residual_gain", "layer_scale"),
)


@dataclass(frozen=True, kw_only=True)
class ModelConfig(PyramidConfig):
    """Configuration of a Meta-SpikeFormer and of its counterpart ANN."""

    family: ClassVar[str] = "metaspikeformer"
    SHAPE: ClassVar[tuple[str, ...]] = (*PyramidConfig.SHAPE, "layer_scale")
    ANN_FIELDS: ClassVar[dict[str, Any]] = {
        **NetworkConfig.ANN_FIELDS,
        "attention": "softmax",
        "fully_spiking": False,
    }

    fully_spiking: bool = option(False, "a neuron before every convolution but the stem")

    # Attention.
    attention: Attention = option("spike", "spike: without softmax")
    attention_scale: float | None = option(
        None, "of attention; none: 1/N for N tokens, E-SpikeFormer 2/sqrt(width of a head)"
    )
    attention_norm: bool = option(True, "batch norm between attention and its neuron")
    attention_gain: float = option(1.0, "the neuron after attention emits gain * count / D")

    layer_scale: float | None = option(
        None, "initial layer scale of transformer blocks; none: no scale"
    )

    def to_dict(self) -> dict[str, Any]:
        """As stored since before there were other families: no "family", fields in that order."""
        values = super().to_dict()
        return {name: values[name] for name in STORED_ORDER}

    def spiking(self) -> Self:
        """The spiking network that an ANN is the counterpart of, with binary neurons."""
        return self.replace(neuron="ielif", attention="spike", levels=1)

    def _check_family(self) -> None:
        require(self, "attention_gain", self.attention_gain > 0, "above 0")
        scale = self.attention_scale
        require(self, "attention_scale", scale is None or scale > 0, "above 0, or none for 1/N")
        super()._check_family()
        if self.is_spiking != (self.attention == "spike"):
            raise ValueError(
                f"neuron={self.neuron!r} with attention={self.attention!r}: "
                "spiking neurons go with spike attention, relu and gelu with softmax"
            )
        if not self.is_spiking and self.fully_spiking:
            raise ValueError("fully_spiking=True needs a spiking neuron, 'ielif' or 'lif'")


def are_bits(value: Any) -> bool:
    """Whether weights can have so many bits."""
    return value is None or value == TERNARY or (is_whole(value) and MIN_BITS <= value <= MAX_BITS)


def bits_text(bits: Bits) -> str:
    """Weights of so many bits, in words."""
    if bits is None:
        return "fp32"
    return TERNARY if bits == TERNARY else f"{bits}-bit"


def check_heads(heads: int, width: int) -> None:
    """ValueError unless `heads` divides the width of a block."""
    if width % heads:
        raise ValueError(f"heads={heads} does not divide the block width {width}")


def decided_by(neuron: Any) -> dict[str, Any]:
    """The fields that a neuron leaves no choice about."""
    if neuron == "lif":
        return {"levels": 1}
    return {"attention": "softmax"} if neuron in ANN_NEURONS else {}


# Fields that not all neurons read: those that do. ANNs' do not read what is about spikes.
_SPIKING: tuple[Neuron, ...] = ("ielif", "lif")
READ_BY: dict[str, tuple[Neuron, ...]] = {
    **dict.fromkeys(("tau", "threshold", "attention_threshold"), ("lif",)),
    **dict.fromkeys(("decay", "surrogate", "count_units", "rounding"), ("ielif",)),
    **dict.fromkeys(("levels", "rectify", "dvs_mode"), _SPIKING),
    **dict.fromkeys(("attention_scale", "attention_norm", "attention_gain"), _SPIKING),
}


def completed(
    fields: Mapping[str, Any], config: type[NetworkConfig] = ModelConfig
) -> dict[str, Any]:
    """Fields of a configuration with those added that the given neuron decides.

    What is given stays as it is, so that a contradiction is still an error of the configuration.
    """
    own = {f.name for f in dataclasses.fields(config)}
    decided = {k: v for k, v in decided_by(fields.get("neuron")).items() if k in own}
    return {**decided, **fields}


def is_whole(value: Any) -> bool:
    """Whether a value is an integer, which true and false are not."""
    return isinstance(value, int) and not isinstance(value, bool)


def _is_finite(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


# How a value of an annotated type is checked, and what is allowed.
_CHECKS: dict[Any, tuple[Callable[[Any], bool], str]] = {
    int: (is_whole, "a whole number"),
    float: (_is_finite, "a finite number"),
    float | None: (lambda value: value is None or _is_finite(value), "a finite number"),
    bool: (lambda value: isinstance(value, bool), "true or false"),
}
