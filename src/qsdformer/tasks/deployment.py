"""What of a trained network becomes integers, and what is done with the results afterwards.

Of a classifier that is all of it. Of a dense network it is the convolutional part
(`models/dense/maps.py`): the whole of a segmentation network, a RetinaNet up to the decoding of its
boxes, backbone, neck and proposal head of an R-CNN, and the backbone alone where neck and heads
compute in full precision. The box and mask heads of an R-CNN, which run once for each region, are
graphs of their own: they take the spike counts that their first neurons make of what RoIAlign
reads.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from qsdformer.data import DataInfo
from qsdformer.data.detection.records import numbered_categories
from qsdformer.data.sections import DataSection
from qsdformer.errors import UserError
from qsdformer.graph.integer import IntegerGraph
from qsdformer.graph.lowering import lower
from qsdformer.graph.post import (
    BOX,
    MASK,
    DetectionPost,
    Level,
    Post,
    RegionPost,
    SegmentationPost,
)
from qsdformer.models.dense.base import DenseNetwork
from qsdformer.models.dense.config import LEVELS, DetectionConfig
from qsdformer.models.dense.detection import RetinaNetDetector, anchor_generator
from qsdformer.models.dense.maps import POOLED, RegionBoxes, RegionMasks, convolutional_part
from qsdformer.models.dense.segmentation import MASK as LARGEST
from qsdformer.models.dense.segmentation import SemanticFPN
from qsdformer.nn.neurons import LIF
from qsdformer.nn.taps import spiking_neurons


@dataclass(frozen=True, kw_only=True)
class Deployable:
    """`part` of a `network` is what `qsdformer.lower` takes; `post` what is made of its outputs.

    `heads` are the parts for single regions, by name, and `left_out` says in words what is in none
    of them, apart from post-processing. Both sides of images must be multiples of `multiple`.
    """

    network: nn.Module
    part: nn.Module
    post: Post | None = None
    left_out: str | None = None
    multiple: int = 1
    heads: Mapping[str, Head] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Head:
    """A part for single regions; `info` describes its images, which are spike counts (0..D)."""

    part: nn.Module
    info: DataInfo


def lowered(found: Deployable, info: DataInfo, *, membrane_bits: int = 32) -> IntegerGraph:
    """The integer graph of all that becomes integers, with its post-processing."""
    heads = {
        name: lower(head.part, head.info, membrane_bits=membrane_bits)
        for name, head in found.heads.items()
    }
    return lower(
        found.part,
        info,
        membrane_bits=membrane_bits,
        post=found.post,
        multiple=found.multiple,
        heads=heads,
    )


def deployable(
    network: nn.Module,
    info: DataInfo | None,
    category_ids: Sequence[int] | None = None,
    data: DataSection | None = None,
) -> Deployable:
    """The part of a trained network that becomes integers; `info` names its classes.

    `category_ids` are the numbers of a detector's classes in its data set, by default from 1 on.
    `data` says what size images had for a segmentation network, by default that of `info`.
    """
    if not isinstance(network, DenseNetwork):
        return Deployable(network=network, part=network)
    common: dict[str, Any] = {
        "network": network,
        "part": convolutional_part(network),
        "multiple": _multiple(network),
    }
    if not network.config.lowers_whole:
        return Deployable(**common, left_out="full-precision neck and heads")
    names = _class_names(network, info)
    if isinstance(network, SemanticFPN):
        post: Post = SegmentationPost(
            class_names=names,
            output=LARGEST,
            stride=network.stride,
            shorter_side=getattr(data, "shorter_side", None),
            longest_side=getattr(data, "longest_side", None),
        )
        return Deployable(**common, post=post)
    if isinstance(network, RetinaNetDetector):
        post = retina_post(network, names, category_ids or numbered_categories(names))
        return Deployable(**common, post=post)
    post = region_post(network, names, category_ids or numbered_categories(names))
    heads = {BOX: _head(RegionBoxes(network), network, post.box_size)}
    if post.has_masks:
        heads[MASK] = _head(RegionMasks(network), network, post.mask_size)
    return Deployable(**common, post=post, heads=heads)


def parts_beside(heads: Iterable[str], left_out: str | None = None) -> list[str]:
    """What of a network is beside its main integer graph, in words: what is counted without it."""
    parts = [left_out] if left_out else []
    return [*parts, *(f"{name} head for each region" for name in heads)]


def require_whole(found: Deployable, path: str) -> None:
    """`UserError` for a network of which an exported file would hold a part only."""
    if found.left_out is not None:
        raise UserError(
            f"{path}: its {found.left_out} cannot become integers: train it with weights of 2 to "
            "8 bits and spiking neurons in neck and heads (bits, predictor_bits, neuron: backbone)"
        )


def retina_post(
    network: RetinaNetDetector, class_names: Sequence[str], category_ids: Sequence[int]
) -> DetectionPost:
    """How the maps of a RetinaNet become boxes."""
    detector: Any = network
    return DetectionPost(
        class_names=tuple(class_names),
        category_ids=tuple(category_ids),
        levels=_levels(network, "classes"),
        score_threshold=detector.score_thresh,
        nms_threshold=detector.nms_thresh,
        candidates=detector.topk_candidates,
        detections=detector.detections_per_img,
        classes=network.config.num_classes + 1,
    )


def region_post(
    network: DenseNetwork, class_names: Sequence[str], category_ids: Sequence[int]
) -> RegionPost:
    """How the maps of an R-CNN become boxes, and masks if it has a mask head."""
    detector: Any = network
    rpn, roi = detector.rpn, detector.roi_heads
    config = network.config
    assert isinstance(config, DetectionConfig)
    return RegionPost(
        class_names=tuple(class_names),
        category_ids=tuple(category_ids),
        levels=_levels(network, "objectness", "deltas"),
        maps=tuple(f"map_{name}" for name in POOLED),
        map_strides=tuple(detector.backbone.strides[: len(POOLED)]),
        candidates=rpn.pre_nms_top_n(),
        regions=rpn.post_nms_top_n(),
        region_threshold=rpn.nms_thresh,
        box_size=config.box_size,
        mask_size=config.mask_size if config.has_masks else 0,
        sampling=roi.box_roi_pool.sampling_ratio,
        canonical_scale=roi.box_roi_pool.canonical_scale,
        canonical_level=roi.box_roi_pool.canonical_level,
        box_weights=tuple(map(float, roi.box_coder.weights)),
        score_threshold=roi.score_thresh,
        nms_threshold=roi.nms_thresh,
        detections=roi.detections_per_img,
    )


def _levels(network: Any, scores: str, boxes: str = "boxes") -> tuple[Level, ...]:
    generator: Any = anchor_generator(network.config)
    strides: tuple[int, ...] = network.backbone.strides
    return tuple(
        Level(
            scores=f"{scores}_{name}",
            boxes=f"{boxes}_{name}",
            stride=stride,
            sizes=tuple(map(float, sizes)),
            aspect_ratios=tuple(map(float, ratios)),
        )
        for name, stride, sizes, ratios in zip(
            LEVELS, strides, generator.sizes, generator.aspect_ratios, strict=True
        )
    )


def _head(part: nn.Module, network: Any, size: int) -> Head:
    """A part for regions and its images: pixel c stands for a potential that makes c spikes."""
    neuron: Any = next(iter(spiking_neurons(part).values()))
    if isinstance(neuron, LIF):
        unit = 2 * neuron.tau * neuron.threshold
    else:
        unit = neuron.window / neuron.levels
    channels = network.config.neck_width
    info = DataInfo(
        image_size=size,
        channels=channels,
        class_names=(),
        mean=(0.0,) * channels,
        std=(1 / (255 * unit),) * channels,
    )
    return Head(part=part.train(network.training), info=info)


def _class_names(network: DenseNetwork, info: DataInfo | None) -> tuple[str, ...]:
    count = network.config.num_classes
    if info is None:
        return tuple(map(str, range(count)))
    if len(info.class_names) != count:
        raise UserError(f"{len(info.class_names)} class names for a model of {count} classes")
    return info.class_names


def _multiple(network: Any) -> int:
    """What both sides of an image must be multiples of."""
    if isinstance(network, SemanticFPN):
        return network.multiple
    multiple: int = network.transform.size_divisible
    return multiple
