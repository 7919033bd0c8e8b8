"""How well a run does its task, measured on the images that the report is about."""

from __future__ import annotations

from typing import Any, cast

import torch

from qsdformer.analysis.subject import Subject
from qsdformer.recipes.dense import SegmentationRecipe
from qsdformer.recipes.tasks import MEASURES
from qsdformer.tasks.detecting import detector_on, evaluate_boxes
from qsdformer.tasks.evaluation import evaluate, first_images
from qsdformer.tasks.segmenting import Segmenter, evaluate_masks, segmenter_on

TOP1 = "top-1 accuracy"


def scores_of(subject: Subject, limit: int | None, device: torch.device) -> dict[str, float]:
    """Fractions by the name of their measure on the first `limit` images, the chief one first.

    As `qsd eval` measures them. The network stays on `device`.
    """
    if subject.task == "classification":
        return {TOP1: evaluate(subject.model, subject.batches(limit), device).top1}
    subject.found.network.eval().to(device)
    word = MEASURES[subject.task].word
    if subject.task == "segmentation":
        return {word: _mean_iou(subject, limit, device)}
    return {f"{kind} {word}": ap for kind, ap in _precisions(subject, limit, device).items()}


def _mean_iou(subject: Subject, limit: int | None, device: torch.device) -> float:
    section = SegmentationRecipe.parse(subject.recipe.get("segmentation"))
    info = subject.data.info
    segment = segmenter_on(Segmenter.of(subject.found.network, section, info), device)
    batches = first_images(subject.data.val_dataloader(), limit)
    return evaluate_masks(segment, batches, len(info.class_names)).scores.mean_iou


def _precisions(subject: Subject, limit: int | None, device: torch.device) -> dict[str, float]:
    """AP50 of boxes, and of masks where the detector has any."""
    network = cast(Any, subject.found.network)
    batches = cast(Any, first_images(subject.data.val_dataloader(), limit))
    classes = len(subject.data.info.class_names)
    detect, masks = detector_on(network, device), network.config.has_masks
    scores = evaluate_boxes(detect, batches, classes, masks=masks).scores
    return {"box": scores.box.ap50} | ({} if scores.mask is None else {"mask": scores.mask.ap50})
