"""What follows from a recipe's plain values: keys of its teacher, shape of what it fine-tunes."""

from __future__ import annotations

import dataclasses
import fnmatch
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qsdformer.models.registry import DEFAULT, Family, families, sizes
from qsdformer.nn.config import NetworkConfig
from qsdformer.recipes import packaged_recipes

FROM_TEACHER = "teacher"  # in model.start_from: the weights of the one that teaches
# Fields of a family's own that say nothing of its tensors or what they mean.
NOT_SHAPE = ("drop_path_rate", "fully_spiking", "attention")
# Sources of whatever images a folder holds.
FOLDERS = ("image_folder", "mask_folder", "coco", "voc")
# Keys that do not decide what comes out of a run, see `incidental`.
INCIDENTAL = (
    "data.workers",
    "data.download",
    "train.accelerator",
    "train.compile",
    "train.channels_last",
    "train.eval_batch_size",
    "train.save_every",
    "train.save_minutes",
    "train.log_every",
)
# Keys that, given on the command line, hold for a teacher trained by a recipe of its own as well:
# those of its images, its budget and the machine. How it learns is its own recipe's affair.
TEACHERS_TOO = (
    "data.*",
    "train.epochs",
    "train.batch_size",
    "train.eval_batch_size",
    "train.precision",
    "train.compile",
    "train.channels_last",
    "train.accelerator",
    "train.devices",
    "train.num_nodes",
    "train.save_every",
    "train.save_minutes",
    "train.log_every",
)


def incidental(data: Mapping[str, Any]) -> set[str]:
    """Keys that do not decide what comes out of a run with this data section.

    Where the images lie is one of them, unless only that says which images they are.
    """
    named = data.get("name") not in FOLDERS
    return {*INCIDENTAL, *(["data.root"] if named else [])}


def names_recipe(name: str) -> bool:
    """Whether a name is that of a packaged recipe or of a YAML file."""
    return name in packaged_recipes() or name.endswith((".yaml", ".yml"))


def reaches_teacher(path: str) -> bool:
    """Whether the key at `path`, set for a student, is set for its teacher's recipe too."""
    return any(fnmatch.fnmatch(path, pattern) for pattern in TEACHERS_TOO)


def with_teacher_keys(values: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """A recipe's plain values in which a teacher that is a recipe gets what reaches it of `given`.

    `given` maps full paths of keys to values. What the section distill itself says of the
    teacher's keys stays.
    """
    distill = values.get("distill")
    if not isinstance(distill, Mapping) or not names_recipe(str(distill.get("teacher"))):
        return dict(values)
    reaching = {path: value for path, value in given.items() if reaches_teacher(path)}
    own = distill.get("teacher_keys")
    own = {} if own in (None, "none") else own
    if not reaching or not isinstance(own, Mapping):
        return dict(values)
    return {**values, "distill": {**distill, "teacher_keys": {**reaching, **own}}}


def with_start_shape(values: Mapping[str, Any]) -> dict[str, Any]:
    """A recipe's plain values with the shape of the checkpoint in `model.start_from`, if any.

    What the section model itself gives stays, apart from a size's name where that is of another
    family. Bits, levels and neurons are the recipe's. Nothing is changed where the checkpoint is
    gone: a run that is resumed does not need it, and for others training says so.
    """
    model = values.get("model")
    if not isinstance(model, Mapping):
        return dict(values)
    path = model.get("start_from")
    if path in (None, "none", FROM_TEACHER):  # a teacher's weights are for the recipe's own shape
        return dict(values)
    if not Path(str(path)).exists():
        return dict(values)
    from qsdformer.models.checkpoint import load_checkpoint

    whole = load_checkpoint(str(path)).model.config
    config: NetworkConfig = getattr(whole, "backbone", whole)
    family = families()[config.family]
    name = str(model.get("name", DEFAULT))
    known = sizes()
    if name not in known or known[name] is not family:
        name = next(iter(family.sizes))
    shape = {key: value for key, value in config.to_dict().items() if key in _shape_of(family)}
    if not config.is_spiking:  # there these mean nothing
        shape = {key: v for key, v in shape.items() if not key.startswith("attention")}
    return {**values, "model": {**shape, **model, "name": name}}


def _shape_of(family: Family) -> set[str]:
    """The fields that decide which tensors a network has and what they mean."""
    shared = {item.name for item in dataclasses.fields(NetworkConfig)} - {"heads"}
    return set(family.fields) - shared - set(NOT_SHAPE)
