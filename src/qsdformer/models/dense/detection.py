"""torchvision's Mask R-CNN, Faster R-CNN and RetinaNet with our backbone, neck and heads.

Images are a list of (C, h, w) in 0..1 of any sizes; normalising and padding happen inside.
Labels are 1..classes; 0 is the background. In training mode the result is a dictionary of losses,
else one of boxes, labels, scores and, from Mask R-CNN, masks (K, H, W) bool for each image.
"""

from __future__ import annotations

import math
from collections import OrderedDict, defaultdict
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, cast

from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.detection import FasterRCNN, MaskRCNN, RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.ops import MultiScaleRoIAlign

from qsdformer.data.base import IMAGENET_MEAN, IMAGENET_STD
from qsdformer.models.dense.backbone import Backbone, check_strides
from qsdformer.models.dense.base import DenseNetwork, Part
from qsdformer.models.dense.batching import Batching, Size
from qsdformer.models.dense.config import DETECTION_MAPS, LEVELS, DetectionConfig
from qsdformer.models.dense.heads import (
    BoxHead,
    BoxPredictor,
    MaskHead,
    MaskPredictor,
    RetinaHead,
    RPNHead,
)
from qsdformer.models.dense.pooling import region_pool
from qsdformer.models.dense.pyramid import Pyramid

if TYPE_CHECKING:
    from qsdformer.data.base import DataInfo

CANONICAL_LEVEL = 4  # log2 of the stride of the map that boxes of the canonical scale are read from


class DetectorBackbone(nn.Module):
    """Backbone and neck: images (B, C, H, W) to the maps "0", "1", "2" and "pool".

    "pool" is every second value of the last one along both axes.
    """

    def __init__(self, config: DetectionConfig) -> None:
        super().__init__()
        self.features = Backbone(
            config.backbone, DETECTION_MAPS, norm=config.norm, frozen_stages=config.frozen_stages
        )
        check_strides(self.features.strides, "pooling regions of interest")
        self.neck = Pyramid(
            config.heads, self.features.channels, config.neck_width, config.upsampling
        )
        self.out_channels = config.neck_width

    @property
    def strides(self) -> tuple[int, ...]:
        """Strides of the four maps."""
        return (*self.features.strides, 2 * self.features.strides[-1])

    def forward(self, images: Tensor) -> OrderedDict[str, Tensor]:
        """Maps (B, neck_width, H_i, W_i) from fine to coarse, in float32.

        torchvision places anchors in their type: in half precision they would miss by pixels.
        """
        maps = [x.float() for x in self.neck(self.features(images))]
        maps.append(subsampled(maps[-1]))
        return OrderedDict(zip(LEVELS, maps, strict=True))


def subsampled(x: Tensor) -> Tensor:
    """Every second value along both axes; no arithmetic."""
    return F.max_pool2d(x, 1, 2)


class Detector(DenseNetwork):
    """What our detectors add to torchvision's."""

    PATH = "backbone.features.body"
    PARTS: ClassVar[dict[Part, tuple[str, ...]]] = {
        "backbone": ("backbone.features",),
        "neck": ("backbone.neck",),
        "heads": ("rpn", "roi_heads"),
    }
    config: DetectionConfig

    def forward(self, images: list[Tensor], targets: list[dict[str, Tensor]] | None = None) -> Any:
        """Losses in training mode, else detections of each image."""
        with self.prepared():
            return super().forward(images, targets)

    def detect(self, images: list[Tensor], sizes: Sequence[Size]) -> list[dict[str, Tensor]]:
        """What is found in each image, in eval mode, for the sizes that they were resized from.

        Images go through the network with those of their padded size only: padding that is a
        neighbour's would change what is found.
        """
        batching = cast(Batching, self.transform)
        alike: dict[Size, list[int]] = defaultdict(list)
        for index, image in enumerate(images):
            alike[batching.padded(image.shape[-2:])].append(index)
        found: dict[int, dict[str, Tensor]] = {}
        try:
            for indices in alike.values():
                batching.sizes = [sizes[index] for index in indices]
                # Not called, so that it is not compiled: counts are those of `qsd eval`.
                results = self.forward([images[index] for index in indices])
                found.update(zip(indices, results, strict=True))
        finally:
            batching.sizes = None
        return [found[index] for index in range(len(images))]


class MaskRCNNDetector(Detector, MaskRCNN):
    """Mask R-CNN."""


class FasterRCNNDetector(Detector, FasterRCNN):
    """Faster R-CNN."""


class RetinaNetDetector(Detector, RetinaNet):
    """RetinaNet."""

    PARTS: ClassVar[dict[Part, tuple[str, ...]]] = {**Detector.PARTS, "heads": ("head",)}

    def postprocess_detections(
        self,
        head_outputs: dict[str, list[Tensor]],
        anchors: list[list[Tensor]],
        image_shapes: list[Size],
    ) -> list[dict[str, Tensor]]:
        """torchvision's, in which the background, class 0, is nothing that could be found."""
        logits = [F.pad(x[..., 1:], (1, 0), value=-math.inf) for x in head_outputs["cls_logits"]]
        found: list[dict[str, Tensor]] = super().postprocess_detections(
            {**head_outputs, "cls_logits": logits}, anchors, image_shapes
        )
        return found


def build_detector(config: DetectionConfig, info: DataInfo | None = None) -> Detector:
    """The detector of a configuration, with new weights.

    `info` says how images are normalised; without it, as ImageNet's are.
    """
    backbone = DetectorBackbone(config)
    channels = config.in_channels
    mean, std = (IMAGENET_MEAN, IMAGENET_STD) if channels == 3 else ((0.5,) * channels,) * 2
    if config.detector == "retinanet":
        detector = _retinanet(config, backbone)
    else:
        detector = _rcnn(config, backbone)
    detector.transform = Batching(
        mean if info is None else info.mean,
        std if info is None else info.std,
        backbone.strides[-1],
    )
    detector.config = config
    return detector


def anchor_generator(config: DetectionConfig) -> AnchorGenerator:
    """Anchors of each map: its size, and those within its octave, in every ratio."""
    octaves = config.anchor_octaves
    sizes = tuple(
        tuple(int(size * 2 ** (i / octaves)) for i in range(octaves))
        for size in config.anchor_sizes
    )
    return AnchorGenerator(sizes, (config.anchor_ratios,) * len(sizes))


def _retinanet(config: DetectionConfig, backbone: DetectorBackbone) -> Detector:
    generator, classes = anchor_generator(config), config.num_classes + 1
    anchors = generator.num_anchors_per_location()[0]
    return RetinaNetDetector(
        backbone,
        classes,
        anchor_generator=generator,
        head=RetinaHead(config, anchors, classes, len(LEVELS)),
        score_thresh=config.score_threshold,
        nms_thresh=config.nms_threshold,
        detections_per_img=config.detections,
        topk_candidates=config.proposals,
    )


def _rcnn(config: DetectionConfig, backbone: DetectorBackbone) -> Detector:
    layers, width, classes = config.heads, config.neck_width, config.num_classes + 1
    generator = anchor_generator(config)
    anchors = generator.num_anchors_per_location()[0]
    parts: dict[str, Any] = {
        "rpn_anchor_generator": generator,
        "rpn_head": RPNHead(layers, width, config.head_width, anchors, len(LEVELS)),
        "rpn_pre_nms_top_n_train": 2 * config.proposals,
        "rpn_pre_nms_top_n_test": config.proposals,
        "rpn_post_nms_top_n_train": config.proposals,
        "rpn_post_nms_top_n_test": config.proposals,
        "box_roi_pool": _pool(config, backbone.strides, config.box_size),
        "box_head": BoxHead(layers, width, config.box_size, config.fc_width),
        "box_predictor": BoxPredictor(layers, config.fc_width, classes),
        "box_batch_size_per_image": config.rois,
        "box_score_thresh": config.score_threshold,
        "box_nms_thresh": config.nms_threshold,
        "box_detections_per_img": config.detections,
    }
    if not config.has_masks:
        return FasterRCNNDetector(backbone, **parts)
    return MaskRCNNDetector(
        backbone,
        mask_roi_pool=_pool(config, backbone.strides, config.mask_size),
        mask_head=MaskHead(layers, width, config.head_width, config.mask_convs),
        mask_predictor=MaskPredictor(layers, config.head_width, classes),
        **parts,
    )


def _pool(config: DetectionConfig, strides: Sequence[int], size: int) -> MultiScaleRoIAlign:
    """Regions are read from the backbone's strides alone, which increase; never from "pool"."""
    return region_pool(
        dict(zip(LEVELS[:-1], strides, strict=False)),
        size,
        sampling=2,
        canonical_scale=config.canonical_scale,
        canonical_level=CANONICAL_LEVEL,
    )
