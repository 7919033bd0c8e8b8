"""Tasks with a teacher: fine-grained distillation and loss on logits beside the task's own loss."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from qsdformer.data import DataInfo
from qsdformer.data.base import size_text
from qsdformer.errors import UserError, one_line
from qsdformer.models.base import SpikingTransformer
from qsdformer.recipes.learning import DistillConfig
from qsdformer.recipes.recipe import Recipe
from qsdformer.tasks.base import NetworkTask
from qsdformer.tasks.classification import Classification
from qsdformer.tasks.fgd import (
    fgd_loss,
    logit_loss,
    match_blocks,
    schedule_factor,
    single_token_note,
)
from qsdformer.tasks.teachers import FeatureReader, Teacher, said_classes


class Taught(NetworkTask):
    """Mixed into a task: trains the student in attribute `model` against a frozen teacher too.

    The teacher is no submodule, so it is in no checkpoint and no optimiser. Raises `UserError` if
    token grids differ, or class spaces where logits are compared.
    """

    def __init__(self, recipe: Recipe, info: DataInfo, teacher: Teacher) -> None:
        super().__init__(recipe, info)
        assert recipe.distill is not None
        self.distill: DistillConfig = recipe.distill
        self._teacher = teacher
        self._note: str | None = None
        if self.train_config.channels_last:
            teacher.model.to(memory_format=torch.channels_last)
        self._reader: FeatureReader | None = None
        check_teacher_classes(recipe, info, teacher.name, teacher.num_classes, teacher.class_names)
        self._matched = self._match()
        if self.train_config.compile:
            teacher.compile()

    @property
    def student(self) -> SpikingTransformer:
        """The network whose attention is compared with the teacher's."""
        return self.model

    def teacher_images(self, images: Tensor) -> Tensor:
        """What the teacher is shown for a batch of `images` (B, C, H, W)."""
        return self._laid_out(images)

    def on_fit_start(self) -> None:
        """Take the teacher along to the student's device, and read the student from now on."""
        super().on_fit_start()
        self._teacher.to(self.device)
        self._open_reader()
        if self._note is not None:
            self.print(self._note)

    def on_fit_end(self) -> None:
        """Leave no hooks behind."""
        super().on_fit_end()
        if self._reader is not None:
            self._reader.close()
            self._reader = None

    def on_train_batch_start(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Forget what validation passed through the student."""
        super().on_train_batch_start(batch, batch_idx)
        if self._reader is not None:
            self._reader.clear()

    def extra_losses(self, images: Tensor, logits: Tensor) -> dict[str, Tensor]:
        """The weighted distillation losses of a batch whose student pass has just been made."""
        config = self.distill
        factor = schedule_factor(config.schedule, self.schedule_step, self.total_steps)
        losses = super().extra_losses(images, logits)
        if factor == 0:
            return losses
        target_logits, target_blocks = self._teacher(self.teacher_images(images))
        if config.fgd_weight > 0:
            assert self._reader is not None
            targets = [target_blocks[i] for i in self._matched]
            loss = fgd_loss(self._reader.blocks(), targets)
            losses["fgd_loss"] = factor * config.fgd_weight * loss
        if config.logit_weight > 0:
            loss = logit_loss(logits, target_logits, config.temperature)
            losses["logit_loss"] = factor * config.logit_weight * loss
        return losses

    def _open_reader(self) -> None:
        if self.distill.fgd_weight > 0 and self._reader is None:
            self._reader = FeatureReader(self.student, self.distill.features, self.distill.source)

    def _match(self) -> list[int]:
        """The teacher's block for each of the student's, from one pass of a blank image."""
        if self.distill.fgd_weight == 0:
            return []
        blank = self.blank()
        self.model.eval()
        reader = FeatureReader(self.student, self.distill.features)
        with torch.no_grad():
            self.student.forward(blank)
        own = reader.blocks()
        reader.close()
        self.model.train()
        name = self.distill.features[0]
        blocks = (own, self._teacher_blocks(blank))
        tokens, theirs = ([block[name].shape[-2] for block in one] for one in blocks)
        self._note = single_token_note(self.distill, tokens)
        return match_blocks(tokens, theirs)

    def blank(self) -> Tensor:
        """An image (1, C, H, W) of the size that the student sees."""
        return torch.zeros(1, self.info.channels, *self.info.sides)

    def _teacher_blocks(self, images: Tensor) -> list[dict[str, Tensor]]:
        try:
            return [dict(block) for block in self._teacher(images)[1]]
        except (AssertionError, RuntimeError, ValueError) as error:
            if isinstance(error, UserError):
                raise
            reason = one_line(error, 150)
            size = size_text(self.info.image_size)
            raise UserError(
                f"the teacher {self._teacher.name} does not take images of {size} px: {reason}"
            ) from error


class Distillation(Taught, Classification):
    """Classification with a teacher."""


def check_teacher_classes(
    recipe: Recipe, info: DataInfo, teacher: str, count: int, names: Sequence[str] | None
) -> None:
    """`UserError` for a teacher of other classes than the data's, where logits are compared.

    `names` are those of its `count` classes, or None where they have no meaning.
    """
    assert recipe.distill is not None
    if recipe.distill.logit_weight == 0:
        return
    own = len(info.class_names)
    mine = said_classes(info, recipe.data.name)
    pairs = [] if names is None or mine is None else zip(names, mine, strict=False)
    other = next(((theirs, ours) for theirs, ours in pairs if theirs != ours), None)
    if own != count:
        difference = f"the teacher {teacher} has {count} classes and the data {own}"
    elif other is not None:
        difference = f"class {other[0]!r} of the teacher {teacher} is {other[1]!r} in the data"
    else:
        return
    raise UserError(
        f"{difference}: set distill.logit_weight to 0, or take a teacher trained on this data"
    )
