"""Recipe keys as command-line options: `--train.epochs 3`, or `--epochs 3` where unique."""

from __future__ import annotations

import argparse
import textwrap
from collections.abc import Callable
from typing import Any

from qsdformer.errors import UserError
from qsdformer.parsing import describe
from qsdformer.recipes.derived import TEACHERS_TOO
from qsdformer.recipes.recipe import (
    Option,
    Recipe,
    load_recipe,
    named_by_leaf,
    options,
    resolve_key,
)

PREFIX = "recipe:"
REACHES_TEACHERS = textwrap.fill(
    "A teacher that is trained by a recipe of its own gets these keys too: "
    + ", ".join(TEACHERS_TOO)
    + ". Others, such as model.* and train.lr, are the student's; distill.teacher_keys sets any "
    "key of the teacher, and distill.teacher_epochs its epochs.",
    width=80,
)


def add_recipe_keys(
    parser: argparse.ArgumentParser, *, section: str | None = None
) -> Callable[[str], None]:
    """An option for each recipe key, shown with its default.

    With a `section` for each of its keys, but those that matter to training alone. Returns what
    makes the help show the values of a named recipe instead.
    """
    every = options()
    groups: dict[str, argparse._ArgumentGroup] = {}
    shown: list[tuple[argparse.Action, Option]] = []
    for option in every:
        name = option.path.rpartition(".")[0] or "run"
        if section is not None and (section != name or option.training):
            continue
        if name not in groups:
            groups[name] = parser.add_argument_group(f"{name} keys, replacing the recipe's")
        flags = {f"--{option.path}": None}
        if named_by_leaf(option.leaf, every) == [option]:
            flags[f"--{option.leaf}"] = None
        action = groups[name].add_argument(
            *flags,
            dest=PREFIX + option.path,
            metavar="VALUE",
            nargs="?" if option.kind is bool else None,
            const="true" if option.kind is bool else None,
            help=_help(option, "default", option.default),
        )
        shown.append((action, option))

    def show_values_of(name: str) -> None:
        values = values_by_path(load_recipe(name))
        for action, option in shown:
            if option.path in values:
                action.help = _help(option, name, values[option.path])

    parser.set_defaults(takes_recipe_keys=True)
    return show_values_of


def values_by_path(recipe: Recipe) -> dict[str, Any]:
    """The value of every key that a recipe sets or leaves at a default, by full path.

    Those of sections that it does not have are left out.
    """
    values = recipe.to_dict()
    # 3 and 1000 stand for the data's; keys that say so cannot be set.
    config = recipe.config_for(in_channels=3, num_classes=1000).to_dict()
    if recipe.dense is not None:
        values[recipe.task] |= config
        config = config["backbone"]
    values["model"] |= config
    found: dict[str, Any] = {}
    for name, value in values.items():
        inner = value if isinstance(value, dict) else {}
        found |= {f"{name}.{key}": v for key, v in inner.items()} if inner else {name: value}
    return found


def given_keys(parsed: argparse.Namespace) -> dict[str, str]:
    """The recipe keys given, by full path; an unknown one is a `UserError` naming the nearest."""
    for word in parsed.unknown:
        if not word.startswith("--"):
            raise UserError(f"unexpected argument {word!r}: options are written --key value")
        key = word[2:].partition("=")[0]
        path = resolve_key(key, parsed.known).path
        if hasattr(parsed, PREFIX + path):
            raise UserError(f"unknown option --{key}: did you mean --{path}?")
        raise UserError(f"option --{key} is for qsd train, not for this command")
    values = {name: v for name, v in vars(parsed).items() if name.startswith(PREFIX)}
    return {name.removeprefix(PREFIX): v for name, v in values.items() if v is not None}


def _help(option: Option, whose: str, value: Any) -> str:
    text = f"{option.help}; " if option.help else ""
    shown = "none" if value is None else value
    if isinstance(shown, tuple):
        shown = list(shown)
    if isinstance(shown, bool):
        shown = str(shown).lower()
    return f"{text}{describe(option.kind)} ({whose}: {shown})".replace("%", "%%")
