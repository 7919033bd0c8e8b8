"""The images of a stored model: those that its recipe names, with other keys put in their place."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qsdformer.data import DataConfig, DataInfo, DataModule
from qsdformer.errors import UserError
from qsdformer.models.checkpoint import Loaded, load_checkpoint
from qsdformer.recipes.recipe import parse_data, parse_value, with_keys
from qsdformer.tasks.evaluation import check_fits


def load_with_data(
    path: str, keys: Mapping[str, str], batch_size: int
) -> tuple[Loaded, DataModule]:
    """A checkpoint, and the data it was trained with, some `data.*` keys replaced.

    Raises `UserError` for a checkpoint without a recipe where `keys` name no data, and for data
    that does not fit the model.
    """
    loaded = load_checkpoint(path)
    data = stored_data(path, loaded.recipe, keys, loaded.info, batch_size)
    check_fits(loaded.model.num_classes, loaded.info, data.info)
    return loaded, data


def stored_data(
    path: str,
    recipe: Mapping[str, Any],
    keys: Mapping[str, str],
    info: DataInfo | None,
    batch_size: int,
) -> DataModule:
    """The data of a model file: its recipe's, some keys replaced, prepared as `info` says."""
    seed = parse_value("seed", int, recipe.get("seed", 0))
    config = data_config(path, recipe, keys, info)
    return DataModule(config, batch_size=batch_size, seed=seed, evaluate_as=info)


def data_config(
    path: str, recipe: Mapping[str, Any], keys: Mapping[str, str], info: DataInfo | None
) -> DataConfig:
    """What `stored_data` loads; a folder without a name is an image folder."""
    values = with_keys({"data": recipe.get("data", {})}, keys)
    data = dict(values["data"])
    if "name" not in data and "root" in data:
        data["name"] = "image_folder"
    if "name" not in data:
        raise UserError(
            f"{path} does not say which images it was trained on: give --data.name, such as "
            "digits, or --data.root with a folder of images"
        )
    if info is not None and data.get("image_size") is None:
        data["image_size"] = info.image_size
    return parse_data({"data": data})
