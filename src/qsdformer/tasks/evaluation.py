"""Accuracy of a model on labelled images."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from qsdformer.data import DataInfo
from qsdformer.data.base import numbered_classes
from qsdformer.errors import UserError
from qsdformer.nn.exact import exact_float32


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Accuracies are fractions of `images`; speed includes loading and preprocessing."""

    top1: float
    top5: float
    images: int
    images_per_second: float


@torch.inference_mode()
def evaluate(
    model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], device: torch.device
) -> Evaluation:
    """Top-1 and top-5 accuracy of `model`, put in eval mode, over (images, labels) batches.

    In full float32, so that a checkpoint's accuracy is the same on every device.
    """
    model.eval().to(device)
    with exact_float32(device):
        return evaluate_logits(lambda images: model(images.to(device)), batches)


def evaluate_logits(
    logits_of: Callable[[Tensor], Tensor], batches: Iterable[tuple[Tensor, Tensor]]
) -> Evaluation:
    """As `evaluate`, of anything that gives logits (B, classes) for images (B, C, H, W)."""
    top1 = top5 = images = 0
    begin = time.perf_counter()
    for batch, labels in batches:
        logits = logits_of(batch)
        best = logits.topk(min(5, logits.shape[1]), dim=1).indices.cpu()
        hits = best == labels[:, None]
        top1 += int(hits[:, 0].sum())
        top5 += int(hits.any(dim=1).sum())
        images += len(labels)
    if not images:
        raise UserError("there are no images to evaluate on")
    seconds = time.perf_counter() - begin
    return Evaluation(
        top1=top1 / images,
        top5=top5 / images,
        images=images,
        images_per_second=images / seconds,
    )


def check_fits(model_classes: int, model_info: DataInfo | None, data: DataInfo) -> None:
    """`UserError` if a model cannot be evaluated on data of another kind of image or class.

    Classes that the model calls by their numbers may have any names in the data.
    """
    classes = len(data.class_names)
    if model_classes != classes:
        raise UserError(
            f"the model has {model_classes} classes, but the dataset has {classes}: "
            "choose the dataset it was trained on with --data.name and --data.root"
        )
    if model_info is None:
        return
    if model_info.channels != data.channels:
        raise UserError(
            f"the model takes images of {model_info.channels} channels, but the dataset's "
            f"have {data.channels}: choose a dataset like the one it was trained on with "
            "--data.name and --data.root"
        )
    if model_info.class_names == numbered_classes(classes):
        return
    for mine, theirs in zip(model_info.class_names, data.class_names, strict=True):
        if mine != theirs:
            raise UserError(
                f"the model's class {mine!r} is {theirs!r} in the dataset: is it another one?"
            )


def first_images(
    batches: Iterable[tuple[Tensor, Tensor]], limit: int | None
) -> Iterator[tuple[Tensor, Tensor]]:
    """The first `limit` images of labelled batches, tensors or lists; None for all."""
    if limit is None:
        yield from batches
        return
    for images, labels in batches:
        yield images[:limit], labels[:limit]
        limit -= len(labels)
        if limit <= 0:
            return
