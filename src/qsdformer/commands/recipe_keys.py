"""Recipe keys as command-line options: `--train.epochs 3`, or `--epochs 3` where unique."""

from __future__ import annotations

import argparse
import textwrap
from collections import Counter

from qsdformer.errors import UserError
from qsdformer.parsing import describe
from qsdformer.recipes.derived import TEACHERS_TOO
from qsdformer.recipes.recipe import Option, options, resolve_key

PREFIX = "recipe:"
REACHES_TEACHERS = textwrap.fill(
    "A teacher that is trained by a recipe of its own gets these keys too: "
    + ", ".join(TEACHERS_TOO)
    + ". Others, such as model.* and train.lr, are the student's; distill.teacher_keys sets any "
    "key of the teacher, and distill.teacher_epochs its epochs.",
    width=80,
)


def add_recipe_keys(parser: argparse.ArgumentParser, *, section: str | None = None) -> None:
    """An option for each recipe key, or for those of one section, shown with its default."""
    every = options()
    leaves = Counter(option.leaf for option in every)
    groups: dict[str, argparse._ArgumentGroup] = {}
    for option in every:
        name = option.path.rpartition(".")[0] or "run"
        if section not in (None, name):
            continue
        if name not in groups:
            groups[name] = parser.add_argument_group(f"{name} keys, replacing the recipe's")
        flags = {f"--{option.path}": None}
        if leaves[option.leaf] == 1:
            flags[f"--{option.leaf}"] = None
        groups[name].add_argument(
            *flags,
            dest=PREFIX + option.path,
            metavar="VALUE",
            nargs="?" if option.kind is bool else None,
            const="true" if option.kind is bool else None,
            help=_help(option).replace("%", "%%"),
        )
    parser.set_defaults(takes_recipe_keys=True)


def given_keys(parsed: argparse.Namespace) -> dict[str, str]:
    """The recipe keys given, by full path; an unknown one is a `UserError` naming the nearest."""
    for word in parsed.unknown:
        if not word.startswith("--"):
            raise UserError(f"unexpected argument {word!r}: options are written --key value")
        key = word[2:].partition("=")[0]
        path = resolve_key(key).path
        if hasattr(parsed, PREFIX + path):
            raise UserError(f"unknown option --{key}: did you mean --{path}?")
        raise UserError(f"option --{key} is for qsd train, not for this command")
    values = {name: v for name, v in vars(parsed).items() if name.startswith(PREFIX)}
    return {name.removeprefix(PREFIX): v for name, v in values.items() if v is not None}


def _help(option: Option) -> str:
    text = f"{option.help}; " if option.help else ""
    default = "none" if option.default is None else option.default
    if isinstance(default, tuple):
        default = list(default)
    if isinstance(default, bool):
        default = str(default).lower()
    return f"{text}{describe(option.kind)} (default: {default})"
