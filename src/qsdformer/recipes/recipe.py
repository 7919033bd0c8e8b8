"""Recipes: what to train, on what and how, as typed and validated YAML.

A recipe has a `seed`, an `output` folder and the sections `model`, `data` and `train`, and may have
`distill` and `activity`. Its `task` is classification unless it says otherwise; `segmentation` and
`detection` have a section of their names. It may build on another: `recipe: fashion-mnist-tiny`
takes over all keys that the recipe does not give itself. Every mistake in one is a `UserError` that
names the key's full path. PyTorch is not needed to read them.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias, get_args, get_origin

from qsdformer.data import DataInfo
from qsdformer.data.sections import DATA_SECTIONS, DataSection
from qsdformer.errors import UserError
from qsdformer.models.dense.config import DenseConfig
from qsdformer.models.registry import DEFAULT, Family, families, owners, sizes
from qsdformer.nn.config import NetworkConfig, completed
from qsdformer.parsing import (
    Section,
    dump_yaml,
    load_yaml,
    nearest,
    none_word,
    one_of,
    option,
    parse_section,
    parse_value,
    plain,
    refuse_unknown,
    require_mapping,
    type_hints,
    written,
)
from qsdformer.recipes.dense import (
    FROM_ELSEWHERE,
    SECTIONS,
    DenseRecipe,
    DetectionRecipe,
    SegmentationRecipe,
)
from qsdformer.recipes.derived import FROM_TEACHER, with_start_shape, with_teacher_keys
from qsdformer.recipes.learning import ActivityConfig, DistillConfig, TrainConfig
from qsdformer.recipes.reading import merged, not_of_an_ann, recipe_values, refuse_idle
from qsdformer.recipes.tasks import DENSE, MEASURES, Measures, Task

# Set from the data, so a recipe may not name them.
FROM_DATA = ("in_channels", "num_classes")
AnyConfig: TypeAlias = NetworkConfig | DenseConfig


@dataclass(frozen=True, kw_only=True)
class ModelRecipe:
    """A named size, some fields of its family's configuration replaced, or the ANN of both."""

    name: str = option(DEFAULT, "a named size")
    ann: bool = option(False, "the counterpart ANN: real-valued neurons, fp32 weights, softmax")
    start_from: str | None = option(
        None,
        "checkpoint to fine-tune: its weights, and its shape where no key here gives one; teacher: "
        "the weights of the one that teaches",
    )
    fields: dict[str, Any] = field(default_factory=dict)

    def config(self, *, in_channels: int, num_classes: int) -> NetworkConfig:
        """The configuration for data of these shapes; a `UserError` for impossible values."""
        family = _family(self.name)
        values = {**family.sizes[self.name], **self.fields}
        values |= {"in_channels": in_channels, "num_classes": num_classes}
        if self.ann:
            values = {"neuron": "relu", **values, **family.config.ANN_FIELDS}
        config = parse_section(family.config, "model", completed(values, family.config))
        return config.ann(config.neuron) if self.ann else config

    def to_dict(self) -> dict[str, Any]:
        """The `model` section as plain values."""
        values = {"name": self.name, "ann": self.ann, **plain(self.fields)}
        return values if self.start_from is None else {**values, "start_from": self.start_from}


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything that decides a training run."""

    model: ModelRecipe
    data: DataSection
    train: TrainConfig
    task: Task = "classification"
    segmentation: SegmentationRecipe | None = None  # of that task
    detection: DetectionRecipe | None = None  # of that task
    distill: DistillConfig | None = None  # learn from a teacher too
    activity: ActivityConfig | None = None  # penalise spikes
    seed: int = 0
    output: str = "runs/unnamed"

    @property
    def starts_from_teacher(self) -> bool:
        """Whether a student begins with its teacher's weights."""
        return self.model.start_from == FROM_TEACHER

    @property
    def dense(self) -> DenseRecipe | None:
        """The task's own section; none for classification."""
        return self.segmentation or self.detection

    @property
    def measures(self) -> Measures:
        """What a run of it measures."""
        return MEASURES[self.task]

    def model_config(self, info: DataInfo) -> AnyConfig:
        """The model's configuration, channels and classes taken from the data."""
        return self.config_for(in_channels=info.channels, num_classes=len(info.class_names))

    def config_for(self, *, in_channels: int, num_classes: int) -> AnyConfig:
        """The configuration for data of these shapes: the network's whole one for dense tasks."""
        if self.dense is None:
            return self.model.config(in_channels=in_channels, num_classes=num_classes)
        backbone = self.model.config(in_channels=in_channels, num_classes=0)
        return self.dense.config(backbone, num_classes, ann=self.model.ann)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as stored in run folders and checkpoints; `parse_recipe` reads them."""
        values = {
            "seed": self.seed,
            "output": self.output,
            "model": self.model.to_dict(),
            "data": written(self.data),
            "train": written(self.train),
        }
        if self.dense is not None:
            values = {"task": self.task, **values, self.task: self.dense.to_dict()}
        for name, section in (("distill", self.distill), ("activity", self.activity)):
            if section is not None:
                values[name] = written(section)
        return values

    def to_yaml(self) -> str:
        """The recipe as YAML that `load_recipe` reads back."""
        return dump_yaml(self.to_dict())


@dataclass(frozen=True, kw_only=True)
class Option:
    """One recipe key that the command line can set."""

    path: str  # such as train.epochs
    kind: Any  # the annotated type
    default: Any
    help: str
    added: bool = False  # to a section that had been there without it
    training: bool = False  # matters to training alone

    @property
    def leaf(self) -> str:
        """The last part of the path."""
        return self.path.rpartition(".")[2]


@functools.cache
def options() -> tuple[Option, ...]:
    """Every key of a recipe, in order; of the model's and the data's, those of all kinds."""
    sections: tuple[tuple[str, Any], ...] = (
        ("model", ModelRecipe),
        *(("model", family.config) for family in families().values()),
        *(("data", section) for section in DATA_SECTIONS.values()),
        ("train", TrainConfig),
        *((task, cls) for task, own in SECTIONS.items() for cls in (own, own.network())),
        ("distill", DistillConfig),
        ("activity", ActivityConfig),
    )
    found = {
        "seed": Option(path="seed", kind=int, default=0, help="of weights and augmentation"),
        "output": Option(path="output", kind=str, default="runs/RECIPE", help="run folder"),
        "task": Option(path="task", kind=Task, default=Recipe.task, help="what is learned"),
    }
    for section, cls in sections:
        hints = type_hints(cls)
        for item in dataclasses.fields(cls):
            path = f"{section}.{item.name}"
            if item.name in (*FROM_DATA, *FROM_ELSEWHERE, "fields"):
                continue
            if path in found:
                found[path] = _widened(found[path], hints[item.name])
                continue
            found[path] = Option(
                path=path,
                kind=hints[item.name],
                default=None if item.default is dataclasses.MISSING else item.default,
                help=item.metadata.get("help", ""),
                added=section in DENSE or item.metadata.get("added", False),
                training=item.metadata.get("training", False),
            )
    return tuple(found.values())


def _widened(option: Option, kind: Any) -> Option:
    """A key of several sections of one name, which takes the words that any of them takes."""
    if get_origin(option.kind) is not Literal or get_origin(kind) is not Literal:
        return option
    words = tuple(dict.fromkeys((*get_args(option.kind), *get_args(kind))))
    return dataclasses.replace(option, kind=Literal[words])


def named_by_leaf(leaf: str, every: Sequence[Option]) -> list[Option]:
    """The options that the last part of a path may mean.

    Those added later come second, but for training's, which every recipe has.
    """
    matches = [option for option in every if option.leaf == leaf]
    first = [o for o in matches if not o.added or o.path.startswith("train.")]
    return first or matches


def resolve_key(key: str, beside: Iterable[str] = ()) -> Option:
    """The option named by a full path or a unique last part; dashes may stand for underscores.

    The `UserError` for an unknown one names the nearest of all options and of those `beside`.
    """
    wanted = key.replace("-", "_")
    every = options()
    for found in every:
        if found.path == wanted:
            return found
    matches = named_by_leaf(wanted, every)
    if len(matches) == 1:
        return matches[0]
    if matches:
        paths = " or ".join(found.path for found in matches)
        raise UserError(f"option --{key} may mean {paths}: give the full name")
    if wanted.rpartition(".")[2] in FROM_DATA:
        raise UserError(f"--{key} is taken from the data: leave it out")
    names = [o.path for o in every] if "." in wanted else [o.leaf for o in every]
    raise UserError(f"unknown option --{key}{nearest(wanted, [*beside, *names], '--')}")


def load_recipe(name: str, overrides: Mapping[str, str] | None = None) -> Recipe:
    """A packaged recipe by name, or the YAML file at a path, with command-line overrides applied.

    `overrides` maps full or unique last parts of keys to texts, see `given_value`. Those that
    `reaches_teacher` are kept for the teacher, in `distill.teacher_keys`.
    """
    return recipe_with(name, dict(given_value(k, text) for k, text in (overrides or {}).items()))


def recipe_with(name: str, keys: Mapping[str, Any]) -> Recipe:
    """As `load_recipe`, for plain values of keys in place of texts."""
    given = {resolve_key(key).path: value for key, value in keys.items()}
    values = with_values(recipe_values(name), given)
    recipe = parse_recipe(with_start_shape(with_teacher_keys(values, given)))
    refuse_idle(values, given)
    return recipe


def given_value(key: str, text: str) -> tuple[str, Any]:
    """The path of a key given on the command line, and its value.

    What the key takes as text is that text as it stands; anything else is YAML.
    """
    found = resolve_key(key)
    if found.kind in (str, str | None):
        return found.path, text
    return found.path, load_yaml(text, f"the value of --{key}, {text!r},")


def with_keys(values: Mapping[str, Any], keys: Mapping[str, str]) -> dict[str, Any]:
    """A recipe's plain values with some keys of the command line set, see `given_value`."""
    return with_values(values, dict(given_value(key, text) for key, text in keys.items()))


def with_values(values: Mapping[str, Any], keys: Mapping[str, Any]) -> dict[str, Any]:
    """A recipe's plain values with some keys, full paths or unique leaves, set to others."""
    own: dict[str, Any] = {}
    for key, value in keys.items():
        section, _, leaf = resolve_key(key).path.rpartition(".")
        if section:
            there = values.get(section)
            require_mapping(section, {} if there is None else there)
            own.setdefault(section, {})[leaf] = value
        else:
            own[leaf] = value
    return merged(dict(values), own)


def parse_recipe(values: Mapping[str, Any]) -> Recipe:
    """Check plain values and build the recipe; `UserError` for anything that does not fit."""
    refuse_unknown("", values, [f.name for f in dataclasses.fields(Recipe)])
    model = _parse_model(values.get("model"))
    task = parse_value("task", Task, values.get("task", "classification"))
    recipe = Recipe(
        model=model,
        task=task,
        **_parse_dense(task, values),
        data=parse_data(values),
        train=parse_section(TrainConfig, "train", values.get("train") or {}),
        distill=_parse_optional(DistillConfig, "distill", values),
        activity=_parse_optional(ActivityConfig, "activity", values),
        seed=parse_value("seed", int, values.get("seed", 0)),
        output=parse_value("output", str, values.get("output", "runs/unnamed")),
    )
    if not 0 <= recipe.seed < 2**31:
        raise UserError(f"seed={recipe.seed}: must be between 0 and 2147483647")
    if recipe.starts_from_teacher and recipe.distill is None:
        raise UserError(
            "model.start_from=teacher: nothing teaches; give a distill section, or a checkpoint "
            "(./teacher for a file of that name)"
        )
    # Impossible sizes are found here, before any data is read; 3 and 1000 stand for the data's.
    recipe.config_for(in_channels=3, num_classes=1000)
    if recipe.train.head_lr != 1 and recipe.dense is None:
        raise UserError("train.head_lr is for the heads of dense networks: leave it out")
    if recipe.task == "detection" and recipe.train.label_smoothing > 0:
        raise UserError("train.label_smoothing: detectors' losses have none, leave it out")
    if recipe.dense is not None and recipe.distill is not None and recipe.distill.logit_weight > 0:
        raise UserError(
            f"distill.logit_weight={recipe.distill.logit_weight}: {task} learns from the teacher's "
            "tokens alone: leave it out"
        )
    return recipe


def parse_data(values: Mapping[str, Any]) -> DataSection:
    """The data section of a recipe's plain values, which is that of its task."""
    if not values.get("data"):
        raise UserError("there is no data section: give one, such as --data.name digits")
    section = DATA_SECTIONS[values.get("task", "classification")]
    parsed: DataSection = parse_section(section, "data", values["data"])
    return parsed


def _parse_dense(task: Task, values: Mapping[str, Any]) -> dict[str, Any]:
    """The section of a dense task, with all defaults if it is missing; none of another task."""
    for other in DENSE:
        if other != task and values.get(other) not in (None, "none"):
            raise UserError(f"{other} is a section for task: {other}, but the task is {task}")
    return {task: SECTIONS[task].parse(values.get(task))} if task in SECTIONS else {}


def parse_saved(values: Mapping[str, Any]) -> Recipe:
    """As `parse_recipe`, of a checkpoint: one from before a key was refused may still have it."""
    model = values.get("model")
    if isinstance(model, Mapping) and (family := sizes().get(str(model.get("name")))) is not None:
        values = {**values, "model": family.deciding(model)}
    return parse_recipe(values)


def _parse_optional(cls: type[Section], name: str, values: Mapping[str, Any]) -> Section | None:
    """A section that may be missing or none; an empty one, {}, has all the defaults."""
    section = values.get(name)
    return None if section in (None, "none") else parse_section(cls, name, section)


def _parse_model(section: Any) -> ModelRecipe:
    values = require_mapping("model", {} if section is None else section)
    for name in FROM_DATA:
        if name in values:
            raise UserError(f"model.{name} is taken from the data: remove it from the recipe")
    own = ("name", "ann", "start_from")
    start = values.get("start_from")
    name = parse_value("model.name", str, values.get("name", ModelRecipe.name))
    family = _family(name)
    allowed = [*own, *(field for field in family.fields if field not in FROM_DATA)]
    for key in values:
        if key not in allowed and owners(key):
            raise UserError(
                f"model.{key} is for {' and '.join(owners(key))}, not for {name}: leave it out"
            )
    refuse_unknown("model.", values, allowed)
    hints = type_hints(family.config)
    ann = parse_value("model.ann", bool, values.get("ann", False))
    left_out = (*own, *(not_of_an_ann(values) if ann else ()))
    return ModelRecipe(
        name=name,
        ann=ann,
        start_from=parse_value("model.start_from", str | None, none_word(str | None, start)),
        fields={k: none_word(hints[k], v) for k, v in values.items() if k not in left_out},
    )


def _family(name: str) -> Family:
    known = sizes()
    if name not in known:
        raise UserError(f"model.name={name!r}: must be {one_of(known, name)}")
    return known[name]
