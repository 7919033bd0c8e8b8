"""What of a trained network becomes integers, and what is done with the results afterwards.

Of a classifier that is all of it. Of a dense network it is the convolutional part
(`models/dense/maps.py`): the whole of a segmentation network, a RetinaNet up to the decoding of its
boxes, backbone, neck and proposal head of an R-CNN, and the backbone alone where neck and heads
compute in full precision.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from qsdformer.data import DataInfo
from qsdformer.errors import UserError
from qsdformer.graph.post import DetectionPost, Level, Post, SegmentationPost
from qsdformer.models.dense.base import DenseNetwork
from qsdformer.models.dense.config import LEVELS, DetectionConfig
from qsdformer.models.dense.detection import RetinaNetDetector, anchor_generator
from qsdformer.models.dense.maps import convolutional_part
from qsdformer.models.dense.segmentation import MASK, SemanticFPN


@dataclass(frozen=True, kw_only=True)
class Deployable:
    """`part` of a `network` is what `qsdformer.lower` takes; `post` what is made of its outputs.

    `left_out` says in words what of the network the part lacks, apart from post-processing. Both
    sides of its images must be multiples of `multiple`.
    """

    network: nn.Module
    part: nn.Module
    post: Post | None = None
    left_out: str | None = None
    multiple: int = 1


def deployable(
    network: nn.Module, info: DataInfo | None, category_ids: Sequence[int] | None = None
) -> Deployable:
    """The part of a trained network that becomes integers; `info` names its classes.

    `category_ids` are the numbers of a detector's classes in its data set, by default from 1 on.
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
        post: Post = SegmentationPost(class_names=names, output=MASK, stride=network.stride)
        return Deployable(**common, post=post)
    if isinstance(network, RetinaNetDetector):
        post = retina_post(network, names, category_ids or range(1, len(names) + 1))
        return Deployable(**common, post=post)
    config = network.config
    assert isinstance(config, DetectionConfig)
    heads = "box and mask heads" if config.has_masks else "box head"
    return Deployable(**common, left_out=f"{heads}, which read single regions")


def require_whole(found: Deployable, path: str) -> None:
    """`UserError` for a network of which an exported file would hold a part only."""
    if found.left_out is not None:
        raise UserError(
            f"{path}: its {found.left_out} cannot be exported: of detectors RetinaNet exports "
            "whole, of segmentation networks those with weights of 2 to 8 bits and spiking "
            "neurons in neck and heads (bits, predictor_bits, neuron: backbone)"
        )


def retina_post(
    network: RetinaNetDetector, class_names: Sequence[str], category_ids: Sequence[int]
) -> DetectionPost:
    """How the maps of a RetinaNet become boxes."""
    config = network.config
    generator: Any = anchor_generator(config)
    detector: Any = network
    strides: tuple[int, ...] = detector.backbone.strides
    levels = [
        Level(
            scores=f"classes_{name}",
            boxes=f"boxes_{name}",
            stride=stride,
            sizes=tuple(map(float, sizes)),
            aspect_ratios=tuple(map(float, ratios)),
        )
        for name, stride, sizes, ratios in zip(
            LEVELS, strides, generator.sizes, generator.aspect_ratios, strict=True
        )
    ]
    return DetectionPost(
        class_names=tuple(class_names),
        category_ids=tuple(category_ids),
        levels=tuple(levels),
        score_threshold=detector.score_thresh,
        nms_threshold=detector.nms_thresh,
        candidates=detector.topk_candidates,
        detections=detector.detections_per_img,
        classes=config.num_classes + 1,
    )


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
