"""What a recipe asks for, nothing of it twice: first a teacher, where one has to be trained.

This is where runs begin: here the run folder is taken and looked at, `run.fit` does one training.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback
from rich.console import Console

from qsdformer.data import DataInfo
from qsdformer.errors import UserError
from qsdformer.files import atomic_path
from qsdformer.models import checkpoint
from qsdformer.models.building import build
from qsdformer.models.finetune import check_teacher_shape
from qsdformer.recipes.derived import incidental
from qsdformer.recipes.recipe import Recipe, parse_saved
from qsdformer.tasks.choice import training_data
from qsdformer.tasks.distillation import check_teacher_classes
from qsdformer.tasks.segmentation import check_weights
from qsdformer.tasks.teachers import check_teacher_channels, said_classes
from qsdformer.terminal import say
from qsdformer.training.checkpointing import BEST, LAST, RunCheckpoints
from qsdformer.training.folder import (
    RESULT,
    TEACHER,
    Point,
    check_beginnings,
    check_free,
    going_on,
    locked,
)
from qsdformer.training.processes import check_processes, started_here
from qsdformer.training.progress import Clock
from qsdformer.training.run import TrainResult, finish, fit, is_worker, on_cuda
from qsdformer.training.teaching import load_teacher, teacher_recipe


@dataclass(frozen=True, kw_only=True)
class Finished:
    """A finished run: its last checkpoint, and what the task monitors of the weights in it."""

    path: Path
    score: float


def train(
    recipe: Recipe,
    *,
    resume: str | os.PathLike[str] | bool = False,
    overwrite: bool = False,
    console: Console | None = None,
    callbacks: Sequence[Callback] = (),
    spent: bool = False,
) -> TrainResult:
    """Train as `recipe` says, into the folder `recipe.output`.

    `resume` is a checkpoint to go on from, or True for that of the run folder; a run that has
    none yet starts, one that is finished is left as it is; `spent`: one whose checkpoints were
    removed starts as well. Raises `UserError` for anything the user can put right,
    KeyboardInterrupt if interrupted.
    """
    check_processes(recipe.train, cuda=on_cuda(recipe), dense=recipe.dense)
    worker = is_worker(recipe)
    console = Console(quiet=True) if worker else console or Console()
    folder = Path(recipe.output)
    wanted = teacher_recipe(recipe, folder / TEACHER)
    with contextlib.nullcontext() if worker else locked(folder):
        start = going_on(folder, resume)
        if start is not None:
            done = _finished(start, recipe, console)
            if done is not None:
                return done
        if (start is None or start.is_elsewhere(folder)) and not worker:
            if not overwrite:
                check_free(folder, spent=spent)
            check_beginnings(recipe, folder)
        if resume is True and (start is None or start.path.name != LAST):
            say(console, _beginning(folder, start))
        data = training_data(recipe)
        if not started_here():  # whoever started this process has looked at the files already
            data.check()
        teacher = None
        if recipe.distill is not None:
            path = None
            if wanted is not None:
                if start is None:
                    _check_untrained(recipe, wanted, data.info)
                path = _trained(wanted, start, console, overwrite=overwrite, resume=resume is True)
            vary = recipe.task == "detection"  # images are padded to the largest of a batch
            teacher = load_teacher(recipe.distill, data.info, path, sizes_vary=vary)
        return fit(recipe, data, teacher=teacher, start=start, console=console, callbacks=callbacks)


def train_once(
    recipe: Recipe,
    *,
    console: Console | None = None,
    overwrite: bool = False,
    resume: bool = False,
) -> Finished:
    """Train into `recipe.output`, or go on with what is there, or just return it if finished.

    Raises `UserError` if the folder holds a run of another recipe, unless told to `overwrite` it
    or to go on with it all the same (`resume`).
    """
    there = going_on(Path(recipe.output), True)
    other = None if there is None else _other_key(there, recipe)
    if other and not (overwrite or resume):
        raise UserError(
            f"{recipe.output} holds a run of another recipe ({other} differs): remove the folder, "
            "or choose another output"
        )
    again = other is not None and overwrite
    if again or there is None or there.path.name != LAST or there.epochs < recipe.train.epochs:
        new = there is None
        train(recipe, resume=not (new or again), overwrite=again, spent=new, console=console)
    last = Path(recipe.output) / LAST
    return Finished(path=last, score=_score(Point(last, checkpoint.read(last)), recipe))


def _check_untrained(recipe: Recipe, teacher: Recipe, info: DataInfo) -> None:
    """`UserError` before a teacher is trained that could not teach, or be what a student is."""
    assert recipe.distill is not None
    check_weights(recipe, len(info.class_names))
    held_out = recipe.data.evaluate_on == "holdout" and teacher.data.evaluate_on != "holdout"
    if held_out and teacher.data.name == recipe.data.name:
        raise UserError(
            f"the teacher {recipe.distill.teacher} would learn from the images that its student "
            "holds out: set distill.teacher_keys to {data.evaluate_on: holdout}"
        )
    if teacher.data != recipe.data:
        name, taught_on = recipe.distill.teacher, training_data(teacher).info
        check_teacher_channels(name, taught_on.channels, info)
        names = said_classes(taught_on, teacher.data.name)
        check_teacher_classes(recipe, info, name, len(taught_on.class_names), names)
    if recipe.starts_from_teacher:
        shapes = {"in_channels": info.channels, "num_classes": len(info.class_names)}
        student, taught_by = (build(r.model.config(**shapes)) for r in (recipe, teacher))
        check_teacher_shape(student, taught_by)


def _trained(
    wanted: Recipe, student: Point | None, console: Console, *, overwrite: bool, resume: bool
) -> Path:
    """The checkpoint of a teacher, trained before its student unless it is there already.

    A student that has begun keeps the teacher it began with, whatever the recipe says by now, also
    in another folder.
    """
    if student is not None:
        path = student.path.parent / TEACHER / LAST
        if path.exists():
            own = Path(wanted.output)
            if student.is_elsewhere(own.parent) and not is_worker(wanted):
                with atomic_path(own / LAST) as temporary:
                    shutil.copyfile(path, temporary)
            return path
    say(console, f"its teacher comes first, in {wanted.output}:")
    trained = train_once(wanted, console=console, overwrite=overwrite, resume=resume)
    word = wanted.measures.word
    say(console, f"teacher {trained.path}: {word} {trained.score:.2%}")
    return trained.path


def _beginning(folder: Path, start: Point | None) -> str:
    if start is None:
        return f"there is no checkpoint to go on from in {folder}: from the start"
    return f"there is no {LAST} yet in {folder}: going on from {start.path.name}"


def _finished(start: Point, recipe: Recipe, console: Console) -> TrainResult | None:
    """The result of a run that has nothing left to do, if `start` is its own last checkpoint."""
    folder = Path(recipe.output)
    if start.path.resolve() != (folder / LAST).resolve() or start.epochs < recipe.train.epochs:
        return None
    score = _score(start, recipe)
    saved = start.header["model_config"]
    channels = saved.get("backbone", saved)["in_channels"]
    config = recipe.config_for(in_channels=channels, num_classes=saved["num_classes"])
    checkpoint.check_same_model(saved, config, start.path)
    best = start.content["callbacks"][RunCheckpoints.__qualname__]
    loaded = checkpoint.load_checkpoint(start.path)
    times = _times(folder / RESULT) or Clock.stored(start.content)
    say(console, f"finished: {start.path} has been trained for all {start.epochs} epochs")
    measures = recipe.measures
    result = TrainResult(
        metric=measures.name,
        best=best[f"best_{measures.name}"],
        best_epoch=best["best_epoch"],
        last=score,
        best_path=folder / BEST,
        last_path=start.path,
        seconds=times.get("seconds", 0.0),
        cpu_seconds=times.get("cpu_seconds", 0.0),
        parameters=sum(p.numel() for p in loaded.model.parameters()),
    )
    if not is_worker(recipe):
        finish(result, measures, folder, console)
    return result


def _score(point: Point, recipe: Recipe) -> float:
    """What the task monitors, of a checkpoint with nothing left to do.

    `UserError` for one that was left in the middle of an epoch that is now beyond the last.
    """
    found = point.header["extra"].get(recipe.measures.monitored)
    if found is None:
        raise UserError(
            f"nothing to resume: {point.path} was left in epoch {point.epochs + 1}, beyond "
            f"train.epochs={recipe.train.epochs}; raise that"
        )
    return float(found)


def _times(result: Path) -> dict[str, float]:
    """The times in a result.json; none where a run was killed before it wrote one."""
    if not result.is_file():
        return {}
    values = json.loads(result.read_text(encoding="utf-8"))
    return {name: float(values[name]) for name in ("seconds", "cpu_seconds")}


def _other_key(there: Point, recipe: Recipe) -> str | None:
    """The first key that decides a run's outcome and in which a checkpoint's recipe differs."""
    saved = there.header["extra"].get("recipe")
    if saved is None:
        raise UserError(
            f"{there.path} has weights only, and no recipe that they are of: name it in "
            "distill.teacher or model.start_from, from another folder, and remove it here"
        )
    before = _deciding(parse_saved(saved))
    now = _deciding(recipe)
    keys = [key for key in {**now, **before} if now.get(key) != before.get(key)]
    return keys[0] if keys else None


def _deciding(recipe: Recipe) -> dict[str, Any]:
    """A recipe's values by full path, without those that do not decide what comes out."""
    values = recipe.to_dict()
    del values["output"]
    flat: dict[str, Any] = {}
    for name, value in values.items():
        inner = value if isinstance(value, dict) else {}
        flat |= {f"{name}.{k}": v for k, v in inner.items()}
        if not isinstance(value, dict):
            flat[name] = value
    others = incidental(values["data"])
    if teachers := flat.get("distill.teacher_keys"):
        kept = {path: value for path, value in teachers.items() if path not in others}
        flat["distill.teacher_keys"] = kept or None
    return {path: value for path, value in flat.items() if path not in others}
