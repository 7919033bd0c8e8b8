"""The images of a stored model: those that its recipe names, with other keys put in their place.

An imported checkpoint names none: what its images look like is said by options.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar, cast

from qsdformer.data import DataInfo, DataModule
from qsdformer.data.base import IMAGENET_MEAN, IMAGENET_STD, ImageSize, numbered_classes
from qsdformer.data.cifar import HUNDRED, TEN, is_published
from qsdformer.data.detection.config import DetectionData
from qsdformer.data.detection.voc import is_voc
from qsdformer.data.image_folder import CROP_PCT
from qsdformer.data.sections import DATA_SECTIONS, DataSection
from qsdformer.data.segmentation.config import FOLDER as MASK_FOLDER
from qsdformer.data.segmentation.config import PUBLISHED, SegmentationData
from qsdformer.data.segmentation.files import class_names_in
from qsdformer.errors import UserError
from qsdformer.models.checkpoint import Loaded, load_checkpoint
from qsdformer.recipes.dense import DetectionRecipe
from qsdformer.recipes.recipe import parse_data, parse_value, with_keys
from qsdformer.tasks.choice import data_module, data_options
from qsdformer.tasks.evaluation import check_fits

SIZE = "data.image_size"
# Images at a time where nobody says how many: maps and boxes are of larger ones.
BATCH = {"classification": 256, "segmentation": 16, "detection": 16}
Section = TypeVar("Section", DetectionData, SegmentationData)
# A kind of data of each task, for reading keys that all of its kinds have.
FOLDERS = {"classification": "image_folder", "segmentation": MASK_FOLDER, "detection": "coco"}


def load_with_data(
    path: str, keys: Mapping[str, str], batch_size: int | None = None
) -> tuple[Loaded, DataModule]:
    """A checkpoint, and the data it was trained with, some `data.*` keys replaced.

    `batch_size` is by default that of its task, in `BATCH`.
    Raises `UserError` for a checkpoint without a recipe where `keys` name no data, and for data
    that does not fit the model.
    """
    loaded = load_checkpoint(path)
    return loaded, data_of(loaded, path, keys, batch_size)


def data_of(
    loaded: Loaded, path: str | Path, keys: Mapping[str, str], batch_size: int | None = None
) -> DataModule:
    """The data of the checkpoint at `path`, as `load_with_data` gives it."""
    recipe = {"task": loaded.task, **loaded.recipe}
    data = stored_data(path, recipe, keys, loaded.info, batch_size)
    check_fits(loaded.model.config.num_classes, loaded.info, data.info)
    return data


def stored_data(
    path: str | Path,
    recipe: Mapping[str, Any],
    keys: Mapping[str, str],
    info: DataInfo | None,
    batch_size: int | None = None,
) -> DataModule:
    """The data of a model file: its recipe's, some keys replaced.

    A file without a recipe gives its task, if that is not classification, in the key "task". They
    are prepared as `info` says, in the size of `keys` if that is given.
    """
    seed = parse_value("seed", int, recipe.get("seed", 0))
    config = data_config(path, recipe, keys, info)
    if info is not None and config.image_size is not None:
        info = dataclasses.replace(info, image_size=config.image_size)
    task = recipe.get("task", "classification")
    section = DetectionRecipe.parse(recipe["detection"]) if "detection" in recipe else None
    module = data_module(task)(
        config,
        batch_size=batch_size or BATCH[task],
        seed=seed,
        evaluate_as=info,
        training=False,
        **data_options(task, section),
    )
    return cast(DataModule, module)


def data_config(
    path: str | Path, recipe: Mapping[str, Any], keys: Mapping[str, str], info: DataInfo | None
) -> DataSection:
    """What `stored_data` loads; a folder without a name is one of images, or of images and masks.

    Where a published CIFAR archive lies it is that. Boxes are in the layout that the folder given
    in `keys` has. Masks are those of the published set whose classes the model has, if there is
    one.
    """
    task = recipe.get("task", "classification")
    values = with_keys({"data": recipe.get("data", {})}, keys)
    # What only training uses is of no use here, and might not go with other images.
    data = {key: v for key, v in values["data"].items() if key not in _training_keys(task)}
    elsewhere = task == "detection" and "data.root" in keys and "data.name" not in keys
    if "root" in data and ("name" not in data or elsewhere):
        data["name"] = _folder_kind(task, data["root"], info)
    if "name" not in data:
        raise UserError(
            f"{path} does not say which images it was trained on: give --data.name, such as "
            "digits, or --data.root with a folder of images"
        )
    if info is not None and data.get("image_size") is None:
        data["image_size"] = info.image_size
    if info is not None and data["name"] == MASK_FOLDER and data.get("classes") is None:
        # A folder's own names are read all the same where it has them, and compared.
        named = class_names_in(data.get("root"))
        data["classes"] = list(named or info.class_names)
    return parse_data({"task": task, "data": data})


def _training_keys(task: str) -> set[str]:
    """The keys on images of a task that only training uses."""
    fields = dataclasses.fields(DATA_SECTIONS[task])
    return {field.name for field in fields if field.metadata.get("training")}


def data_section(loaded: Loaded, path: str | Path, keys: Mapping[str, str]) -> DataSection | None:
    """The section on the images of the checkpoint at `path`; None if nothing says what they are."""
    if not loaded.recipe.get("data") and not set(keys) - {SIZE}:
        return None
    return data_config(path, {"task": loaded.task, **loaded.recipe}, keys, loaded.info)


def trained_section(loaded: Loaded, kind: type[Section], info: DataInfo) -> Section:
    """How images of a dense checkpoint were prepared: by its recipe, or to the size in `info`."""
    if not loaded.recipe.get("data"):
        return kind(image_size=info.image_size)
    parsed = parse_data(loaded.recipe)
    assert isinstance(parsed, kind)
    return parsed


def _folder_kind(task: str, root: object, info: DataInfo | None) -> str:
    """What a folder without a name is taken for."""
    if task == "classification":
        small = (("cifar10", TEN), ("cifar100", HUNDRED))
        return next((name for name, one in small if is_published(one, str(root))), "image_folder")
    if task == "detection":
        return "voc" if is_voc(str(root)) else "coco"
    sets = {classes: name for name, (classes, _) in PUBLISHED.items()}
    return sets.get(info.class_names, MASK_FOLDER) if info is not None else MASK_FOLDER


def described_inputs(loaded: Loaded, path: str | Path, keys: Mapping[str, str]) -> DataInfo:
    """The images of the checkpoint at `path`, as it says or as the data keys given say.

    Where those name a data set, they are that one's. An image size alone changes the size; for an
    imported checkpoint it means colour images prepared as is usual for ImageNet.
    """
    info = loaded.info
    if set(keys) - {SIZE}:
        return data_of(loaded, path, keys, batch_size=1).info
    size = None
    if SIZE in keys:
        named = {"task": loaded.task, "data": {"name": FOLDERS[loaded.task]}}
        size = parse_data(with_keys(named, keys)).image_size
    if info is not None:
        return info if size is None else dataclasses.replace(info, image_size=size)
    if size is None or loaded.model.config.in_channels != 3:
        raise unknown_inputs(path)
    return usual_inputs(size, loaded.model.num_classes)


def usual_inputs(size: ImageSize, classes: int) -> DataInfo:
    """Colour images of `size`, prepared as is usual for ImageNet; classes have their numbers."""
    return DataInfo(
        image_size=size,
        channels=3,
        class_names=numbered_classes(classes),
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        interpolation="bicubic",
        crop_pct=CROP_PCT,
    )


def unknown_inputs(path: str | Path) -> UserError:
    """For a command that has to know what images an imported checkpoint takes."""
    return UserError(
        f"{path} does not say what its images look like (it was imported): give --image-size N "
        "to qsd import-reference, or to qsd export and bench, for images prepared as ImageNet's "
        "are; export also takes --data.root DIR of a data set like the one it was trained on; or "
        f"fine-tune it on your data with qsd train RECIPE --start_from {path}"
    )
