"""What the tasks share: a network that is trained, averaged, evaluated and saved."""

from __future__ import annotations

import hashlib
from typing import Any, cast

import torch
from lightning.pytorch import LightningModule
from timm.utils import ModelEmaV3
from torch import Tensor
from torch.optim import Optimizer

from qsdformer.data import DataInfo
from qsdformer.errors import UserError
from qsdformer.models.base import SpikingTransformer
from qsdformer.models.checkpoint import KEY, header
from qsdformer.models.dense.base import DenseNetwork
from qsdformer.models.dense.starting import start_backbone
from qsdformer.models.finetune import start_from
from qsdformer.models.networks import build_network
from qsdformer.recipes.recipe import Recipe
from qsdformer.recipes.tasks import Measures
from qsdformer.tasks.activity import ActivityPenalty
from qsdformer.tasks.optimisation import learning_rate, make_optimizer, set_rate

# Of an optimiser's groups: what a recipe says, and not how far training has come.
OPTIMISER_KEYS = ("betas", "momentum", "weight_decay", "lr_scale", "fused")


def step_seed(seed: int, step: int, rank: int) -> int:
    """A seed for the random numbers of one training step in one process."""
    digest = hashlib.blake2b(f"{seed}/{step}/{rank}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


class NetworkTask(LightningModule):
    """Trains one of our networks, in attribute `model`; a subclass says on what and how.

    Random numbers within a step depend on (seed, step, process) alone, so that a resumed run
    repeats what an uninterrupted one does.
    """

    def __init__(self, recipe: Recipe, info: DataInfo) -> None:
        super().__init__()
        self.recipe = recipe
        self.info = info
        self.train_config = recipe.train
        torch.manual_seed(recipe.seed)
        self.model = self.make_model()
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
        self.schedule_step = 0  # the step that this is if all epochs have as many as this one
        self.penalty: ActivityPenalty | None = None
        if recipe.activity is not None:
            self.penalty = ActivityPenalty(self.model, recipe.activity)

    def make_model(self) -> SpikingTransformer:
        """The network with new weights."""
        return build_network(self.recipe.model_config(self.info), self.info)

    def use_data(self, data: Any) -> None:
        """Take from the data module what the loss needs of the training set; here nothing."""

    @property
    def measures(self) -> Measures:
        """What the run's lines and files tell of it."""
        return self.recipe.measures

    def start_from(self, path: str) -> list[str]:
        """Take what fits of a checkpoint's weights, before training; lines that say what.

        A dense network takes all of its backbone.
        """
        if isinstance(self.model, DenseNetwork):
            lines = start_backbone(self.model, path)
        else:
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
        """Keep this run's optimiser keys, and not those of the run that a checkpoint is of."""
        own = self.configure_optimizers().param_groups
        for state in checkpoint.get("optimizer_states", ()):
            saved = state["param_groups"]
            if [len(g["params"]) for g in saved] != [len(g["params"]) for g in own]:
                raise UserError(
                    "cannot resume: the layers have other learning rates than in the checkpoint; "
                    "set train.layer_decay, head_lr and step_size_lr as they were there"
                )
            for group, new in zip(saved, own, strict=True):
                group.update({key: new[key] for key in OPTIMISER_KEYS if key in new})

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Set this step's learning rate and seed.

        The rate follows from epoch and batch, so that a schedule ends with the last epoch also
        where a resumed run has other batches; the seed from the number of the step.
        """
        self.schedule_step = self.current_epoch * int(self.trainer.num_training_batches) + batch_idx
        rate = learning_rate(self.schedule_step, self.total_steps, self.train_config)
        set_rate(cast(Optimizer, self.optimizers()), rate)
        torch.manual_seed(step_seed(self.recipe.seed, self.global_step, self.global_rank))
        if self.penalty is not None:
            self.penalty.clear()  # of what validation passed through the model

    def extra_losses(self, images: Tensor, logits: Tensor) -> dict[str, Tensor]:
        """What is added to the task's own loss, by name, weighted; the model has seen `images`.

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

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Make Lightning's checkpoint one of ours."""
        monitored = self.measures.monitored
        value = self.trainer.callback_metrics.get(monitored)
        progress: Any = self.trainer.fit_loop.epoch_progress.current
        done = progress.processed  # whole epochs
        in_epoch = progress.started > done
        extra = {
            "recipe": self.recipe.to_dict(),
            "epoch": done,
            monitored: None if value is None or in_epoch else float(value),
        }
        checkpoint[KEY] = header(self.model.config, self.info, extra)

    def _laid_out(self, images: Tensor) -> Tensor:
        if self.train_config.channels_last:
            return images.contiguous(memory_format=torch.channels_last)
        return images
