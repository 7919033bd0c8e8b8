"""Semantic segmentation: cross entropy over pixels, mean intersection over union of the set.

B images, C channels, K classes, H rows, W columns. Masks hold class indices, and 255 where a pixel
is neither learned nor counted.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torchmetrics import SumMetric

from qsdformer.data import DataInfo, DataModule
from qsdformer.data.segmentation.dataset import MaskDataset
from qsdformer.data.segmentation.labels import IGNORE
from qsdformer.errors import UserError
from qsdformer.nn.exact import exact_float32
from qsdformer.nn.scaling import scaled
from qsdformer.recipes.recipe import Recipe
from qsdformer.tasks.base import NetworkTask
from qsdformer.tasks.pictures import log_overlays
from qsdformer.tasks.segmenting import MaskScores, Segmenter, padded, parts

Batch = tuple[Any, Any]  # images and masks, each a tensor or a list of those of each image
SHOWN = 4  # evaluation images whose overlays TensorBoard gets


def check_weights(recipe: Recipe, classes: int) -> None:
    """`UserError` unless a recipe's weights of classes are as many as the images have classes."""
    given = None if recipe.segmentation is None else recipe.segmentation.class_weights
    if given is not None and len(given) != classes:
        raise UserError(
            f"segmentation.class_weights has {len(given)} numbers, but there are {classes} "
            "classes: give one for each"
        )


class Segmentation(NetworkTask):
    """Trains a segmentation network on (images, masks) batches."""

    weights: Tensor | None

    def __init__(self, recipe: Recipe, info: DataInfo) -> None:
        super().__init__(recipe, info)
        assert recipe.segmentation is not None
        self.section = recipe.segmentation
        classes = len(info.class_names)
        self.scores = MaskScores(classes)
        # NaN stays NaN. Both are sums, so that batches and processes make no difference.
        self.loss_sum = SumMetric(nan_strategy="disable")
        self.loss_weight = SumMetric(nan_strategy="disable")
        check_weights(recipe, classes)
        given = self.section.class_weights
        weights = None if given is None else torch.tensor(given)
        self.register_buffer("weights", weights, persistent=False)

    def use_data(self, data: DataModule) -> None:
        """Weights of the classes by how rare they are in the training masks, if wanted."""
        if self.section.balance > 0:
            assert isinstance(data.training_set, MaskDataset)
            self.weights = balanced(*data.training_set.class_pixels(), self.section.balance)

    @property
    def segmenter(self) -> Segmenter:
        """How images of any size go through the network that counts."""
        return Segmenter.of(self.evaluated, self.section, self.info)

    def training_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """Loss, pixel accuracy and the extra losses of images (B, C, H, W), masks (B, H, W)."""
        images, masks = batch
        height, width = masks.shape[-2:]
        images = padded(images, int(getattr(self.model, "multiple", 1)))
        coarse = self.model(self._laid_out(images))["mask"]
        logits = scaled(coarse, images.shape[-2:])[..., :height, :width]
        loss = mean_loss(*self._loss_sums(logits, masks))
        counted = masks != IGNORE
        right = (logits.detach().argmax(1) == masks) & counted
        accuracy = right.sum() / counted.sum().clamp(min=1)
        extra = self.extra_losses(images, coarse)
        noted = {name: value.detach() for name, value in extra.items()}
        return {"loss": sum(extra.values(), loss), "pixel_accuracy": accuracy, **noted}

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Count pixels, in full float32 whatever the training's precision."""
        segmenter = self.segmenter
        for index, (images, masks) in enumerate(parts(batch)):
            with exact_float32(self.device):
                logits = segmenter(self._laid_out(images), masks.shape[-2:])
            summed, weight = self._loss_sums(logits, masks)
            self.loss_sum.update(summed)
            self.loss_weight.update(weight)
            found = logits.argmax(1)
            self.scores.update(found, masks)
            if batch_idx == 0 and index == 0 and self.trainer.is_global_zero:
                log_overlays(self, images[:SHOWN], found[:SHOWN], masks[:SHOWN])

    def on_validation_epoch_end(self) -> None:
        """Report the metrics over all processes."""
        scores = self.scores.compute()
        self.log("val_miou", scores.mean_iou, sync_dist=True)
        self.log("val_pixel_accuracy", scores.pixel_accuracy, sync_dist=True)
        loss = mean_loss(self.loss_sum.compute(), self.loss_weight.compute())
        self.log("val_loss", loss, sync_dist=True)
        for metric in (self.scores, self.loss_sum, self.loss_weight):
            metric.reset()

    def _loss_sums(self, logits: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
        """The weighted sum over the pixels that count, and the sum of their weights."""
        weights = self.weights
        summed = F.cross_entropy(
            logits,
            masks,
            weight=None if weights is None else weights.to(logits.dtype),
            ignore_index=IGNORE,
            label_smoothing=self.train_config.label_smoothing,
            reduction="sum",
        )
        counted = masks != IGNORE
        if weights is None:
            return summed, counted.sum()
        return summed, (weights[torch.where(counted, masks, 0)] * counted).sum()


def mean_loss(summed: Tensor, weight: Tensor) -> Tensor:
    """The weighted mean; 0 where nothing weighs, though label smoothing leaves a sum there."""
    return summed / torch.where(weight > 0, weight, math.inf)


def balanced(pixels: Tensor, around: Tensor, power: float) -> Tensor:
    """Weights (K,) by median frequency (Eigen and Fergus, 2015), to a power; 0 if never seen.

    `pixels` are those of each class, `around` those of all masks that show it.
    """
    share = pixels / around.clamp(min=1)
    seen = pixels > 0
    if not seen.any():
        raise UserError("the training masks show no class: every pixel is ignored")
    ratio = share[seen].median() / share.clamp(min=torch.finfo(share.dtype).tiny)
    return torch.where(seen, ratio**power, 0.0).float()
