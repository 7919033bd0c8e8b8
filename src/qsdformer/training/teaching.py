"""Where a student's teacher comes from: by which recipe it is trained, and how it is loaded."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qsdformer.data import DataInfo
from qsdformer.errors import UserError
from qsdformer.models.registry import family_of
from qsdformer.recipes.dense import DenseRecipe
from qsdformer.recipes.derived import names_recipe
from qsdformer.recipes.learning import DistillConfig
from qsdformer.recipes.recipe import (
    ModelRecipe,
    Recipe,
    parse_recipe,
    recipe_with,
    with_values,
)
from qsdformer.tasks.teachers import TIMM_PREFIX, Teacher, checkpoint_teacher, timm_teacher


def counterpart(recipe: Recipe) -> Recipe:
    """The recipe of a student's counterpart ANN: same shape, data, budget and seed."""
    assert recipe.distill is not None
    shared = family_of(recipe.model.name).config.SHAPE
    fields = {k: v for k, v in recipe.model.fields.items() if k in shared}
    fields["neuron"] = recipe.distill.teacher_neuron
    model = ModelRecipe(name=recipe.model.name, ann=True, fields=fields)
    own: dict[str, Any] = {}
    if recipe.dense is not None:
        own = {recipe.task: _from_scratch(recipe.dense)}
    return dataclasses.replace(recipe, model=model, distill=None, activity=None, **own)


def _from_scratch(part: DenseRecipe) -> DenseRecipe:
    """A dense section without what keeps weights and statistics that a pretrained network has."""
    fields = {key: value for key, value in part.fields.items() if key != "frozen_stages"}
    if fields.get("norm") == "frozen":
        del fields["norm"]
    return dataclasses.replace(part, fields=fields)


def teacher_recipe(recipe: Recipe, folder: Path) -> Recipe | None:
    """The recipe by which a student's teacher has to be trained into `folder`, if it has to be.

    Raises `UserError` for a teacher that is missing or unknown, and for keys that are not its.
    """
    if recipe.distill is None:
        return None
    config = recipe.distill
    keys = dict(config.teacher_keys or {})
    _check_used(config, keys)
    if config.teacher_epochs is not None:
        keys["train.epochs"] = config.teacher_epochs
    if config.teacher != "ann" and not names_recipe(config.teacher):
        _check_there(config)
        if recipe.starts_from_teacher and config.teacher.startswith(TIMM_PREFIX):
            raise UserError(
                f"model.start_from=teacher: the teacher {config.teacher} is no network of ours; "
                "give a checkpoint, or leave it out"
            )
        return None
    try:
        if config.teacher == "ann":
            wanted = parse_recipe(with_values(counterpart(recipe).to_dict(), keys))
        else:
            wanted = recipe_with(config.teacher, keys)
    except UserError as error:
        raise UserError(f"the recipe of the teacher {config.teacher}: {error}") from error
    seed = wanted.seed if "seed" in keys else recipe.seed
    return dataclasses.replace(wanted, seed=seed, output=str(folder))


def load_teacher(
    config: DistillConfig, info: DataInfo, trained: Path | None, *, sizes_vary: bool = False
) -> Teacher:
    """The teacher that `config` names; `trained` is the checkpoint of one that was trained here.

    `sizes_vary`: batches are of images of different sizes. Raises `UserError` for a teacher that
    is not for images like `info`.
    """
    features = config.features if config.fgd_weight > 0 else ()
    if trained is None and config.teacher.startswith(TIMM_PREFIX):
        model = config.teacher.removeprefix(TIMM_PREFIX)
        weights = config.teacher_weights
        return timm_teacher(model, info, features, weights, sizes_vary=sizes_vary)
    return checkpoint_teacher(trained or config.teacher, info, features)


def _check_used(config: DistillConfig, keys: Mapping[str, Any]) -> None:
    """`UserError` for keys that the teacher at hand has no use for."""
    default = DistillConfig()
    for_timm = config.teacher.startswith(TIMM_PREFIX)
    if not for_timm and config.teacher_weights != default.teacher_weights:
        raise UserError("distill.teacher_weights is for teachers of timm: leave it out")
    if config.teacher != "ann" and config.teacher_neuron != default.teacher_neuron:
        raise UserError("distill.teacher_neuron is for the teacher ann: leave it out")
    if "output" in keys:
        raise UserError("distill.teacher_keys: leave output out: the student's folder has it")


def _check_there(config: DistillConfig) -> None:
    name = config.teacher
    if not name.startswith(TIMM_PREFIX) and not Path(name).exists():
        raise UserError(
            f"distill.teacher: no teacher {name!r}; give ann, a recipe, a checkpoint file or "
            "timm:NAME"
        )
    for key in ("teacher_epochs", "teacher_keys"):
        if getattr(config, key) is not None:
            raise UserError(f"distill.{key}: the teacher {name} is trained already, leave it out")
