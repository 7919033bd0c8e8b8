"""Exported dense networks in place of trained ones: images in, maps or boxes out.

The integers of a graph, in whatever runtime it is, and the floating-point post-processing that its
section `post` describes (`runtimes/post.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from qsdformer.data.preprocessing import Preprocessing, filled
from qsdformer.errors import UserError
from qsdformer.graph.integer import IntegerGraph
from qsdformer.graph.ops import Array
from qsdformer.graph.post import DetectionPost, SegmentationPost
from qsdformer.runtimes.executors import to_pixels
from qsdformer.runtimes.onnx_predict import OnnxModel
from qsdformer.runtimes.post import detections, scaled

Model = IntegerGraph | OnnxModel


def real_outputs(model: Model, pixels: Array) -> dict[str, Array]:
    """The real outputs by name of uint8 pixels (B, C, H, W), of an artifact or an ONNX file."""
    if isinstance(model, OnnxModel):
        return model.outputs(pixels)
    return model.real_outputs(pixels)


@dataclass(frozen=True, kw_only=True)
class ExportedSegmenter:
    """A segmentation network of `qsd export`: normalised images to logits, as the trained one's."""

    model: Model
    post: SegmentationPost

    @property
    def pre(self) -> Preprocessing:
        """What images the network takes."""
        return self.model.preprocessing

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Logits (B, K, H, W) of images (B, C, H, W) that are at most of the network's size."""
        height, width = images.shape[-2:]
        if height > self.pre.sides[0] or width > self.pre.sides[1]:
            raise UserError(
                f"images of {height}x{width} pixels (height x width), but the exported network "
                f"takes {self.pre.sides[0]}x{self.pre.sides[1]}: leave out --inference whole"
            )
        pixels = filled(to_pixels(images, self.pre), self.pre)
        maps = real_outputs(self.model, pixels)[self.post.output]
        logits = scaled(torch.from_numpy(maps).float(), self.pre.sides)
        return {self.post.output: logits[..., :height, :width]}


@dataclass(frozen=True, kw_only=True)
class ExportedDetector:
    """A detector of `qsd export`: images to boxes, as the trained one's in eval mode."""

    model: Model
    post: DetectionPost

    @property
    def pre(self) -> Preprocessing:
        """What images the network takes."""
        return self.model.preprocessing

    def __call__(self, images: Sequence[Tensor]) -> list[dict[str, Tensor]]:
        """Boxes, labels and scores of images (C, h, w) in 0..1, in the pixels of each."""
        sizes = [(int(image.shape[-2]), int(image.shape[-1])) for image in images]
        pixels = torch.cat([self._fitted(image) for image in images])
        found = real_outputs(self.model, pixels.numpy())
        return detections(self.post, found, self.pre, sizes)

    def _fitted(self, image: Tensor) -> Tensor:
        """The pixels (1, C, H, W) that the network sees of an image."""
        place = self.pre.place_of((int(image.shape[-2]), int(image.shape[-1])))
        resized = image[None].cpu()
        if image.shape[-2:] != torch.Size(place):
            resized = F.interpolate(resized, size=place, mode="bilinear", antialias=True)
        pixels = (255 * resized).round().clamp(0, 255).to(torch.uint8)
        return torch.from_numpy(filled(pixels.numpy(), self.pre))
