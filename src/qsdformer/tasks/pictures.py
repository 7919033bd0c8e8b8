"""Pictures of what a network finds, for TensorBoard."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor
from torch.nn import functional as F

from qsdformer.data import DataInfo
from qsdformer.data.segmentation.overlay import coloured, overlaid


def shown_image(image: Tensor, info: DataInfo) -> np.ndarray:
    """A normalised image (C, H, W) as the pixels (H, W, 3) uint8 that it was made of."""
    mean, std = (torch.tensor(v, device=image.device).view(-1, 1, 1) for v in (info.mean, info.std))
    pixels = (255 * (image * std + mean)).round().clamp(0, 255).to(torch.uint8)
    colour = pixels.expand(3, *pixels.shape[1:]) if pixels.shape[0] == 1 else pixels
    return np.ascontiguousarray(colour.permute(1, 2, 0).cpu().numpy())


def log_overlays(task: Any, images: Tensor, found: Tensor, masks: Tensor) -> None:
    """Images beside the masks found and the true ones, to each TensorBoard logger of the run."""
    loggers = [one for one in task.trainer.loggers if isinstance(one, TensorBoardLogger)]
    if not loggers:
        return
    classes = len(task.info.class_names)
    rows = []
    for image, one, true in zip(images, found, masks, strict=True):
        height, width = true.shape
        shown = shown_image(_resized(image, (height, width)), task.info)
        labels = (mask.to(torch.uint8).cpu().numpy() for mask in (one, true))
        predicted, wanted = labels
        parts = (shown, overlaid(shown, predicted, classes), coloured(wanted, classes))
        rows.append(np.concatenate(parts, axis=1))
    picture = np.concatenate(rows, axis=0)
    for logger in loggers:
        logger.experiment.add_image(
            "image, found, true", picture, task.global_step, dataformats="HWC"
        )


def _resized(image: Tensor, size: tuple[int, int]) -> Tensor:
    if tuple(image.shape[-2:]) == size:
        return image
    return F.interpolate(image[None], size=size, mode="bilinear", align_corners=False)[0]
