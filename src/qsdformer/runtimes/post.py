"""Floating-point post-processing: from the real outputs of a dense network to classes and boxes.

What to do says the section `post` of a graph (`graph/post.py`), so that an artifact needs nothing
else. The integers end where this begins: scaling maps up, sigmoids, decoding of boxes and
non-maximum suppression are torchvision's, in float32.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor
from torchvision.models.detection._utils import BoxCoder
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.transform import resize_boxes
from torchvision.ops import batched_nms, clip_boxes_to_image

from qsdformer.graph.candidates import by_anchor, candidates
from qsdformer.graph.ops import Array
from qsdformer.graph.post import DetectionPost

Size = tuple[int, int]  # height, width
BOX_WEIGHTS = (1.0, 1.0, 1.0, 1.0)


def detections(
    post: DetectionPost,
    outputs: Mapping[str, Array],
    image: Size,
    places: Sequence[Size],
    sizes: Sequence[Size],
) -> list[dict[str, Tensor]]:
    """Boxes (N, 4), labels from 1 (N,) and scores (N,) of each image, best first.

    `image` is the size that the network takes, `places` what of it shows each image, `sizes` the
    images' own, in whose pixels the boxes are.
    """
    real = {
        name: torch.from_numpy(np.asarray(value, np.float32)) for name, value in outputs.items()
    }
    anchors = anchors_of(post, real, image)
    found = []
    for i, (place, size) in enumerate(zip(places, sizes, strict=True)):
        maps = {name: value[i] for name, value in real.items()}
        result = _of_image(post, maps, anchors, place)
        result["boxes"] = resize_boxes(result["boxes"], list(place), list(size))
        found.append(result)
    return found


def anchors_of(post: DetectionPost, outputs: Mapping[str, Tensor], image: Size) -> list[Tensor]:
    """The anchors of each level, (H_i * W_i * A, 4), for maps of these outputs."""
    generator = AnchorGenerator(
        tuple(level.sizes for level in post.levels),
        tuple(level.aspect_ratios for level in post.levels),
    )
    maps = [outputs[level.scores][:1] for level in post.levels]
    blank = ImageList(torch.zeros(1, 1, *image), [image])
    (anchors,) = generator(blank, maps)
    pairs = zip(maps, post.levels, strict=True)
    return list(anchors.split([m.shape[-2] * m.shape[-1] * level.anchors for m, level in pairs]))


def _of_image(
    post: DetectionPost, maps: Mapping[str, Tensor], anchors: Sequence[Tensor], size: Size
) -> dict[str, Tensor]:
    coder = BoxCoder(weights=BOX_WEIGHTS)
    boxes, scores, labels = [], [], []
    for level, own in zip(post.levels, anchors, strict=True):
        best, places, classes = candidates(post, maps[level.scores])
        deltas = by_anchor(maps[level.boxes], 4)[places]
        boxes.append(clip_boxes_to_image(coder.decode_single(deltas, own[places]), size))
        scores.append(best)
        labels.append(classes + (not post.has_background))
    all_boxes, all_scores, all_labels = (torch.cat(parts) for parts in (boxes, scores, labels))
    kept = batched_nms(all_boxes, all_scores, all_labels, post.nms_threshold)[: post.detections]
    return {"boxes": all_boxes[kept], "labels": all_labels[kept], "scores": all_scores[kept]}
