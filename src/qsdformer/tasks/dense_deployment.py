"""What of a dense network becomes integers: its convolutional part, and the heads for regions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from qsdformer.data import DataInfo
from qsdformer.data.detection.records import numbered_categories
from qsdformer.data.sections import DataSection
from qsdformer.errors import UserError
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
from qsdformer.tasks.deployment import Deployable, Head


def deployable_dense(
    network: DenseNetwork,
    info: DataInfo | None,
    category_ids: Sequence[int] | None = None,
    data: DataSection | None = None,
) -> Deployable:
    """As `deployable`, of a dense network."""
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
