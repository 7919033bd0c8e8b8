"""Images for files of `qsd export`, which take pixels and do not say where those come from."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from qsdformer.data import DataInfo, DataModule
from qsdformer.data.preprocessing import Preprocessing
from qsdformer.errors import UserError
from qsdformer.graph.integer import IntegerGraph
from qsdformer.runtimes.executors import to_pixels
from qsdformer.runtimes.onnx_predict import OnnxModel
from qsdformer.tasks.evaluation import check_fits, first_images
from qsdformer.tasks.stored import stored_data


def data_for(
    path: str, model: IntegerGraph | OnnxModel, keys: Mapping[str, str], batch_size: int
) -> DataModule:
    """The data that `keys` name; a `UserError` if they name none, or none that fits the model."""
    info = DataInfo(**dataclasses.asdict(model.preprocessing), class_names=model.class_names)
    data = stored_data(path, {}, keys, info, batch_size)
    check_fits(len(model.class_names), info, data.info)
    if data.info.image_size != info.image_size:
        raise UserError(
            f"{path} takes images of {info.image_size} pixels, not {data.info.image_size}: "
            "leave out --image_size"
        )
    return data


def pixel_batches(data: DataModule, limit: int | None) -> Iterator[tuple[Tensor, Tensor]]:
    """The first `limit` evaluation images, None for all, as uint8 (B, C, H, W), and labels."""
    source = Preprocessing.of(data.info)
    for images, labels in first_images(data.val_dataloader(), limit):
        yield torch.from_numpy(to_pixels(images, source)), labels
