"""Optimisers: groups of parameters, and the learning rate of each step."""

from __future__ import annotations

import math
from typing import Any

from timm.optim import Lamb, param_groups_layer_decay
from torch import nn
from torch.optim import SGD, AdamW, Optimizer

from qsdformer.models.dense.base import DenseNetwork
from qsdformer.models.dense.rates import layerwise_groups, scale_rates
from qsdformer.nn.quantizers import quantized_layers
from qsdformer.recipes.learning import TrainConfig


def learning_rate(step: int, total: int, config: TrainConfig) -> float:
    """The rate of optimiser step `step` of `total`: linear warm-up, then the recipe's schedule.

    Warm-up rises from `warmup_start` of the peak over `warmup_steps`, or over the fraction
    `warmup` of all steps. Step 0 has a rate above 0; the last step ends the schedule.
    """
    peak = config.peak_lr
    rising = config.warmup_steps
    if rising is None:
        rising = round(config.warmup * total)
    if step < rising:
        start = config.warmup_start * peak
        return start + (peak - start) * (step + 1) / rising
    if config.schedule == "step":
        passed = sum(step >= epoch * total / config.epochs for epoch in config.lr_steps)
        return peak * config.lr_factor**passed
    progress = min(1.0, (step - rising) / max(1, total - 1 - rising))
    if config.schedule == "poly":
        falling = (1 - progress) ** config.power
    else:
        falling = 0.5 * (1 + math.cos(math.pi * progress))
    return config.final_lr + (peak - config.final_lr) * falling


def schedule_notes(config: TrainConfig, images: int) -> tuple[str, ...]:
    """What a run on so many images never gets to of its schedule, a line each."""
    notes = []
    late = [str(epoch) for epoch in config.lr_steps if epoch >= config.epochs]
    if late:
        notes.append(
            f"train.lr_steps: the rate is never lowered after epoch {' and '.join(late)}, with "
            f"train.epochs={config.epochs}"
        )
    total = config.epochs * max(1, images // config.global_batch)
    if config.warmup_steps is not None and config.warmup_steps > total:
        notes.append(
            f"train.warmup_steps={config.warmup_steps}: the run has only {total} steps, so that "
            "the rate never reaches train.lr"
        )
    return tuple(notes)


def step_size_notes(config: TrainConfig, model: nn.Module) -> tuple[str, ...]:
    """A line where a factor for step sizes has none to change."""
    if config.step_size_lr == 1 or _step_sizes(model):
        return ()
    return ("train.step_size_lr changes nothing: no weights of this network have step sizes",)


def set_rate(optimizer: Optimizer, rate: float) -> None:
    """Make `rate` that of all groups, each scaled as the recipe wants it."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group.get("lr_scale", 1.0)


def rate_of(optimizer: Optimizer) -> float:
    """The recipe's rate that `set_rate` was given last."""
    group = optimizer.param_groups[0]
    return float(group["lr"] / group.get("lr_scale", 1.0))


def parameter_groups(model: nn.Module, config: TrainConfig) -> list[dict[str, Any]]:
    """Optimiser groups: tensors of two or more dimensions decay, the others do not.

    Norms, biases, layer scales and quantiser step sizes are vectors, and so never decay. With
    `layer_decay` below 1 there are two groups for each layer that timm tells apart; `head_lr` and
    `step_size_lr` give the head and the step sizes groups of their own. `lr_scale` of a group is
    its factor of the learning rate.
    """
    return scale_rates(_layerwise(model, config), _step_sizes(model), config.step_size_lr)


def _step_sizes(model: nn.Module) -> list[nn.Parameter]:
    """The learned logarithms of the weights' step sizes."""
    logs = [layer.log_step_size for layer in quantized_layers(model).values()]
    return [log for log in logs if log is not None]


def _layerwise(model: nn.Module, config: TrainConfig) -> list[dict[str, Any]]:
    """The groups with which all of a layer learn at one rate."""
    decay = config.weight_decay
    if isinstance(model, DenseNetwork) and (config.layer_decay, config.head_lr) != (1, 1):
        return layerwise_groups(
            model,
            weight_decay=decay,
            layer_decay=config.layer_decay,
            head_rate=config.head_lr,
        )
    if config.layer_decay < 1:
        groups: list[dict[str, Any]] = param_groups_layer_decay(
            model, weight_decay=decay, layer_decay=config.layer_decay
        )
        return groups
    parameters = [p for p in model.parameters() if p.requires_grad]
    return [
        {"params": [p for p in parameters if p.dim() > 1], "weight_decay": decay},
        {"params": [p for p in parameters if p.dim() <= 1], "weight_decay": 0.0},
    ]


def can_fuse(config: TrainConfig, precision: str) -> bool:
    """Whether AdamW may be the fused one in Lightning's `precision`.

    The fused one takes gradients that a scaler has not yet unscaled. Lightning therefore refuses
    to clip them under any mixed precision, also under bfloat16, which has no scaler.
    """
    return config.clip_grad is None or "mixed" not in precision


def make_optimizer(model: nn.Module, config: TrainConfig, precision: str = "32-true") -> Optimizer:
    """AdamW, LAMB as published with the paper (timm's, with trust_clip), or SGD with momentum."""
    groups = parameter_groups(model, config)
    if config.optimizer == "lamb":
        return Lamb(groups, lr=config.peak_lr, betas=config.betas, trust_clip=True)
    if config.optimizer == "sgd":
        return SGD(groups, lr=config.peak_lr, momentum=config.betas[0], nesterov=True)
    fused = can_fuse(config, precision) or None  # None: PyTorch's choice among the others
    return AdamW(groups, lr=config.peak_lr, betas=config.betas, fused=fused)
