"""The regions of an R-CNN: floating-point proposals, RoIAlign and suppression around two graphs.

torchvision's own classes, in float32, with the graphs `box` and `mask` in place of their heads
(`graph/post.py`, `RegionPost`). What RoIAlign reads becomes spike counts by the thresholds of a
graph's first neuron; these are its pixels.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.roi_heads import RoIHeads
from torchvision.models.detection.rpn import RegionProposalNetwork
from torchvision.ops import MultiScaleRoIAlign

from qsdformer.graph.ops import Array
from qsdformer.graph.post import BOX, DELTAS, MASK, MASKS, SCORES, RegionPost
from qsdformer.models.dense.batching import Batching
from qsdformer.models.dense.pooling import region_pool

Size = tuple[int, int]  # height, width
# The real outputs of a graph by name, of pixels (N, C, H, W) uint8.
Run = Callable[[Array], dict[str, Array]]
# A network for regions: the thresholds of its first neuron, and what runs it.
Head = tuple[Sequence[float], Run]
REGIONS = 256  # that go through a graph at a time
UNUSED: dict[str, Any] = {  # of torchvision's classes, in training alone
    "fg_iou_thresh": 0.5,
    "bg_iou_thresh": 0.5,
    "batch_size_per_image": 1,
    "positive_fraction": 0.5,
}


def region_detections(
    post: RegionPost,
    outputs: Mapping[str, Array],
    heads: Mapping[str, Head],
    image: Size,
    places: Sequence[Size],
    sizes: Sequence[Size],
) -> list[dict[str, Tensor]]:
    """Boxes, labels, scores and perhaps masks (N, H, W) bool, as `detections` gives them.

    `heads` are what runs the networks for regions, each with the thresholds of its first neuron.
    """
    real = {name: torch.from_numpy(np.asarray(v, np.float32)) for name, v in outputs.items()}
    images = ImageList(torch.zeros(len(sizes), 1, *image), list(places))
    with torch.no_grad():
        proposals = _proposals(post, real, images)
        maps = OrderedDict((name, real[name]) for name in post.maps)
        found, _ = _region_heads(post, heads)(maps, proposals, images.image_sizes)
    back = Batching((0.0,), (1.0,), 1)
    return back.eval().postprocess(found, list(places), list(sizes))


def encoded(thresholds: Sequence[float], values: Tensor) -> Array:
    """Spike counts uint8 of real potentials: how many `thresholds` each has reached."""
    counts = torch.zeros(values.shape, dtype=torch.uint8)
    for threshold in thresholds:
        counts += values.double() >= threshold
    return counts.numpy()


def _proposals(post: RegionPost, real: Mapping[str, Tensor], images: ImageList) -> list[Tensor]:
    levels = post.levels
    generator = AnchorGenerator(
        tuple(level.sizes for level in levels), tuple(level.aspect_ratios for level in levels)
    )
    scores = [real[level.scores] for level in levels]
    network = RegionProposalNetwork(
        generator,
        _Given((scores, [real[level.boxes] for level in levels])),
        **UNUSED,
        pre_nms_top_n={"training": 0, "testing": post.candidates},
        post_nms_top_n={"training": 0, "testing": post.regions},
        nms_thresh=post.region_threshold,
    )
    grids = OrderedDict((level.scores, real[level.scores]) for level in levels)
    boxes, _ = network.eval()(images, grids)
    found: list[Tensor] = boxes
    return found


def _region_heads(post: RegionPost, heads: Mapping[str, Head]) -> RoIHeads:
    classes = len(post.class_names) + 1
    box = _Region(*heads[BOX], {SCORES: (classes,), DELTAS: (4 * classes,)})
    options: dict[str, Any] = {}
    if post.has_masks:
        side = 2 * post.mask_size
        options = {
            "mask_roi_pool": _pool(post, post.mask_size),
            "mask_head": _Region(*heads[MASK], {MASKS: (classes, side, side)}),
            "mask_predictor": _First(),
        }
    network = RoIHeads(
        _pool(post, post.box_size),
        box,
        nn.Identity(),
        **UNUSED,
        bbox_reg_weights=post.box_weights,
        score_thresh=post.score_threshold,
        nms_thresh=post.nms_threshold,
        detections_per_img=post.detections,
        **options,
    )
    return network.eval()


def _pool(post: RegionPost, size: int) -> MultiScaleRoIAlign:
    return region_pool(
        dict(zip(post.maps, post.map_strides, strict=True)),
        size,
        sampling=post.sampling,
        canonical_scale=post.canonical_scale,
        canonical_level=post.canonical_level,
    )


class _Given(nn.Module):
    """A result that is known, whatever the input."""

    def __init__(self, result: Any) -> None:
        super().__init__()
        self.result = result

    def forward(self, _: Any) -> Any:
        return self.result


class _Region(nn.Module):
    """A network for regions in place of a head: what RoIAlign reads to its outputs, in order.

    `shapes` are those of the outputs of one region.
    """

    def __init__(
        self, thresholds: Sequence[float], run: Run, shapes: Mapping[str, tuple[int, ...]]
    ) -> None:
        super().__init__()
        self.thresholds, self.run, self.shapes = thresholds, run, dict(shapes)

    def forward(self, regions: Tensor) -> tuple[Tensor, ...]:
        parts: dict[str, list[Tensor]] = {name: [] for name in self.shapes}
        for some in regions.split(REGIONS) if len(regions) else ():
            for name, value in self.run(encoded(self.thresholds, some)).items():
                parts[name].append(torch.from_numpy(value).float())
        return tuple(
            torch.cat(parts[name]).reshape(-1, *shape) if parts[name] else torch.zeros(0, *shape)
            for name, shape in self.shapes.items()
        )


class _First(nn.Module):
    """The first of several."""

    def forward(self, values: tuple[Tensor, ...]) -> Tensor:
        return values[0]
