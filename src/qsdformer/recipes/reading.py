"""Files of recipes: where they are found, and their plain values, each built on another's."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from qsdformer.errors import UserError
from qsdformer.models.registry import families, owners, sizes
from qsdformer.nn.config import ANN_NEURONS, READ_BY, NetworkConfig, decided_by
from qsdformer.parsing import load_yaml, none_word, one_of, parse_value, type_hints
from qsdformer.recipes import packaged_grids, packaged_recipes
from qsdformer.recipes.dense import SECTIONS

BASE = "recipe"  # the key of a recipe file that names the recipe it builds on
# Keys that may be a path, whose ~ is the home folder, as `data.root` and `output` may.
PATHS = (("model", "start_from"), ("distill", "teacher"), ("distill", "teacher_weights"))


def recipe_values(name: str, above: tuple[str, ...] = ()) -> dict[str, Any]:
    """The plain, unchecked values of a packaged recipe or a YAML file, with an output folder.

    Keys that it leaves out come from the recipe it builds on; `above` are those that build on it.
    """
    text, stem = _read(name)
    values = load_yaml(text, f"recipe {name}")
    if not isinstance(values, dict):
        raise UserError(f"recipe {name}: must be a mapping with model, data and train")
    values = {"output": f"runs/{stem}", **values}
    base = values.pop(BASE, None)
    if base is None:
        return merged({}, values)
    base = nearby(name, parse_value(f"recipe {name}: {BASE}", str, base))
    chain = (*above, name)
    if base in chain:
        raise UserError(f"recipe {name} builds on itself: {' -> '.join((*chain, base))}")
    return merged(recipe_values(base, chain), values)


def merged(base: dict[str, Any], own: dict[str, Any]) -> dict[str, Any]:
    """`base` with the keys of `own` in their place, section by section.

    A section without keys, all of which are commented out, leaves that of `base` as it is; distill
    and activity may be none.
    """
    kept = ("model", "data", "train", *SECTIONS)
    own = {key: value for key, value in own.items() if value is not None or key not in kept}
    both = {k for k, v in own.items() if isinstance(v, dict) and isinstance(base.get(k), dict)}
    whole = {**base, **own, **{k: {**base[k], **own[k]} for k in both}}
    if "train" in both and "warmup" in own["train"] and "warmup_steps" not in own["train"]:
        whole["train"].pop("warmup_steps", None)  # in place of the base's number of steps
    if isinstance(own.get("model"), dict):
        whole["model"] = _merged_model(base["model"] if "model" in both else {}, own["model"])
    return with_home(whole)


def with_home(values: Mapping[str, Any]) -> dict[str, Any]:
    """A recipe's plain values in whose paths ~ is the home folder."""
    found = dict(values)
    for section, key in PATHS:
        place = found.get(section)
        if isinstance(place, dict) and isinstance(place.get(key), str):
            found[section] = {**place, key: os.path.expanduser(place[key])}
    if isinstance(found.get("output"), str):
        found["output"] = os.path.expanduser(found["output"])
    return found


def _merged_model(base: dict[str, Any], own: dict[str, Any]) -> dict[str, Any]:
    """As `merged`, for the model section, where one key can decide others.

    Another neuron takes the keys along that the one before decided, or that it decides itself; a
    size of another family leaves those behind that only the family before has.
    The counterpart ANN overrules what it is built on, but a key given beside it or on top of it
    must not contradict it: it would be ignored.
    """
    if own.get("neuron", base.get("neuron")) != base.get("neuron"):
        stale = {**decided_by(base.get("neuron")), **decided_by(own["neuron"])}
        base = {key: value for key, value in base.items() if key not in stale}
    if "name" in own and (family := sizes().get(str(own["name"]))) is not None:
        base = {key: v for key, v in base.items() if key in family.fields or not owners(key)}
    whole = {**base, **own}
    if whole.get("ann") is True:
        for key in not_of_an_ann(own):
            raise UserError(
                f"model.{key}={own[key]!r} with model.ann=True: the counterpart ANN has "
                "real-valued neurons, softmax and full precision; leave out one of the two"
            )
    return whole


def refuse_idle(values: Mapping[str, Any], given: Iterable[str]) -> None:
    """`UserError` for a key that is given, by its full path, and that a recipe's neurons ignore.

    A file may have such keys: other files and the command line may give it other neurons.
    """
    model = values.get("model") or {}
    neuron = "relu" if model.get("ann") is True else str(model.get("neuron", NetworkConfig.neuron))
    for path in given:
        section, _, key = path.rpartition(".")
        readers = READ_BY.get(key, ()) if section == "model" else ()
        if readers and neuron not in readers:
            raise UserError(
                f"{path} is read by {' and '.join(readers)} neurons, and here they are "
                f"{neuron}: leave it out"
            )


def not_of_an_ann(fields: Mapping[str, Any]) -> list[str]:
    """The keys of a model section that the counterpart ANN overrules."""
    configs = [family.config for family in families().values()]
    kinds = {key: kind for config in configs for key, kind in type_hints(config).items()}
    real = {key: value for config in configs for key, value in config.ANN_FIELDS.items()}
    overruled = [
        key
        for key, value in real.items()
        if key in fields and none_word(kinds[key], fields[key]) != value
    ]
    spiking = "neuron" in fields and fields["neuron"] not in ANN_NEURONS
    return [*overruled, "neuron"] if spiking else overruled


def _read(name: str) -> tuple[str, str]:
    if name in packaged_grids():
        raise UserError(f"{name} is a grid, not a recipe: qsd ablate {name}")
    return read_named(name, "recipe", packaged_recipes())


def nearby(file: str, name: str) -> str:
    """A recipe that a `file` names: in the current folder, or else in the file's own."""
    own = Path(file).parent / name
    if name in packaged_recipes() or os.path.isfile(name) or not os.path.isfile(own):
        return name
    return str(own)


def read_named(name: str, what: str, packaged: Mapping[str, Path]) -> tuple[str, str]:
    """The text of a packaged file or of one at a path, and its name without its ending.

    `what` it is stands in the `UserError` for one that is missing or cannot be read.
    """
    path = packaged.get(name, Path(name))
    if not os.path.isfile(path):  # False for what cannot be a file's name, too
        raise UserError(f"no {what} {name!r}: neither a file nor {one_of(packaged, name)}")
    try:
        return path.read_text(encoding="utf-8"), path.stem
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {what} {name}: {error}") from error
