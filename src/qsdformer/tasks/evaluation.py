"""Accuracy of a model on labelled images, and its predictions for unlabelled ones."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from qsdformer.data import DataInfo
from qsdformer.errors import UserError


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
    """Top-1 and top-5 accuracy of `model`, put in eval mode, over (images, labels) batches."""
    model.eval().to(device)
    top1 = top5 = images = 0
    begin = time.perf_counter()
    for batch, labels in batches:
        logits = model(batch.to(device))
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
    """`UserError` if a model cannot be evaluated on data of another kind of image or class."""
    classes = len(data.class_names)
    if model_classes != classes:
        raise UserError(
            f"the checkpoint has {model_classes} classes, but the dataset has {classes}: "
            "choose the dataset it was trained on with --data.name and --data.root"
        )
    if model_info is None:
        return
    if model_info.channels != data.channels:
        raise UserError(
            f"the checkpoint takes images of {model_info.channels} channels, but the dataset's "
            f"have {data.channels}"
        )
    for mine, theirs in zip(model_info.class_names, data.class_names, strict=True):
        if mine != theirs:
            raise UserError(
                f"the checkpoint's class {mine!r} is {theirs!r} in the dataset: is it another one?"
            )


@torch.inference_mode()
def top_classes(
    model: nn.Module, images: Tensor, names: tuple[str, ...], count: int
) -> list[list[tuple[str, float]]]:
    """The `count` likeliest classes of each image (B, C, H, W), with probabilities, best first."""
    probabilities = model(images).softmax(dim=1)
    values, indices = probabilities.topk(min(count, len(names)), dim=1)
    return [
        [(names[i], p) for i, p in zip(row_i, row_p, strict=True)]
        for row_i, row_p in zip(indices.tolist(), values.tolist(), strict=True)
    ]
