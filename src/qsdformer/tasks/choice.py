"""Which module learns a recipe's task, and which serves its data."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol, cast

from qsdformer.data import DataInfo
from qsdformer.data.loading import Batches
from qsdformer.models.dense.config import DetectionConfig
from qsdformer.recipes.dense import DetectionRecipe
from qsdformer.recipes.recipe import Recipe

if TYPE_CHECKING:  # they need Lightning and timm, which take seconds
    from qsdformer.tasks.base import NetworkTask
    from qsdformer.tasks.teachers import Teacher

# "module:class" of what is trained, and of what serves its batches.
TASKS = {
    "classification": "qsdformer.tasks.classification:Classification",
    "segmentation": "qsdformer.tasks.segmentation:Segmentation",
    "detection": "qsdformer.tasks.detection:Detection",
}
# The same with a teacher.
TAUGHT = {
    "classification": "qsdformer.tasks.distillation:Distillation",
    "segmentation": "qsdformer.tasks.dense_distillation:TaughtSegmentation",
    "detection": "qsdformer.tasks.dense_distillation:TaughtDetection",
}
DATA = {
    "classification": "qsdformer.data.module:DataModule",
    "segmentation": "qsdformer.data.module:DataModule",
    "detection": "qsdformer.data.detection.module:DetectionDataModule",
}


class TaskData(Batches, Protocol):
    """What training needs of a data module."""

    @property
    def info(self) -> DataInfo:
        """What the images are like."""
        ...

    @property
    def notes(self) -> tuple[str, ...]:
        """What the user should know of the files, a line each."""
        ...

    @property
    def train_size(self) -> int:
        """Images trained on."""
        ...

    @property
    def eval_size(self) -> int:
        """Images evaluated on."""
        ...

    def check(self) -> None:
        """`UserError` that counts and names unreadable images."""
        ...


def training_data(recipe: Recipe) -> TaskData:
    """The data that a recipe trains on; `UserError` if they are missing or unusable."""
    module = data_module(recipe.task)(
        recipe.data,
        batch_size=recipe.train.batch_size,
        eval_batch_size=recipe.train.eval_batch_size,
        seed=recipe.seed,
        **data_options(recipe.task, recipe.detection),
    )
    return cast(TaskData, module)


def data_module(task: str) -> Callable[..., Any]:
    """The class of the data module that serves a task; it is built as `DataModule` is."""
    return cast(Callable[..., Any], _named(DATA[task]))


def data_options(task: str, section: DetectionRecipe | None) -> dict[str, Any]:
    """What a data module has to know beside the data's own section: whether masks are wanted.

    An exported detector, which has no section, finds boxes only.
    """
    if task != "detection":
        return {}
    if section is None:
        return {"masks": False}
    return {"masks": section.fields.get("detector", DetectionConfig.detector) == "mask_rcnn"}


def make_task(recipe: Recipe, data: TaskData, teacher: Teacher | None = None) -> NetworkTask:
    """The module that trains a network as the recipe says, with new weights."""
    from qsdformer.tasks.base import NetworkTask

    if teacher is None:
        task = _named(TASKS[recipe.task])(recipe, data.info)
    else:
        task = _named(TAUGHT[recipe.task])(recipe, data.info, teacher)
    assert isinstance(task, NetworkTask)
    task.use_data(data)
    return task


def _named(place: str) -> Any:
    module, _, name = place.partition(":")
    return getattr(importlib.import_module(module), name)
