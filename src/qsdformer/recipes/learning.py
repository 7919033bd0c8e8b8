"""The recipe's sections about what is learned; PyTorch is not needed to read them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from qsdformer.errors import require
from qsdformer.parsing import option

FEATURES = ("q", "k", "v")


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
