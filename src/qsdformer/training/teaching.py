"""Where a student's teacher comes from: loaded, or trained once into the student's run folder."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from rich.console import Console

from qsdformer.data import DataInfo
from qsdformer.errors import UserError
from qsdformer.models.registry import family_of
from qsdformer.recipes import packaged_recipes
from qsdformer.recipes.recipe import ModelRecipe, Recipe, load_recipe
from qsdformer.training.once import train_once
from qsdformer.training.teachers import TIMM_PREFIX, Teacher, checkpoint_teacher, timm_teacher


def counterpart(recipe: Recipe) -> Recipe:
    """The recipe of a student's counterpart ANN: same shape, data, budget and seed."""
    assert recipe.distill is not None
    shared = family_of(recipe.model.name).config.SHAPE
    fields = {k: v for k, v in recipe.model.fields.items() if k in shared}
    fields["neuron"] = recipe.distill.teacher_neuron
    epochs = recipe.distill.teacher_epochs or recipe.train.epochs
    return dataclasses.replace(
        recipe,
        model=ModelRecipe(name=recipe.model.name, ann=True, fields=fields),
        train=dataclasses.replace(recipe.train, epochs=epochs),
        distill=None,
        activity=None,
    )


def obtain_teacher(
    recipe: Recipe, info: DataInfo, folder: Path, console: Console, *, overwrite: bool = False
) -> Teacher:
    """The teacher that `recipe.distill` names; one that must be trained is kept in `folder`.

    Raises `UserError` for a teacher that is missing, unknown or not for images like `info`.
    """
    assert recipe.distill is not None
    config = recipe.distill
    name = config.teacher
    if name.startswith(TIMM_PREFIX):
        model = name.removeprefix(TIMM_PREFIX)
        return timm_teacher(model, info, config.features, config.teacher_weights)
    if name == "ann":
        wanted = counterpart(recipe)
    elif name in packaged_recipes() or name.endswith((".yaml", ".yml")):
        wanted = dataclasses.replace(load_recipe(name), seed=recipe.seed)
    else:
        if not Path(name).exists():
            raise UserError(
                f"distill.teacher: no teacher {name!r}; give ann, a recipe, a checkpoint file or "
                "timm:NAME"
            )
        return checkpoint_teacher(name, info, config.features)
    wanted = dataclasses.replace(wanted, output=str(folder))
    trained = train_once(wanted, console=console, overwrite=overwrite)
    console.print(f"teacher {trained.path}: accuracy {trained.accuracy:.2%}", highlight=False)
    return checkpoint_teacher(trained.path, info, config.features)
