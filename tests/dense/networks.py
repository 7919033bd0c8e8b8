"""Tiny dense networks with settled statistics, for tests of what is made of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from qsdformer.data.base import DataInfo, ImageSize
from qsdformer.models.dense.base import DenseNetwork
from qsdformer.models.dense.building import build_dense
from qsdformer.models.dense.config import DenseConfig, DetectionConfig, SegmentationConfig
from qsdformer.models.dense.maps import convolutional_part
from qsdformer.models.dense.segmentation import SemanticFPN
from qsdformer.models.registry import model_config
from qsdformer.tasks.deployment import deployable

CLASSES = ("one", "two", "three")
SIZES: tuple[ImageSize, ...] = (32, (32, 48))


def backbone(**fields: Any) -> Any:
    tiny = {"dims": (8, 8, 12, 16), "depth": 4, "heads": 2, "fully_spiking": True}
    return model_config("metaspikeformer_tiny", **{**tiny, **fields})


def info_of(size: ImageSize) -> DataInfo:
    return DataInfo(
        image_size=size,
        channels=3,
        class_names=CLASSES,
        mean=(0.5, 0.4, 0.3),
        std=(0.25, 0.25, 0.3),
        fit="stretch",
    )


def segmentation_config(**fields: Any) -> SegmentationConfig:
    own = {"num_classes": len(CLASSES), "neck_width": 8, "head_width": 6}
    return SegmentationConfig(backbone=backbone(), **{**own, **fields})


def detection_config(**fields: Any) -> DetectionConfig:
    own: dict[str, Any] = {
        "num_classes": len(CLASSES),
        "neck_width": 8,
        "head_width": 6,
        "detector": "retinanet",
        "head_convs": 1,
        "fc_width": 8,
        "box_size": 4,
        "mask_size": 4,
        "mask_convs": 1,
        "canonical_scale": 32,
        "anchor_sizes": (6, 12, 24, 32),
        "anchor_octaves": 2,
        "score_threshold": 0.01,
        "proposals": 12,
        "detections": 10,
    }
    return DetectionConfig(backbone=backbone(), **{**own, **fields})


def settled(config: DenseConfig, size: ImageSize = 32) -> DenseNetwork:
    """A network in eval mode with statistics of random images."""
    torch.manual_seed(0)
    network = build_dense(config, info_of(size)).train()
    part = convolutional_part(network)
    heads = deployable(network, info_of(size)).heads.values()
    with torch.no_grad():
        for _ in range(5):
            part(torch.randn(4, 3, *info_of(size).sides))
            for head in heads:
                side = head.info.image_size
                head.part(0.5 + 0.5 * torch.randn(20, head.info.channels, side, side))
    return network.eval()


def balanced_segmenter(sides: tuple[int, int]) -> DenseNetwork:
    """A segmenter whose classes are about equally frequent, so that no figure is of one alone."""
    network = settled(segmentation_config())
    assert isinstance(network, SemanticFPN)
    with torch.no_grad():
        logits = network(torch.randn(4, 3, *sides))["mask"]
        network.head.predictor.bias -= logits.mean((0, 2, 3))
    return network


def write_scenes(root: Path, size: tuple[int, int], *, count: int, block: int = 1) -> Path:
    """Images of noise in blocks, with masks of blocks of 8 pixels, as ROOT/val/images and masks."""
    rng = np.random.default_rng(0)

    def noise(high: int, side: int, *depth: int) -> Image.Image:
        values = rng.integers(0, high, (size[0] // side, size[1] // side, *depth))
        return Image.fromarray(values.astype(np.uint8).repeat(side, 0).repeat(side, 1))

    for kind in ("images", "masks"):
        (root / "val" / kind).mkdir(parents=True)
    for number in range(count):
        noise(256, block, 3).save(root / "val" / "images" / f"{number}.png")
        noise(len(CLASSES), 8).save(root / "val" / "masks" / f"{number}.png")
    (root / "classes.txt").write_text("\n".join(CLASSES))
    return root


def pixels_of(size: ImageSize, count: int = 3) -> np.ndarray:
    """(count, 3, H, W) uint8."""
    shape = (count, 3, *info_of(size).sides)
    return np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)
