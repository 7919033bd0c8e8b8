"""Where a student's teacher comes from: by which recipe it is trained, and how it is loaded."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from qsdformer.data import DataInfo
from qsdformer.errors import UserError
from qsdformer.recipes.recipe import ModelRecipe, Recipe, load_recipe, names_recipe
from qsdformer.tasks.fgd import DistillConfig
from qsdformer.training.teachers import TIMM_PREFIX, Teacher, checkpoint_teacher, timm_teacher

# The model fields that the counterpart ANN shares with the student; the rest is about spikes.
SHARED_FIELDS = (
    "dims",
    "depth",
    "heads",
    "stem_kernel",
    "stem_stride",
    "drop_path_rate",
    "residual_gain",
    "layer_scale",
)


def counterpart(recipe: Recipe) -> Recipe:
    """The recipe of a student's counterpart ANN: same shape, data, budget and seed."""
    assert recipe.distill is not None
    fields = {k: v for k, v in recipe.model.fields.items() if k in SHARED_FIELDS}
    fields["neuron"] = recipe.distill.teacher_neuron
    epochs = recipe.distill.teacher_epochs or recipe.train.epochs
    return dataclasses.replace(
        recipe,
        model=ModelRecipe(name=recipe.model.name, ann=True, fields=fields),
        train=dataclasses.replace(recipe.train, epochs=epochs),
        distill=None,
        activity=None,
    )


def teacher_recipe(recipe: Recipe, folder: Path) -> Recipe | None:
    """The recipe by which a student's teacher has to be trained into `folder`, if it has to be.

    Raises `UserError` for a teacher that is missing or unknown.
    """
    if recipe.distill is None:
        return None
    config = recipe.distill
    if config.teacher == "ann":
        wanted = counterpart(recipe)
    elif names_recipe(config.teacher):
        wanted = dataclasses.replace(load_recipe(config.teacher), seed=recipe.seed)
    else:
        _check_there(config)
        return None
    return dataclasses.replace(wanted, output=str(folder))


def load_teacher(config: DistillConfig, info: DataInfo, trained: Path | None) -> Teacher:
    """The teacher that `config` names; `trained` is the checkpoint of one that was trained here.

    Raises `UserError` for a teacher that is not for images like `info`.
    """
    if trained is None and config.teacher.startswith(TIMM_PREFIX):
        model = config.teacher.removeprefix(TIMM_PREFIX)
        return timm_teacher(model, info, config.features, config.teacher_weights)
    return checkpoint_teacher(trained or config.teacher, info, config.features)


def _check_there(config: DistillConfig) -> None:
    name = config.teacher
    if not name.startswith(TIMM_PREFIX) and not Path(name).exists():
        raise UserError(
            f"distill.teacher: no teacher {name!r}; give ann, a recipe, a checkpoint file or "
            "timm:NAME"
        )
