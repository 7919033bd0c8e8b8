"""Image classification: cross entropy, top-1 and top-5 accuracy."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F
from torchmetrics import MeanMetric
from torchmetrics.classification import MulticlassAccuracy

from qsdformer.data import DataConfig, DataInfo
from qsdformer.data.policies import batch_mix
from qsdformer.nn.exact import exact_float32
from qsdformer.recipes.recipe import Recipe
from qsdformer.tasks.base import NetworkTask


class Classification(NetworkTask):
    """Trains a classifier on (images, labels) batches."""

    def __init__(self, recipe: Recipe, info: DataInfo) -> None:
        super().__init__(recipe, info)
        assert isinstance(recipe.data, DataConfig)
        self.mix_off = recipe.data.mixup_off_epoch
        self.mix = batch_mix(recipe.data, self.model.num_classes)
        classes = max(2, self.model.num_classes)
        self.top1 = MulticlassAccuracy(classes, average="micro")
        self.top5 = MulticlassAccuracy(classes, average="micro", top_k=min(5, classes))
        self.val_loss = MeanMetric(nan_strategy="disable")  # NaN is to show, not to be left out

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> dict[str, Tensor]:
        """Loss, accuracy and the extra losses of images (B, C, H, W) with labels (B,)."""
        images, labels = batch
        targets = labels
        if self.mix is not None and self._mixing():
            images, targets = self.mix(images, labels)
            labels = targets.argmax(1)  # of the image that has the larger share
        logits = self.model(self._laid_out(images))
        smoothing = self.train_config.label_smoothing
        loss = F.cross_entropy(logits, targets, label_smoothing=smoothing)
        accuracy = (logits.detach().argmax(1) == labels).float().mean()
        extra = self.extra_losses(images, logits)
        noted = {name: value.detach() for name, value in extra.items()}
        return {"loss": sum(extra.values(), loss), "accuracy": accuracy, **noted}

    def _mixing(self) -> bool:
        """Whether the recipe still mixes images in this epoch."""
        return self.mix_off is None or self.current_epoch < self.mix_off

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Collect loss and accuracy, of full float32 whatever the training's precision."""
        images, labels = batch
        with exact_float32(self.device):
            logits = self.evaluated.forward(self._laid_out(images))
        self.val_loss.update(F.cross_entropy(logits, labels, reduction="none"))
        self.top1.update(logits, labels)
        self.top5.update(logits, labels)

    def on_validation_epoch_end(self) -> None:
        """Report the metrics over all processes."""
        metrics = {"val_accuracy": self.top1, "val_top5": self.top5, "val_loss": self.val_loss}
        for name, metric in metrics.items():
            self.log(name, metric.compute(), sync_dist=True)
            metric.reset()
