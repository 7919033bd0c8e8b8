"""Images for files of `qsd export`, which take pixels and do not say where those come from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from qsdformer.data import DataInfo, DataModule
from qsdformer.data.base import as_image_size, size_text
from qsdformer.data.preprocessing import Preprocessing
from qsdformer.errors import UserError
from qsdformer.graph.integer import IntegerGraph
from qsdformer.graph.post import DetectionPost, RegionPost, SegmentationPost
from qsdformer.runtimes.executors import to_pixels
from qsdformer.runtimes.exported import task_of
from qsdformer.runtimes.onnx_predict import OnnxModel
from qsdformer.tasks.evaluation import check_fits, first_images
from qsdformer.tasks.network_images import network_batches
from qsdformer.tasks.stored import stored_data


def info_of(model: IntegerGraph | OnnxModel) -> DataInfo:
    """What an exported model says of its images and classes."""
    pre, post = model.preprocessing, model.post
    return DataInfo(
        image_size=as_image_size(pre.inner),
        channels=pre.channels,
        class_names=model.class_names if post is None else post.class_names,
        mean=pre.mean,
        std=pre.std,
        interpolation=pre.interpolation,
        crop_pct=pre.crop_pct,
        fit=pre.fit,
    )


def data_for(
    path: str, model: IntegerGraph | OnnxModel, keys: Mapping[str, str], batch_size: int | None
) -> DataModule:
    """The data that `keys` name; a `UserError` if they name none, or none that fits the model."""
    info, task = info_of(model), task_of(model)
    if not info.class_names:
        raise UserError(
            f"{path} is a part of a network, without classes: give the file of the whole"
        )
    recipe: dict[str, Any] = {} if task == "classification" else {"task": task}
    if isinstance(model.post, DetectionPost | RegionPost):
        detector = "mask_rcnn" if model.post.has_masks else "faster_rcnn"
        recipe["detection"] = {"detector": detector}
    elif isinstance(model.post, SegmentationPost) and model.post.shorter_side is not None:
        recipe["data"] = {
            "shorter_side": model.post.shorter_side,
            "longest_side": model.post.longest_side,
        }
    data = stored_data(path, recipe, keys, info, batch_size)
    check_fits(len(info.class_names), info, data.info)
    if data.info.image_size != info.image_size:
        raise UserError(
            f"{path} takes images of {size_text(info.image_size)} pixels, not "
            f"{size_text(data.info.image_size)}: leave out --image_size"
        )
    return data


def pixel_batches(
    data: DataModule,
    limit: int | None,
    pre: Preprocessing | None = None,
    task: str = "classification",
) -> Iterator[tuple[Tensor, Any]]:
    """The first `limit` evaluation images, None for all, as uint8 (B, C, H, W), and labels.

    `pre` says what images a dense network takes; see `network_batches`.
    """
    batches = data.val_dataloader()
    if task == "classification":
        pre, found = Preprocessing.of(data.info), first_images(batches, limit)
    else:
        assert pre is not None
        found = network_batches(batches, limit, pre, task)
    for images, labels in found:
        yield torch.from_numpy(to_pixels(images, pre)), labels
