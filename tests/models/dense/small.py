"""Dense networks as small as they can be, objects to find, and pixels."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from qsdformer.data.base import DataInfo
from qsdformer.models.dense.building import build_dense
from qsdformer.models.dense.config import DenseConfig, DetectionConfig, SegmentationConfig
from qsdformer.models.dense.detection import Detector
from qsdformer.models.registry import config_from_dict

SIZE = 64
CLASSES = tuple("abcde")
DETECTORS = ("mask_rcnn", "faster_rcnn", "retinanet")
INFO = DataInfo(
    image_size=SIZE, channels=3, class_names=CLASSES, mean=(0.5, 0.4, 0.6), std=(0.25, 0.3, 0.2)
)
BACKBONE: dict[str, Any] = {
    "dims": (4, 6, 8, 8),
    "depth": 2,
    "heads": 2,
    "stem_kernel": 3,
    "num_classes": 0,
}
HEADS = {"spiking": {}, "float": {"bits": None, "neuron": "relu"}}


def backbone(family: str = "metaspikeformer", **fields: Any) -> Any:
    """A pyramid family's smallest configuration."""
    return config_from_dict({"family": family, **BACKBONE, **fields})


def segmentation(**fields: Any) -> SegmentationConfig:
    own = {"backbone": backbone(), "num_classes": 5, "neck_width": 6, "head_width": 4}
    return SegmentationConfig(**{**own, **fields})


def detection(**fields: Any) -> DetectionConfig:
    own: dict[str, Any] = {
        "backbone": backbone(),
        "num_classes": 5,
        "neck_width": 6,
        "head_width": 4,
        "anchor_sizes": (8, 16, 32, 64),
        "head_convs": 1,
        "fc_width": 8,
        "mask_convs": 1,
        "canonical_scale": 32,
        "proposals": 20,
        "rois": 16,
        "detections": 10,
        "score_threshold": 0.001,
    }
    return DetectionConfig(**{**own, **fields})


def made(config: DenseConfig) -> Any:
    """The network of a configuration, in training mode, always with the same weights."""
    torch.manual_seed(0)
    return build_dense(config, INFO)


def settled(config: DenseConfig) -> Any:
    """A network in eval mode with statistics of random images."""
    network = made(config)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for _ in range(5):
            images = torch.rand(4, config.in_channels, SIZE, SIZE, generator=generator)
            if isinstance(network, Detector):
                network(list(images), objects(4))
            else:
                network(4 * images - 2)
    return network.eval()


def pixels(count: int = 2, seed: int = 0, size: int = SIZE) -> Tensor:
    """(count, 3, size, size) uint8."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8, generator=generator)


def normalised(images: Tensor) -> Tensor:
    """Pixels as the networks of `INFO` take them."""
    mean, std = (torch.tensor(x).view(-1, 1, 1) for x in (INFO.mean, INFO.std))
    return (images.float() / 255 - mean) / std


def objects(images: int) -> list[dict[str, Tensor]]:
    """An object for each map's anchors in each image, with boxes, labels and masks."""
    boxes = torch.tensor([[4.0, 6, 12, 14], [40, 20, 58, 36], [6, 20, 38, 52], [1, 2, 62, 63]])
    masks = torch.zeros(len(boxes), SIZE, SIZE, dtype=torch.uint8)
    for mask, box in zip(masks, boxes.int().tolist(), strict=True):
        mask[box[1] : box[3], box[0] : box[2]] = 1
    return [{"boxes": boxes, "labels": torch.tensor([1, 5, 2, 1]), "masks": masks}] * images


def no_objects() -> dict[str, Tensor]:
    """The target of an image without any."""
    return {
        "boxes": torch.zeros(0, 4),
        "labels": torch.zeros(0, dtype=torch.long),
        "masks": torch.zeros(0, SIZE, SIZE, dtype=torch.uint8),
    }
