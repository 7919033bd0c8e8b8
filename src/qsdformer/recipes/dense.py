"""The recipe's sections `segmentation` and `detection`; read without PyTorch.

The model's section stays that of the backbone. Neck and heads, and how they are used, are here:
the keys of the network's own configuration (`models/dense/config.py`) and a few of the task's.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, Self

from qsdformer.errors import UserError, require
from qsdformer.models.dense.config import TASKS, DenseConfig
from qsdformer.nn.config import NetworkConfig
from qsdformer.parsing import (
    none_word,
    option,
    parse_section,
    parse_value,
    refuse_unknown,
    require_mapping,
    type_hints,
)

FROM_ELSEWHERE = ("backbone", "num_classes")  # of the network: the model's section and the data


@dataclass(frozen=True, kw_only=True)
class DenseRecipe:
    """What the sections share: `fields` are the network's keys that are given."""

    task: ClassVar[str]

    fields: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def network(cls) -> type[DenseConfig]:
        """The configuration that `fields` are of."""
        return TASKS[cls.task]

    @classmethod
    def own(cls) -> tuple[str, ...]:
        """The keys that are the task's and not the network's."""
        return tuple(f.name for f in dataclasses.fields(cls) if f.name != "fields")

    @classmethod
    def network_fields(cls) -> tuple[str, ...]:
        """The keys of the network's configuration."""
        return tuple(name for name in cls.network().own_fields() if name not in FROM_ELSEWHERE)

    @classmethod
    def parse(cls, section: Any) -> Self:
        """The section from plain values; a `UserError` names the key that does not fit."""
        values = require_mapping(cls.task, {} if section is None else section)
        allowed = cls.network_fields()
        refuse_unknown(f"{cls.task}.", values, [*cls.own(), *allowed])
        own = {key: value for key, value in values.items() if key in cls.own()}
        parsed = parse_section(cls, cls.task, own)
        hints = type_hints(cls.network())
        fields = {
            key: parse_value(f"{cls.task}.{key}", hints[key], none_word(hints[key], values[key]))
            for key in values
            if key in allowed
        }
        return dataclasses.replace(parsed, fields=fields)

    def config(self, backbone: NetworkConfig, num_classes: int, *, ann: bool) -> DenseConfig:
        """The network's configuration; `ann`: its counterpart ANN. `UserError` for bad values."""
        fields = {**self.fields, "bits": None, "neuron": "backbone"} if ann else self.fields
        try:
            return self.network()(backbone=backbone, num_classes=num_classes, **fields)  # type: ignore[arg-type]
        except UserError:
            raise
        except ValueError as error:
            raise UserError(f"{self.task}.{error}") from None

    def to_dict(self) -> dict[str, Any]:
        """The section as plain values: keys that are given, and the task's own that are set."""
        own = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        del own["fields"]
        default = type(self)()
        changed = {key: v for key, v in own.items() if v != getattr(default, key)}
        values = {**self.fields, **changed}
        return {k: list(v) if isinstance(v, tuple) else v for k, v in values.items()}


@dataclass(frozen=True, kw_only=True)
class SegmentationRecipe(DenseRecipe):
    """How a segmentation network is taught and how it looks at images."""

    task: ClassVar[str] = "segmentation"

    class_weights: tuple[float, ...] | None = option(None, "of the loss, one for each class")
    balance: float = option(
        0.0, "weights of the loss by how rare classes are in training; 0: none, 1: by median share"
    )
    inference: Literal["whole", "slide"] = option(
        "whole", "whole images, or overlapping windows of data.image_size whose logits are averaged"
    )
    overlap: float = option(0.5, "share of a window that the next one covers again")

    def __post_init__(self) -> None:
        require(self, "overlap", 0 <= self.overlap < 1, "in [0, 1)")
        require(self, "balance", 0 <= self.balance <= 1, "in [0, 1]")
        if self.class_weights is not None:
            weights = tuple(self.class_weights)
            object.__setattr__(self, "class_weights", weights)
            require(self, "class_weights", min(weights, default=-1) >= 0, "numbers, 0 or more")
            require(self, "balance", self.balance == 0, "left out where class_weights are given")


@dataclass(frozen=True, kw_only=True)
class DetectionRecipe(DenseRecipe):
    """How a detector is taught and how it looks at images."""

    task: ClassVar[str] = "detection"


SECTIONS: Mapping[str, type[DenseRecipe]] = {
    section.task: section for section in (SegmentationRecipe, DetectionRecipe)
}
