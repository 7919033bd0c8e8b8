"""The images of a data set as a dense network of one size sees them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from qsdformer.data.preprocessing import Preprocessing
from qsdformer.tasks.evaluation import first_images

DETECTION = "detection"  # whose images are lists of (C, h, w) in 0..1, of many sizes


def network_batches(
    batches: Any, limit: int | None, pre: Preprocessing, task: str
) -> Iterator[tuple[Tensor, Any]]:
    """The first `limit` images of evaluation batches, normalised, and whatever labels they have.

    They have the size of `pre`: images of a segmentation set are cut and filled up with 0 on the
    right and below, those of a detection set are resized too.
    """
    for images, labels in first_images(batches, limit):
        if task == DETECTION:
            yield torch.cat([placed(normalised(image, pre), pre) for image in images]), labels
        elif isinstance(images, Tensor):
            yield whole(images, pre), labels
        else:
            yield torch.cat([whole(image[None], pre) for image in images]), labels


def placed(image: Tensor, pre: Preprocessing) -> Tensor:
    """An image (1, C, h, w), resized if it is not of the size that `pre` brings it to."""
    place = pre.place_of((int(image.shape[-2]), int(image.shape[-1])))
    if image.shape[-2:] != torch.Size(place):
        image = F.interpolate(image, size=place, mode="bilinear", antialias=True)
    return whole(image, pre)


def whole(images: Tensor, pre: Preprocessing) -> Tensor:
    """Images (B, C, h, w) cut or filled up to the sides of `pre`."""
    height, width = pre.sides
    cut = images[..., :height, :width]
    return F.pad(cut, (0, width - cut.shape[-1], 0, height - cut.shape[-2]))


def normalised(image: Tensor, pre: Preprocessing) -> Tensor:
    """An image (C, h, w) in 0..1 as (1, C, h, w) normalised."""
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (pre.mean, pre.std))
    return ((image.cpu() - mean) / std)[None]
