"""What a detector finds: how well that went over a set, and how it is written down.

Boxes are x1, y1, x2, y2 in pixels; labels count from 1. AP is COCO's average precision: the mean
over classes, and over overlaps of 50 % to 95 % that a box or mask must have with an object. AP50
and AP75 are those at one overlap.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torchmetrics.detection import MeanAveragePrecision

from qsdformer.data.detection.dataset import DetectionBatch, Target
from qsdformer.data.detection.segments import encode_mask
from qsdformer.errors import UserError
from qsdformer.nn.exact import exact_float32

Detections = dict[str, Tensor]  # boxes (K, 4), labels (K,), scores (K,), masks (K, H, W) bool
# What is found in images (C, H, W), for their sizes (height, width) in the files.
Detect = Callable[[list[Tensor], list[tuple[int, int]]], list[Detections]]


def detector_on(network: nn.Module, device: torch.device) -> Detect:
    """What a trained detector finds, in eval mode and full float32; it is moved to `device`."""
    detector = cast(Any, network.eval().to(device))

    def detect(images: list[Tensor], sizes: list[tuple[int, int]]) -> list[Detections]:
        with torch.inference_mode(), exact_float32(device):
            found = detector.detect([image.to(device) for image in images], sizes)
        return [detections(one) for one in found]

    return detect


@dataclass(frozen=True, kw_only=True)
class Precision:
    """Average precision over all classes and of each; NaN for a class without objects."""

    ap: float
    ap50: float
    ap75: float
    of_class: tuple[float, ...]
    of_class50: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class DetectionScores:
    """How well boxes fit, and masks where the detector has any."""

    box: Precision
    mask: Precision | None


@dataclass(frozen=True, kw_only=True)
class DetectionEvaluation:
    """What a detector finds on a set; speed includes loading and preprocessing."""

    scores: DetectionScores
    images: int
    images_per_second: float
    results: list[dict[str, Any]] = field(default_factory=list, repr=False)


class _Precision(MeanAveragePrecision):
    """torchmetrics' own, for processes that may have seen different numbers of images."""

    def _sync_dist(self, dist_sync_fn: Any = None, process_group: Any = None) -> None:
        for name in self._defaults:
            shares: list[Any] = [None] * dist.get_world_size(process_group)
            dist.all_gather_object(shares, getattr(self, name), process_group)
            setattr(self, name, [entry for share in shares for entry in share])


class BoxScores(nn.Module):
    """Average precision of all images given, over all processes."""

    def __init__(self, classes: int, *, masks: bool) -> None:
        super().__init__()
        self.classes = classes
        self.kinds = ("bbox", "segm") if masks else ("bbox",)
        self.metric = _Precision(
            iou_type=cast(Any, self.kinds),
            backend="faster_coco_eval",
            class_metrics=True,
            extended_summary=True,
        )
        self.metric.warn_on_many_detections = False

    def update(self, found: Sequence[Detections], targets: Sequence[Target]) -> None:
        """Count what was found in images against what is there; crowds excuse what is in them."""
        keys = ("boxes", "labels", "iscrowd", "area", *(("masks",) if "segm" in self.kinds else ()))
        wanted = [{key: target[key] for key in keys} for target in targets]
        for target in wanted:
            if "masks" in target:
                target["masks"] = target["masks"].bool()
        self.metric.update(list(found), wanted)

    def compute(self) -> DetectionScores:
        """What was counted since the last `reset`."""
        values = self.metric.compute()
        several = len(self.kinds) > 1
        parts = [self._precision(values, f"{k}_" if several else "") for k in self.kinds]
        return DetectionScores(box=parts[0], mask=parts[1] if several else None)

    def reset(self) -> None:
        """Forget everything."""
        self.metric.reset()

    def _precision(self, values: Mapping[str, Any], prefix: str) -> Precision:
        """Of one kind; -1, which stands for no objects at all, is 0 here."""
        labels = values["classes"].reshape(-1).tolist()
        # Overlaps, recalls, classes, areas (all first), numbers of detections (the most last).
        table = values[f"{prefix}precision"][..., 0, -1]
        of_class, of_class50 = ([math.nan] * self.classes for _ in range(2))
        for index, label in enumerate(labels):
            of_class[int(label) - 1] = _mean(table[:, :, index])
            of_class50[int(label) - 1] = _mean(table[:1, :, index])
        ap, ap50, ap75 = (
            max(0.0, float(values[f"{prefix}{name}"])) for name in ("map", "map_50", "map_75")
        )
        return Precision(
            ap=ap, ap50=ap50, ap75=ap75, of_class=tuple(of_class), of_class50=tuple(of_class50)
        )


def _mean(precisions: Tensor) -> float:
    counted = precisions[precisions > -1]
    return float(counted.double().mean()) if len(counted) else math.nan


def sizes_of(targets: Iterable[Target]) -> list[tuple[int, int]]:
    """Height and width in the file of each image."""
    return [(int(target["size"][0]), int(target["size"][1])) for target in targets]


def detections(found: Mapping[str, Tensor]) -> Detections:
    """What our detectors return for an image, on the CPU."""
    return {key: value.detach().cpu() for key, value in found.items()}


@torch.inference_mode()
def evaluate_boxes(
    detect: Detect,
    batches: Iterable[DetectionBatch],
    classes: int,
    *,
    masks: bool,
    category_ids: Sequence[int] | None = None,
) -> DetectionEvaluation:
    """Scores of `detect`, which gives each image's `detections`, over batches of images.

    With `category_ids`, what files call the classes, all that is found is kept in COCO's result
    format. Raises `UserError` where there are no images.
    """
    scores, images = BoxScores(classes, masks=masks), 0
    results: list[dict[str, Any]] = []
    begin = time.perf_counter()
    for batch, targets in batches:
        found = detect(batch, sizes_of(targets))
        scores.update(found, targets)
        images += len(batch)
        if category_ids is not None:
            for one, target in zip(found, targets, strict=True):
                results += coco_results(one, int(target["image_id"]), category_ids)
    if not images:
        raise UserError("there are no images to evaluate on")
    speed = images / (time.perf_counter() - begin)
    return DetectionEvaluation(
        scores=scores.compute(), images=images, images_per_second=speed, results=results
    )


def coco_results(
    found: Detections, image_id: int, category_ids: Sequence[int]
) -> list[dict[str, Any]]:
    """An image's detections in COCO's result format, the likeliest first."""
    results = []
    for index, (box, label, score) in enumerate(
        zip(
            found["boxes"].tolist(), found["labels"].tolist(), found["scores"].tolist(), strict=True
        )
    ):
        x1, y1, x2, y2 = box
        entry: dict[str, Any] = {
            "image_id": image_id,
            "category_id": category_ids[label - 1],
            "bbox": [round(v, 2) for v in (x1, y1, x2 - x1, y2 - y1)],
            "score": round(score, 5),
        }
        if "masks" in found:
            entry["segmentation"] = encode_mask(np.asarray(found["masks"][index]))
        results.append(entry)
    return results
