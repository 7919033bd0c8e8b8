"""Runs that are trained at most once: teachers, and the cells of an ablation."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from qsdformer.errors import UserError
from qsdformer.models import checkpoint
from qsdformer.recipes.recipe import Recipe, load_recipe
from qsdformer.training.checkpointing import LAST
from qsdformer.training.run import train


@dataclass(frozen=True, kw_only=True)
class Finished:
    """A finished run: its last checkpoint, and the accuracy of the evaluated weights in it."""

    path: Path
    accuracy: float


def train_once(
    recipe: Recipe, *, console: Console | None = None, overwrite: bool = False
) -> Finished:
    """Train into `recipe.output`, or go on with what is there, or just return it if finished.

    Raises `UserError` if the folder holds a run of another recipe, unless told to `overwrite` it.
    """
    last = Path(recipe.output) / LAST
    other = _other_key(recipe)
    if other and not overwrite:
        raise UserError(
            f"{recipe.output} holds a run of another recipe ({other} differs): remove the folder, "
            "or choose another output"
        )
    epochs = 0 if other else _epochs_done(last)
    if epochs < recipe.train.epochs:
        train(recipe, resume=epochs > 0, overwrite=epochs == 0, console=console)
    saved = checkpoint.read(last)[checkpoint.KEY]["extra"]
    return Finished(path=last, accuracy=float(saved["val_accuracy"]))


def _epochs_done(last: Path) -> int:
    if not last.is_file():
        return 0
    return int(checkpoint.read(last)[checkpoint.KEY]["extra"].get("epoch", 0))


def _other_key(recipe: Recipe) -> str | None:
    """The first section in which the folder's recipe differs, apart from where it is written."""
    file = Path(recipe.output) / "recipe.yaml"
    if not file.is_file():
        return None
    there = dataclasses.replace(load_recipe(str(file)), output=recipe.output).to_dict()
    here = recipe.to_dict()
    keys = [key for key in {**here, **there} if here.get(key) != there.get(key)]
    return keys[0] if keys else None
