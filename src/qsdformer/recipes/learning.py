"""The recipe's sections on how and from whom is learned; read without PyTorch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from qsdformer.errors import require
from qsdformer.parsing import option

FEATURES = ("q", "k", "v")


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How to train. `batch_size` is per process; learning rates are per optimiser step."""

    epochs: int = option(10, "passes over the training set")
    batch_size: int = option(128, "images per process and step")
    eval_batch_size: int | None = option(None, "images per evaluation step; none: batch_size")
    optimizer: Literal["adamw", "lamb", "sgd"] = option(
        "adamw", "lamb is timm's, with trust_clip; sgd has Nesterov's momentum, the first of betas"
    )
    lr: float = option(4e-3, "peak learning rate")
    lr_base_batch: int | None = option(None, "lr is for this global batch, scaled linearly")
    min_lr: float = option(0.0, "learning rate at the end of the cosine")
    warmup: float = option(0.1, "linear warm-up, as a fraction of all steps")
    # `added`: not written where it is left at its default, so that recipes read as they did.
    warmup_steps: int | None = option(
        None, "linear warm-up in steps, in place of warmup", added=True
    )
    warmup_start: float = option(0.0, "share of lr that warm-up starts from", added=True)
    schedule: Literal["cosine", "poly", "step"] = option(
        "cosine", "how lr falls after warm-up: to min_lr, or by lr_factor at epochs", added=True
    )
    power: float = option(1.0, "of the schedule poly", added=True)
    lr_steps: tuple[int, ...] = option(
        (), "epochs after which the schedule step lowers lr", added=True
    )
    lr_factor: float = option(0.1, "of the schedule step", added=True)
    layer_decay: float = option(
        1.0, "factor of lr from one block to the one before it, as in timm", added=True
    )
    head_lr: float = option(1.0, "factor of lr for the head of a dense network", added=True)
    step_size_lr: float = option(1.0, "factor of lr for the weights' step sizes", added=True)
    weight_decay: float = option(0.05, "for tensors of two or more dimensions only")
    betas: tuple[float, float] = option((0.9, 0.999), "of the optimiser's moving averages")
    label_smoothing: float = option(0.0, "in [0, 1)")
    ema: float | None = option(None, "decay of the averaged weights that are evaluated")
    ema_warmup: bool = option(True, "let the decay rise to `ema` over the first steps")
    clip_grad: float | None = option(None, "largest gradient norm")
    precision: Literal["auto", "32-true", "bf16-mixed", "16-mixed"] = option(
        "auto", "auto: bf16-mixed on GPUs that have bfloat16, 32-true elsewhere"
    )
    compile: bool = option(False, "torch.compile for the training step")
    channels_last: bool = option(False, "memory format of images and weights")
    accelerator: Literal["auto", "cpu", "gpu"] = option("auto", "where to train")
    devices: int = option(1, "processes per node")
    num_nodes: int = option(1, "machines")
    save_every: int = option(1, "epochs between writes of last.ckpt")
    save_minutes: float | None = option(
        None, "minutes between further writes of last.ckpt, within an epoch", added=True
    )
    log_every: int = option(50, "steps between rows of metrics.csv")

    def __post_init__(self) -> None:
        object.__setattr__(self, "betas", tuple(self.betas))
        object.__setattr__(self, "lr_steps", tuple(self.lr_steps))
        for name in ("epochs", "batch_size", "devices", "num_nodes", "save_every", "log_every"):
            require(self, name, getattr(self, name) >= 1, "a whole number, at least 1")
        for name in ("eval_batch_size", "lr_base_batch", "warmup_steps"):
            value = getattr(self, name)
            require(self, name, value is None or value >= 1, "at least 1, or none")
        require(self, "lr", math.isfinite(self.lr) and self.lr > 0, "above 0")
        require(self, "min_lr", 0 <= self.min_lr <= self.lr, "between 0 and lr")
        require(self, "warmup", 0 <= self.warmup < 1, "in [0, 1), a fraction of all steps")
        require(self, "warmup_start", 0 <= self.warmup_start <= 1, "in [0, 1], a share of lr")
        for name in ("power", "head_lr", "step_size_lr"):
            value = getattr(self, name)
            require(self, name, math.isfinite(value) and value > 0, "above 0")
        for name in ("lr_factor", "layer_decay"):
            require(self, name, 0 < getattr(self, name) <= 1, "in (0, 1]")
        steps = self.lr_steps
        require(
            self,
            "lr_steps",
            all(e >= 1 for e in steps) and list(steps) == sorted(set(steps)),
            "rising epochs, from 1",
        )
        stepped = self.schedule == "step"
        require(
            self, "lr_steps", bool(steps) == stepped, "given with schedule step, and only there"
        )
        ok = math.isfinite(self.weight_decay) and self.weight_decay >= 0
        require(self, "weight_decay", ok, "0 or more")
        of_schedules = {"power": "poly", "lr_factor": "step"}
        for name, schedule in of_schedules.items():
            ok = self.schedule == schedule or getattr(self, name) == getattr(type(self), name)
            require(self, name, ok, f"left out: it is for the schedule {schedule}")
        ok = not stepped or self.min_lr == 0
        require(self, "min_lr", ok, "left out: the schedule step ends where its last step leads")
        require(self, "betas", all(0 <= b < 1 for b in self.betas), "two numbers in [0, 1)")
        ok = self.optimizer != "sgd" or self.betas[0] > 0
        require(self, "betas", ok, "a momentum above 0 first (train.optimizer is sgd)")
        ok = self.save_minutes is None or 0 < self.save_minutes < math.inf
        require(self, "save_minutes", ok, "above 0, or none")
        require(self, "label_smoothing", 0 <= self.label_smoothing < 1, "in [0, 1)")
        require(self, "ema", self.ema is None or 0 < self.ema < 1, "in (0, 1), or none")
        ok = self.clip_grad is None or (math.isfinite(self.clip_grad) and self.clip_grad > 0)
        require(self, "clip_grad", ok, "above 0, or none")

    @property
    def global_batch(self) -> int:
        """Images per optimiser step, over all processes."""
        return self.batch_size * self.devices * self.num_nodes

    @property
    def peak_lr(self) -> float:
        """The learning rate after warm-up, scaled to the global batch if `lr_base_batch` is set."""
        return self.lr if self.lr_base_batch is None else self.lr * self._lr_scale

    @property
    def final_lr(self) -> float:
        """The learning rate at the end; not scaled, but never above the peak."""
        return min(self.min_lr, self.peak_lr)

    @property
    def _lr_scale(self) -> float:
        return self.global_batch / self.lr_base_batch if self.lr_base_batch else 1.0


@dataclass(frozen=True, kw_only=True)
class DistillConfig:
    """From which teacher a student learns, and how strongly."""

    teacher: str = option("ann", "ann (the counterpart), a recipe, a checkpoint, or timm:NAME")
    teacher_weights: str = option(
        "pretrained", "of a timm teacher: pretrained (downloaded), or a file"
    )
    teacher_neuron: Literal["relu", "gelu"] = option("relu", "of the counterpart ANN")
    teacher_epochs: int | None = option(
        None, "of a teacher trained here; none: its recipe's, or the counterpart's student's"
    )
    teacher_keys: Mapping[str, Any] | None = option(
        None, "recipe keys of a teacher trained here, such as {train.lr: 0.002}"
    )
    fgd_weight: float = option(1.0, "of the fine-grained loss")
    logit_weight: float = option(0.0, "of the loss on logits")
    temperature: float = option(2.0, "of the loss on logits")
    features: tuple[Literal["q", "k", "v"], ...] = option(FEATURES, "compared by FGD")
    source: Literal["counts", "membrane"] = option(
        "counts", "the student's features: spike counts / D, or membrane"
    )
    schedule: Literal["constant", "linear", "cosine"] = option(
        "constant", "of both weights over the run; the others end at 0"
    )

    def __post_init__(self) -> None:
        object.__setattr__(self, "features", tuple(self.features))
        for name in ("fgd_weight", "logit_weight"):
            value = getattr(self, name)
            require(self, name, math.isfinite(value) and value >= 0, "0 or more")
        ok = self.fgd_weight > 0 or self.logit_weight > 0
        require(self, "fgd_weight", ok, "above 0 where logit_weight is 0, or leave out distill")
        ok = math.isfinite(self.temperature) and self.temperature > 0
        require(self, "temperature", ok, "above 0")
        require(self, "features", len(self.features) >= 1, "at least one of q, k, v")
        once = len(set(self.features)) == len(self.features)
        require(self, "features", once, "q, k and v at most once each")
        ok = self.teacher_epochs is None or self.teacher_epochs >= 1
        require(self, "teacher_epochs", ok, "at least 1, or none")
        require(self, "teacher", self.teacher != "", "ann, a recipe, a checkpoint or timm:NAME")


@dataclass(frozen=True, kw_only=True)
class ActivityConfig:
    """A penalty on spike activity above a target."""

    weight: float = option(1.0, "of the penalty weight * max(0, activity - target)")
    target: float = option(0.0, "activity, in [0, 1), below which nothing is penalised")
    kind: Literal["rate", "group"] = option(
        "rate", "rate: of single neurons; group: of 4 consecutive channels"
    )

    def __post_init__(self) -> None:
        ok = math.isfinite(self.weight) and self.weight >= 0
        require(self, "weight", ok, "0 or more")
        require(self, "target", 0 <= self.target < 1, "in [0, 1), a share of neurons or groups")
        require(self, "kind", self.kind in ("rate", "group"), "rate or group")
