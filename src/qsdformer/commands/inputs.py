"""What images a checkpoint takes: what it says itself or, of an imported one, what options say."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from qsdformer.data import DataInfo, DataModule
from qsdformer.data.image_folder import CROP_PCT
from qsdformer.errors import UserError
from qsdformer.models.checkpoint import Loaded
from qsdformer.recipes.recipe import parse_data, with_keys
from qsdformer.tasks.evaluation import check_fits

SIZE = "data.image_size"


def unknown_inputs(path: str | Path, other_way: str = "") -> UserError:
    """For a command that has to know what images an imported checkpoint takes."""
    return UserError(
        f"{path} does not say what its images look like (it was imported): {other_way}fine-tune "
        f"it on your data with qsd train RECIPE --start_from {path}"
    )


def described_inputs(loaded: Loaded, path: str | Path, keys: Mapping[str, str]) -> DataInfo:
    """The images of the checkpoint at `path`, as it says or as the data keys given say.

    Where those name a data set, they are that one's. An image size alone changes the size; for an
    imported checkpoint it means colour images prepared as is usual for ImageNet.
    """
    info = loaded.info
    if set(keys) - {SIZE}:
        stored = loaded.extra.get("recipe", {}).get("data", {})
        found = DataModule(parse_data(with_keys({"data": stored}, keys)), batch_size=1).info
        check_fits(loaded.model.num_classes, info, found)
        return found
    size = parse_data(with_keys({"data": {"name": "image_folder"}}, keys)).image_size
    if info is not None:
        return info if size is None else dataclasses.replace(info, image_size=size)
    if size is None or loaded.model.config.in_channels != 3:
        way = "give --data.name and --data.root of a data set like the one it was trained on"
        raise unknown_inputs(
            path, f"{way}, or --data.image_size N for images as ImageNet's are prepared, or "
        )
    return DataInfo(
        image_size=size,
        channels=3,
        class_names=tuple(str(number) for number in range(loaded.model.num_classes)),
        mean=IMAGENET_DEFAULT_MEAN,
        std=IMAGENET_DEFAULT_STD,
        interpolation="bicubic",
        crop_pct=CROP_PCT,
    )
