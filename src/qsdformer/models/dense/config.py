"""What a dense network is: a backbone's configuration and that of its neck and heads.

Read without PyTorch. `bits` and `neuron` decide what neck and heads are made of: the backbone's
neurons and k-bit weights, or ReLU and full precision as in an ANN, from the same classes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self, get_args, get_origin, get_type_hints

from qsdformer.errors import UserError, require
from qsdformer.models.registry import config_from_dict
from qsdformer.nn.config import (
    ALLOWED_BITS,
    Bits,
    NetworkConfig,
    PyramidConfig,
    are_bits,
    bits_text,
)

HeadNeuron = Literal["backbone", "relu"]
NormKind = Literal["batch", "frozen", "sync"]
Upsampling = Literal["nearest", "bilinear"]
DetectorKind = Literal["mask_rcnn", "faster_rcnn", "retinanet"]

# Initial scale of the maps that are added to another one in neck and head, whatever that of the
# backbone's residual branches: two thirds of a membrane potential's own deviation.
SUMMAND_GAIN = 0.2
STAGES = 5  # of a pyramid: the stem, and the four that timm and the publication count
LARGEST_COUNT = 2**20
SEGMENTATION_MAPS = (0, 1, 2, 3)  # strides 2, 4, 8, 16 of a stem of stride 2
DETECTION_MAPS = (1, 2, 3)  # strides 4, 8, 16
LEVELS = ("0", "1", "2", "pool")  # a detector's maps: three of the backbone, one subsampled


@dataclass(frozen=True, kw_only=True)
class DenseConfig:
    """What segmentation and detection share.

    `num_classes` are the classes of the data; a detector adds the background itself. Bits are per
    weight, 2 to 8, "ternary", or None for full precision; `predictor_bits` are those of the last
    layers, which make logits and boxes, where `bits` is not None. `norm`: "batch" norms as usual;
    "frozen": those of the backbone keep the statistics that it starts from, also in training;
    "sync": statistics over the batches of all processes. The first `frozen_stages` stages of the
    backbone are not trained, and their norms keep their statistics.
    """

    task: ClassVar[str]
    # Whole numbers that are at least 1.
    COUNTS: ClassVar[tuple[str, ...]] = ("num_classes", "neck_width", "head_width")

    backbone: PyramidConfig
    num_classes: int
    neck_width: int = 128
    head_width: int = 128
    bits: Bits = 4
    predictor_bits: Bits = 8
    neuron: HeadNeuron = "backbone"
    upsampling: Upsampling = "nearest"
    norm: NormKind = "batch"
    frozen_stages: int = 0

    def __post_init__(self) -> None:
        self._check_types()
        for name in self.COUNTS:
            value = getattr(self, name)
            require(self, name, 1 <= value <= LARGEST_COUNT, f"1 to {LARGEST_COUNT}")
        for name in ("bits", "predictor_bits"):
            require(self, name, are_bits(getattr(self, name)), ALLOWED_BITS)
        require(self, "frozen_stages", 0 <= self.frozen_stages <= STAGES, f"0 to {STAGES}")
        self._check_task()

    def _check_types(self) -> None:
        if not isinstance(self.backbone, PyramidConfig):
            family = getattr(self.backbone, "family", type(self.backbone).__name__)
            raise UserError(
                f"{family} has one token grid, but dense tasks need maps of several strides: take "
                "a metaspikeformer or an e_spikeformer as the backbone"
            )
        if self.backbone.num_classes != 0:  # its classifier is no part of a dense network
            object.__setattr__(self, "backbone", self.backbone.replace(num_classes=0))
        for name, kind in get_type_hints(type(self)).items():
            value, origin = getattr(self, name), get_origin(kind)
            if origin is Literal:
                allowed = get_args(kind)
                require(self, name, value in allowed, f"one of {', '.join(allowed)}")
            elif origin is tuple:
                member = get_args(kind)[0]
                whole = isinstance(value, (tuple, list)) and len(value) > 0
                what = "whole numbers" if member is int else "numbers"
                ok = whole and all(_is_number(x, member) and x > 0 for x in value)
                require(self, name, ok, f"one or more {what} above 0")
                object.__setattr__(self, name, tuple(value))
            elif kind is int:
                require(self, name, _is_number(value, int), "a whole number")
            elif kind is float:
                require(self, name, _is_number(value, float), "a number")

    def _check_task(self) -> None:
        """ValueError for values of the task's own fields that cannot be."""

    @property
    def heads(self) -> NetworkConfig:
        """The layers of neck and heads: neurons without time steps, norms in the firing window.

        The maps that a neck reads are means over time.
        """
        # Without time nothing leaks: a LIF neuron fires where its input reaches the threshold.
        own: dict[str, Any] = {"time_steps": 1, "rectify": "all", "tau": 1.0}
        own["residual_gain"] = SUMMAND_GAIN
        backbone = self.backbone
        if self.neuron == "relu" and backbone.is_spiking:
            backbone = backbone.ann("relu")
        return backbone.replace(weight_bits=self.bits, head_bits=self.last_bits, **own)

    @property
    def last_bits(self) -> Bits:
        """Bits of the layers that make logits and boxes."""
        return None if self.bits is None else self.predictor_bits

    @property
    def is_spiking(self) -> bool:
        """Whether the backbone's activations are spike counts."""
        return self.backbone.is_spiking

    @property
    def lowers_whole(self) -> bool:
        """Whether neck and heads too can become integers: spikes and k-bit weights throughout."""
        return self.heads.is_spiking and None not in (self.bits, self.last_bits)

    @property
    def in_channels(self) -> int:
        """Channels of an image."""
        return self.backbone.in_channels

    @property
    def levels(self) -> int:
        """D, the largest spike count of the backbone's neurons."""
        return self.backbone.levels

    @property
    def time_steps(self) -> int:
        """T of the backbone."""
        return self.backbone.time_steps

    def summary(self) -> str:
        """What a report says of the network beside its weights and neurons."""
        neck = bits_text(self.bits)
        kind = "spiking" if self.heads.is_spiking else "relu"
        return (
            f"{self.backbone.summary()}; {neck} {kind} neck and heads, "
            f"{self.neck_width} and {self.head_width} wide"
        )

    def replace(self, **changes: Any) -> Self:
        """A copy with some fields changed, checked again."""
        return dataclasses.replace(self, **changes)

    def ann(self) -> Self:
        """The counterpart ANN of the whole: the same maps and layers, ReLU and full precision."""
        return self.replace(backbone=self.backbone.ann(), bits=None, neuron="backbone")

    def to_dict(self) -> dict[str, Any]:
        """Plain values only, as stored in checkpoints; "task" says which network."""
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        values = {k: list(v) if isinstance(v, tuple) else v for k, v in fields.items()}
        return {"task": self.task, **values, "backbone": self.backbone.to_dict()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """The inverse of `to_dict`; unknown fields are an error that names them."""
        fields = {k: v for k, v in values.items() if k != "task"}
        unknown = sorted(set(fields) - set(cls.own_fields()) - {"backbone"})
        if unknown:
            raise ValueError(f"unknown fields of a {cls.task} network: {', '.join(unknown)}")
        if not isinstance(fields.get("backbone"), Mapping):
            raise ValueError(f"a {cls.task} network needs its backbone's configuration")
        return cls(**{**fields, "backbone": config_from_dict(fields["backbone"])})

    @classmethod
    def own_fields(cls) -> tuple[str, ...]:
        """Names of the fields beside the backbone: what a recipe's section may set."""
        return tuple(f.name for f in dataclasses.fields(cls) if f.name != "backbone")


@dataclass(frozen=True, kw_only=True)
class SegmentationConfig(DenseConfig):
    """A semantic feature pyramid: one map of logits at the stride of the backbone's stem."""

    task: ClassVar[str] = "segmentation"

    upsampling: Upsampling = "bilinear"


@dataclass(frozen=True, kw_only=True)
class DetectionConfig(DenseConfig):
    """A detector of torchvision's with our backbone, neck and heads.

    Sizes are in pixels of the resized image; resizing is the data's affair. `anchor_sizes` are one
    for each of the four maps; `anchor_octaves` puts that many sizes between one and its double.
    A box of `canonical_scale` pixels is read from the map of stride 16 (levels shift by one with
    each halving of its size). Masks are `mask_size` x 2 pixels a box.
    """

    task: ClassVar[str] = "detection"
    COUNTS: ClassVar[tuple[str, ...]] = (
        *DenseConfig.COUNTS,
        *("head_convs", "fc_width", "box_size", "mask_convs", "mask_size"),
        *("anchor_octaves", "canonical_scale", "proposals", "rois", "detections"),
    )

    neck_width: int = 256
    head_width: int = 256
    detector: DetectorKind = "mask_rcnn"

    anchor_sizes: tuple[int, ...] = (32, 64, 128, 256)
    anchor_ratios: tuple[float, ...] = (0.5, 1.0, 2.0)
    anchor_octaves: int = 1

    head_convs: int = 4  # RetinaNet: convolutions of each tower
    fc_width: int = 1024
    box_size: int = 7  # RoIAlign's grid for boxes
    mask_convs: int = 4
    mask_size: int = 14  # RoIAlign's grid for masks
    canonical_scale: int = 224

    proposals: int = 1000  # of an image that reach the box head
    rois: int = 512  # of an image that the box head is trained on
    detections: int = 100  # of an image that are kept
    score_threshold: float = 0.05
    nms_threshold: float = 0.5

    def _check_task(self) -> None:
        four = len(self.anchor_sizes) == len(LEVELS)
        require(self, "anchor_sizes", four, f"{len(LEVELS)} sizes, one for each map")
        for name in ("score_threshold", "nms_threshold"):
            require(self, name, 0 <= getattr(self, name) <= 1, "in [0, 1]")

    @property
    def has_masks(self) -> bool:
        """Whether it finds a mask for each object."""
        return self.detector == "mask_rcnn"


TASKS: dict[str, type[DenseConfig]] = {
    config.task: config for config in (SegmentationConfig, DetectionConfig)
}


def dense_config_from_dict(values: Mapping[str, Any]) -> DenseConfig:
    """The inverse of a dense configuration's `to_dict`; ValueError for an unknown task or field."""
    task = values.get("task")
    if task not in TASKS:
        raise ValueError(f"unknown task {task!r}: known are {', '.join(TASKS)}")
    return TASKS[task].from_dict(values)


def _is_number(value: Any, kind: type) -> bool:
    kinds = int if kind is int else (int, float)
    return isinstance(value, kinds) and not isinstance(value, bool)
