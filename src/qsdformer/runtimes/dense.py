"""Exported dense networks in place of trained ones: images in, maps or boxes out.

The integers of a graph, in whatever runtime it is, and the floating-point post-processing that its
section `post` describes (`runtimes/post.py`).
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from qsdformer.data.preprocessing import Preprocessing
from qsdformer.errors import UserError
from qsdformer.graph.integer import IntegerGraph
from qsdformer.graph.ops import Array
from qsdformer.graph.post import DetectionPost, RegionPost, SegmentationPost
from qsdformer.nn.scaling import scaled
from qsdformer.runtimes.executors import to_pixels
from qsdformer.runtimes.onnx_predict import OnnxModel
from qsdformer.runtimes.post import Size, detections
from qsdformer.runtimes.regions import Head, Run, region_detections
from qsdformer.runtimes.runnable import RunnableGraph, runnable
from qsdformer.tasks import detecting
from qsdformer.tasks.network_images import normalised, placed, whole

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
        pixels = to_pixels(whole(images, self.pre), self.pre)
        maps = real_outputs(self.model, pixels)[self.post.output]
        logits = scaled(torch.from_numpy(maps).float(), self.pre.sides)
        return {self.post.output: logits[..., :height, :width]}


@dataclass(frozen=True, kw_only=True)
class ExportedDetector:
    """A detector of `qsd export`: images to boxes, as the trained one's in eval mode."""

    model: Model
    post: DetectionPost | RegionPost

    @property
    def pre(self) -> Preprocessing:
        """What images the network takes."""
        return self.model.preprocessing

    @functools.cached_property
    def heads(self) -> dict[str, Head]:
        """The networks for regions, in the runtime of the whole."""
        if isinstance(self.model, OnnxModel):
            return {n: (h.thresholds, h.model.outputs) for n, h in self.model.heads.items()}
        found: dict[str, Head] = {}
        for name, head in self.model.heads.items():
            runner = head
            if isinstance(self.model, RunnableGraph):
                runner = runnable(head, self.model.threads, exact=self.model.exact)
            found[name] = head.input_thresholds, runner.real_outputs
        return found

    def region_counts(self, images: Sequence[Tensor]) -> dict[str, Array]:
        """The spike counts (N, C, size, size) that graphs for regions get of images, by name."""
        seen: dict[str, list[Array]] = {name: [] for name in self.heads}

        def recorded(name: str, run: Run) -> Run:
            def kept(pixels: Array) -> dict[str, Array]:
                seen[name].append(pixels)
                return run(pixels)

            return kept

        assert isinstance(self.post, RegionPost)
        found = real_outputs(self.model, fitted_pixels(images, self.pre))
        places = [self.pre.place_of((image.shape[-2], image.shape[-1])) for image in images]
        heads = {n: (limits, recorded(n, run)) for n, (limits, run) in self.heads.items()}
        region_detections(self.post, found, heads, self.pre.sides, places, places)
        return {name: np.concatenate(parts) for name, parts in seen.items() if parts}

    def detect(self, images: Sequence[Tensor], sizes: Sequence[Size]) -> list[dict[str, Tensor]]:
        """Boxes, labels and scores of images (C, h, w) in 0..1, for the sizes of their files."""
        found = real_outputs(self.model, fitted_pixels(images, self.pre))
        places = [self.pre.place_of((image.shape[-2], image.shape[-1])) for image in images]
        if isinstance(self.post, RegionPost):
            seen = (self.pre.sides, places, sizes)
            regions = region_detections(self.post, found, self.heads, *seen)
            return [detecting.detections(one) for one in regions]
        return detections(self.post, found, self.pre.sides, places, sizes)


def fitted_pixels(images: Sequence[Tensor], pre: Preprocessing) -> Array:
    """The pixels (B, C, H, W) uint8 that a network sees of images (C, h, w) in 0..1."""
    return to_pixels(torch.cat([placed(normalised(image, pre), pre) for image in images]), pre)
