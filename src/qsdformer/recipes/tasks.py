"""The tasks that a recipe may name, and what a run of each measures; read without PyTorch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Task = Literal["classification", "segmentation", "detection"]
DENSE = ("segmentation", "detection")  # tasks with a section of their own beside the model's


@dataclass(frozen=True, kw_only=True)
class Measures:
    """What the lines and files of a run say of it, by the names that its task logs them under.

    `monitored` is the larger the better, and decides which epoch is the best; `word` is what
    people call it. `trained` is what a training step returns beside the losses, as train_NAME in
    the table. `validated` are the columns of an epoch's evaluation, `losses` those parts of the
    training loss that some recipes have.
    """

    monitored: str
    word: str
    trained: str | None
    validated: tuple[str, ...]
    losses: tuple[str, ...]

    @property
    def name(self) -> str:
        """The monitored value without the set that it is of."""
        return self.monitored.removeprefix("val_")

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns of metrics.csv."""
        trained = () if self.trained is None else (f"train_{self.trained}",)
        losses = (f"train_{name}" for name in self.losses)
        shared = ("epoch", "step", "lr", "train_loss")
        return (*shared, *trained, *self.validated, "images_per_second", *losses)


MEASURES: dict[str, Measures] = {
    "classification": Measures(
        monitored="val_accuracy",
        word="accuracy",
        trained="accuracy",
        validated=("val_loss", "val_accuracy", "val_top5"),
        losses=("fgd_loss", "logit_loss", "activity_loss"),
    ),
    "segmentation": Measures(
        monitored="val_miou",
        word="mIoU",
        trained="pixel_accuracy",
        validated=("val_loss", "val_miou", "val_pixel_accuracy"),
        losses=("fgd_loss", "activity_loss"),
    ),
    "detection": Measures(
        monitored="val_map50",
        word="AP50",
        trained=None,
        validated=(
            *("val_map50", "val_map", "val_map75"),
            *("val_mask_map50", "val_mask_map", "val_mask_map75"),
        ),
        losses=(
            *("loss_objectness", "loss_rpn_box_reg"),
            *("loss_classifier", "loss_box_reg", "loss_mask"),
            *("classification", "bbox_regression"),
            *("fgd_loss", "activity_loss"),
        ),
    ),
}
