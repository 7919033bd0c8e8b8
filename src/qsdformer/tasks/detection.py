"""Detection: the losses of torchvision's detectors, average precision of the set."""

from __future__ import annotations

from typing import Any, cast

from torch import Tensor

from qsdformer.data import DataInfo
from qsdformer.data.detection.dataset import DetectionBatch
from qsdformer.data.detection.module import DetectionDataModule
from qsdformer.data.detection.records import numbered_categories
from qsdformer.models.checkpoint import KEY
from qsdformer.models.dense.config import DetectionConfig
from qsdformer.models.dense.detection import Detector
from qsdformer.nn.exact import exact_float32
from qsdformer.recipes.recipe import Recipe
from qsdformer.tasks.base import NetworkTask
from qsdformer.tasks.detecting import BoxScores, detections, sizes_of
from qsdformer.tasks.pictures import log_boxes

SHOWN = 4  # evaluation images that TensorBoard gets with what is found in them
CATEGORY_IDS = "category_ids"  # in a checkpoint's header: what the files call the classes


class Detection(NetworkTask):
    """Trains a detector on batches of images and targets."""

    def __init__(self, recipe: Recipe, info: DataInfo) -> None:
        super().__init__(recipe, info)
        config = cast(DetectionConfig, cast(Any, self.model).config)
        self.scores = BoxScores(len(info.class_names), masks=config.has_masks)
        self.category_ids = numbered_categories(info.class_names)

    def use_data(self, data: DetectionDataModule) -> None:
        """Keep what the files call the classes."""
        self.category_ids = data.category_ids

    def training_step(self, batch: DetectionBatch, batch_idx: int) -> dict[str, Tensor]:
        """The sum of the detector's losses, and each of them."""
        images, targets = batch
        losses: dict[str, Tensor] = self.model(images, targets)
        extra = self.extra_losses(images[0], next(iter(losses.values())))
        every = {**losses, **extra}
        noted = {name: value.detach() for name, value in every.items()}
        first, *others = every.values()
        return {"loss": sum(others, first), **noted}

    def validation_step(self, batch: DetectionBatch, batch_idx: int) -> None:
        """Count what is found, in full float32 whatever the training's precision."""
        images, targets = batch
        detector = cast(Detector, cast(Any, self.evaluated))
        with exact_float32(self.device):
            found = [detections(one) for one in detector.detect(images, sizes_of(targets))]
        there = [{key: value.cpu() for key, value in target.items()} for target in targets]
        self.scores.update(found, there)
        if batch_idx == 0 and self.trainer.is_global_zero:
            log_boxes(self, images[:SHOWN], found[:SHOWN], there[:SHOWN])

    def on_validation_epoch_end(self) -> None:
        """Report the metrics over all processes."""
        scores = self.scores.compute()
        self.scores.reset()
        values = {
            "val_map50": scores.box.ap50,
            "val_map": scores.box.ap,
            "val_map75": scores.box.ap75,
        }
        if scores.mask is not None:
            values |= {
                "val_mask_map50": scores.mask.ap50,
                "val_mask_map": scores.mask.ap,
                "val_mask_map75": scores.mask.ap75,
            }
        for name, value in values.items():
            self.log(name, value, sync_dist=True)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """As every checkpoint of ours, with the ids of the classes in the files."""
        super().on_save_checkpoint(checkpoint)
        checkpoint[KEY]["extra"][CATEGORY_IDS] = list(self.category_ids)
