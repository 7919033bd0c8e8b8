"""Image classification: cross entropy, top-1 and top-5 accuracy, averaged weights."""

from __future__ import annotations

import hashlib
import math
from typing import Any, cast

import torch
from lightning.pytorch import LightningModule
from timm.optim import Lamb
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import AdamW, Optimizer
from torchmetrics import MeanMetric
from torchmetrics.classification import MulticlassAccuracy

from qsdformer.data import DataInfo
from qsdformer.data.policies import batch_mix
from qsdformer.models.base import SpikingTransformer
from qsdformer.models.building import build
from qsdformer.models.checkpoint import KEY, header
from qsdformer.models.finetune import start_from
from qsdformer.nn.exact import exact_float32
from qsdformer.recipes.learning import TrainConfig
from qsdformer.recipes.recipe import Recipe
from qsdformer.tasks.activity import ActivityPenalty


def learning_rate(step: int, total: int, *, peak: float, final: float, warmup: float) -> float:
    """The rate of optimiser step `step` of `total`: linear warm-up, then a cosine to `final`.

    `warmup` is a fraction of all steps. Step 0 has a rate above 0; the last step ends the cosine.
    """
    rising = round(warmup * total)
    if step < rising:
        return peak * (step + 1) / rising
    progress = (step - rising) / max(1, total - 1 - rising)
    return final + (peak - final) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Two optimiser groups: tensors of two or more dimensions decay, the others do not.

    Norms, biases, layer scales and quantiser step sizes are vectors, and so never decay.
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    return [
        {"params": [p for p in parameters if p.dim() > 1], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.dim() <= 1], "weight_decay": 0.0},
    ]


def can_fuse(config: TrainConfig, precision: str) -> bool:
    """Whether AdamW may be the fused one in Lightning's `precision`.

    The fused one takes gradients that a scaler has not yet unscaled. Lightning therefore refuses
    to clip them under any mixed precision, also under bfloat16, which has no scaler.
    """
    return config.clip_grad is None or "mixed" not in precision


def make_optimizer(model: nn.Module, config: TrainConfig, precision: str = "32-true") -> Optimizer:
    """AdamW, or LAMB as published with the paper (timm's, with trust_clip)."""
    groups = parameter_groups(model, config.weight_decay)
    if config.optimizer == "lamb":
        return Lamb(groups, lr=config.peak_lr, betas=config.betas, trust_clip=True)
    fused = can_fuse(config, precision)
    return AdamW(groups, lr=config.peak_lr, betas=config.betas, fused=fused)


def step_seed(seed: int, step: int, rank: int) -> int:
    """A seed for the random numbers of one training step in one process."""
    digest = hashlib.blake2b(f"{seed}/{step}/{rank}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


class Classification(LightningModule):
    """Trains one of our networks, in attribute `model`, on (images, labels) batches.

    Random numbers within a step depend on (seed, step, process) alone, so that a resumed run
    repeats what an uninterrupted one does.
    """

    def __init__(self, recipe: Recipe, info: DataInfo) -> None:
        super().__init__()
        self.recipe = recipe
        self.info = info
        self.train_config = recipe.train
        torch.manual_seed(recipe.seed)
        self.model = build(recipe.model_config(info))
        if self.train_config.channels_last:
            self.model.to(memory_format=torch.channels_last)
        decay = self.train_config.ema
        self.ema: ModelEmaV3 | None = None
        if decay is not None:
            warmup = self.train_config.ema_warmup
            self.ema = ModelEmaV3(self.model, decay=decay, use_warmup=warmup)
            self.ema.requires_grad_(False)  # DDP waits for every gradient that may come
        if self.train_config.compile:
            self.model.compile()  # in place, so that names in the state dict stay as they are
        self.penalty: ActivityPenalty | None = None
        if recipe.activity is not None:
            self.penalty = ActivityPenalty(self.model, recipe.activity)
        self.mix = batch_mix(recipe.data, self.model.num_classes)
        classes = max(2, self.model.num_classes)
        self.top1 = MulticlassAccuracy(classes, average="micro")
        self.top5 = MulticlassAccuracy(classes, average="micro", top_k=min(5, classes))
        self.val_loss = MeanMetric()

    def start_from(self, path: str) -> list[str]:
        """Take what fits of a checkpoint's weights, before training; lines that say what."""
        lines = start_from(self.model, path, self.info)
        if self.ema is not None:
            self.ema.set(self.model)
        return lines

    @property
    def total_steps(self) -> int:
        """Optimiser steps of the whole run, as the recipe gives it."""
        return self.train_config.epochs * int(self.trainer.num_training_batches)

    @property
    def evaluated(self) -> SpikingTransformer:
        """The model that counts: the averaged one where there is one."""
        return self.model if self.ema is None else cast(SpikingTransformer, self.ema.module)

    def configure_optimizers(self) -> Optimizer:
        """The optimiser; its learning rate is set before each step."""
        return make_optimizer(self.model, self.train_config, str(self.trainer.precision))

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep this run's kind of AdamW: the saved one follows the clipping of an earlier run."""
        fused = can_fuse(self.train_config, str(self.trainer.precision))
        for state in checkpoint.get("optimizer_states", ()):
            for group in state["param_groups"]:
                if "fused" in group:
                    group["fused"] = fused

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Set this step's learning rate and seed, both functions of the step number alone."""
        config = self.train_config
        rate = learning_rate(
            self.global_step,
            self.total_steps,
            peak=config.peak_lr,
            final=config.final_lr,
            warmup=config.warmup,
        )
        for group in cast(Optimizer, self.optimizers()).param_groups:
            group["lr"] = rate
        torch.manual_seed(step_seed(self.recipe.seed, self.global_step, self.global_rank))
        if self.penalty is not None:
            self.penalty.clear()  # of what validation passed through the model

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
        end = self.recipe.data.mixup_off_epoch
        return end is None or self.current_epoch < end

    def extra_losses(self, images: Tensor, logits: Tensor) -> dict[str, Tensor]:
        """What is added to the cross entropy, by name, weighted; the model has just seen `images`.

        Here the penalty on spike activity, where the recipe has one; tasks add their own.
        """
        return {} if self.penalty is None else {"activity_loss": self.penalty.loss()}

    def on_fit_start(self) -> None:
        """Read what the extra losses need from now on."""
        if self.penalty is not None:
            self.penalty.open()

    def on_fit_end(self) -> None:
        """Leave no hooks behind."""
        if self.penalty is not None:
            self.penalty.close()

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Make the step and move the averaged weights, which a checkpoint in mid-epoch holds too.

        `global_step` does not count the step yet.
        """
        super().optimizer_step(*args, **kwargs)
        if self.ema is not None:
            self.ema.update(self.model, step=self.global_step + 1)

    def on_validation_epoch_start(self) -> None:
        """Evaluate the same norm statistics everywhere: those of process 0, which are saved."""
        if self.trainer.world_size > 1:
            for buffer in self.evaluated.buffers():
                torch.distributed.broadcast(buffer, 0)

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

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Make Lightning's checkpoint one of ours."""
        accuracy = self.trainer.callback_metrics.get("val_accuracy")
        progress: Any = self.trainer.fit_loop.epoch_progress.current
        done = progress.processed  # whole epochs
        in_epoch = progress.started > done
        extra = {
            "recipe": self.recipe.to_dict(),
            "epoch": done,
            "val_accuracy": None if accuracy is None or in_epoch else float(accuracy),
        }
        checkpoint[KEY] = header(self.model.config, self.info, extra)

    def _laid_out(self, images: Tensor) -> Tensor:
        if self.train_config.channels_last:
            return images.contiguous(memory_format=torch.channels_last)
        return images
