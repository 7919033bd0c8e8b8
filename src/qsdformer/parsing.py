"""Plain values, from YAML or the command line, into typed dataclasses with one-line errors."""

from __future__ import annotations

import dataclasses
import functools
import json
import re
import types
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import yaml
from pydantic import TypeAdapter, ValidationError

from qsdformer.errors import UserError, did_you_mean

Section = TypeVar("Section")
MOST_VALUES = 100_000  # in a YAML file; those of grids have hundreds

# The annotated types of a dataclass's fields, evaluated once: recipes ask for them key by key.
type_hints: Callable[[Any], dict[str, Any]] = functools.cache(get_type_hints)
# What checks values of a type, made once: making it takes longer than checking.
_checker: Callable[[Any], TypeAdapter[Any]] = functools.cache(TypeAdapter)


def option(default: Any, text: str, *, added: bool = False, training: bool = False) -> Any:
    """A dataclass field with a line of help for the command line and a default.

    One that was `added` to a section later is not written where it is left at its default; one
    of `training` matters to nothing else. Without a default (`...`) the field is required.
    """
    metadata = {"help": text, "added": added, "training": training}
    if default is ...:
        return dataclasses.field(metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def written(section: Any) -> dict[str, Any]:
    """The fields of a section as plain values, as recipes are written."""
    values = {}
    for field in dataclasses.fields(section):
        value = getattr(section, field.name)
        if not (field.metadata.get("added") and value == field.default):
            values[field.name] = plain(value)
    return values


def plain(value: Any) -> Any:
    """A value with lists in place of tuples, at any depth."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, (list, tuple)) else value


def load_yaml(text: str, what: str) -> Any:
    """The value of YAML `text`; a `UserError` naming `what` where it is not valid."""
    try:
        value = yaml.load(text, Loader=_Loader)
        if _written_out(value, {}) > MOST_VALUES:
            raise ValueError(f"written out, it has more than {MOST_VALUES:,} values")
        json.dumps(value, default=str, skipkeys=True)  # a ValueError where a list holds itself
    except yaml.YAMLError as error:
        raise UserError(f"{what} is not valid YAML: {_yaml_reason(error)}") from error
    except (ValueError, RecursionError) as error:
        reason = "nested too deep" if isinstance(error, RecursionError) else str(error)
        raise UserError(f"{what} is not valid YAML: {reason}") from error
    return value


def _written_out(value: Any, known: dict[int, int | None]) -> int:
    """How many values there are if each repetition (*name) is written out."""
    if not isinstance(value, (dict, list)):
        return 1
    if (size := known.get(id(value), 0)) is None:
        raise ValueError("it holds itself")
    if not size:
        known[id(value)] = None
        parts = value.values() if isinstance(value, dict) else value
        size = known[id(value)] = 1 + sum(_written_out(part, known) for part in parts)
    return size


def dump_yaml(value: Any) -> str:
    """Plain values as YAML that `load_yaml` reads back, keys in their order."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False)


def parse_section(cls: type[Section], path: str, section: Any) -> Section:
    values = require_mapping(path, section)
    refuse_unknown(f"{path}.", values, [f.name for f in dataclasses.fields(cls)])  # type: ignore[arg-type]
    hints = type_hints(cls)
    values = {key: none_word(hints[key], value) for key, value in values.items()}
    try:
        # As JSON, strict checking still takes lists for tuples and whole numbers for floats.
        return _checker(cls).validate_json(json.dumps(values, default=str), strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        if first["type"] == "missing" and len(first["loc"]) == 1:
            raise UserError(f"{path}.{first['loc'][0]} is missing from the recipe") from None
        if not first["loc"]:
            raise UserError(f"{path}.{first['ctx']['error']}") from None
        key = str(first["loc"][0])
        raise _mistyped(f"{path}.{key}", hints[key], values[key]) from None


def parse_value(path: str, kind: Any, value: Any) -> Any:
    try:
        return _checker(kind).validate_json(json.dumps(value, default=str), strict=True)
    except ValidationError:
        raise _mistyped(path, kind, value) from None


def describe(kind: Any) -> str:
    """What a key of this annotated type takes, in words."""
    words = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
    if kind in words:
        return words[kind]
    if kind is type(None):
        return "none"
    arguments = get_args(kind)
    if get_origin(kind) is Literal:
        return ("one of " if len(arguments) > 1 else "") + ", ".join(map(str, arguments))
    if get_origin(kind) in (Union, types.UnionType):
        return " or ".join(describe(a) for a in arguments)
    if get_origin(kind) in (Mapping, dict):
        return "key: value pairs"
    if get_origin(kind) is tuple:
        many = "items" if Ellipsis in arguments else f"{len(arguments)} items"
        return f"a list of {many}, each {describe(arguments[0])}"
    return str(kind)


def require_mapping(path: str, section: Any) -> dict[str, Any]:
    if not isinstance(section, Mapping):
        raise UserError(f"{path}={section!r}: must be a section of key: value lines")
    return dict(section)


def refuse_unknown(prefix: str, values: Mapping[str, Any], allowed: list[str]) -> None:
    for key in values:
        if key not in allowed:
            hint = nearest(str(key), allowed, prefix)
            raise UserError(f"unknown recipe key {prefix}{key}{hint}")


def nearest(key: str, names: Iterable[str], prefix: str = "") -> str:
    names = list(names)
    question = did_you_mean(key, names, prefix)
    return f": {question}" if question else f"; known: {', '.join(names)}"


def one_of(names: Iterable[str], given: str) -> str:
    names = list(names)
    question = did_you_mean(given, names)
    return f"one of {', '.join(names)}" + (f" ({question})" if question else "")


def _mistyped(path: str, kind: Any, value: Any) -> UserError:
    shown = "none" if value is None else repr(value)
    return UserError(f"{path}={shown}: must be {describe(kind)}")


def none_word(kind: Any, value: Any) -> Any:
    """`none` is null where null is allowed, and otherwise the word itself."""
    optional = type(None) in get_args(kind)
    return None if optional and value in ("none", "None") else value


def _yaml_reason(error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None)
    where = f"line {mark.line + 1}: " if mark else ""
    return where + str(getattr(error, "problem", None) or error).replace("\n", " ")


TAG = "tag:yaml.org,2002:"


class _Loader(yaml.SafeLoader):
    """YAML with the numbers of version 1.2: 6e-4 is one, 010 is ten and 1:30 is text; no dates.

    A key that is given twice in a mapping is an error.
    """

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        """A mapping whose keys differ."""
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    problem = f"{key.value} is given twice"
                    raise yaml.constructor.ConstructorError(None, None, problem, key.start_mark)
                seen.add(key.value)
        return super().construct_mapping(node, deep)

    def construct_yaml_int(self, node: Any) -> int:
        """A whole number: decimal whatever it begins with, but for 0x and 0o."""
        text = self.construct_scalar(node)
        return int(text, 0 if text.startswith(("0x", "0o")) else 10)


class _Dumper(yaml.SafeDumper):
    """Quotes the words that would be numbers in `_Loader`."""


_Loader.add_constructor(f"{TAG}int", _Loader.construct_yaml_int)
for _class in (_Loader, _Dumper):
    _class.yaml_implicit_resolvers = {
        first: [
            (tag, pattern)
            for tag, pattern in resolvers
            if tag not in (f"{TAG}int", f"{TAG}float", f"{TAG}timestamp")
        ]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }
    for _tag, _pattern in {
        "int": r"[-+]?\d+|0o[0-7]+|0x[\da-fA-F]+",
        "float": r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
    }.items():
        _class.add_implicit_resolver(
            TAG + _tag, re.compile(f"^({_pattern})$", re.ASCII), list("-+.0123456789")
        )
