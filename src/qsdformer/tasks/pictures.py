"""Pictures of what a network finds, for TensorBoard."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from PIL import Image
from torch import Tensor

from qsdformer.data import DataInfo
from qsdformer.data.detection.drawing import Drawn, beside, drawn
from qsdformer.data.segmentation.overlay import coloured, overlaid
from qsdformer.nn.scaling import scaled

LIKELY = 0.3  # score from which a detection is drawn


def shown_image(image: Tensor, info: DataInfo) -> np.ndarray:
    """A normalised image (C, H, W) as the pixels (H, W, 3) uint8 that it was made of."""
    mean, std = (torch.tensor(v, device=image.device).view(-1, 1, 1) for v in (info.mean, info.std))
    return _pixels(image * std + mean)


def log_overlays(task: Any, images: Tensor, found: Tensor, masks: Tensor) -> None:
    """Images beside the masks found and the true ones, to each TensorBoard logger of the run."""
    loggers = _loggers(task)
    if not loggers:
        return
    classes = len(task.info.class_names)
    rows = []
    for image, one, true in zip(images, found, masks, strict=True):
        height, width = true.shape
        shown = shown_image(scaled(image[None], (height, width))[0], task.info)
        labels = (mask.to(torch.uint8).cpu().numpy() for mask in (one, true))
        predicted, wanted = labels
        parts = (shown, overlaid(shown, predicted, classes), coloured(wanted, classes))
        rows.append(np.concatenate(parts, axis=1))
    picture = np.concatenate(rows, axis=0)
    for logger in loggers:
        logger.experiment.add_image(
            "image, found, true", picture, task.global_step, dataformats="HWC"
        )


def log_boxes(
    task: Any,
    images: Sequence[Tensor],
    found: Sequence[Mapping[str, Tensor]],
    targets: Sequence[Mapping[str, Tensor]],
) -> None:
    """What is found in images beside what is there, to each TensorBoard logger of the run.

    Images (C, h, w) are in 0..1, boxes and masks for their sizes in the files.
    """
    loggers = _loggers(task)
    if not loggers:
        return
    names = task.info.class_names
    for index, (image, one, true) in enumerate(zip(images, found, targets, strict=True)):
        height, width = (int(side) for side in true["size"])
        shown = Image.fromarray(_pixels(scaled(image[None], (height, width))[0]))
        likely = one["scores"] >= LIKELY
        kept = {key: value[likely] for key, value in one.items()}
        pictures = [drawn(shown, as_drawn(kept), names), drawn(shown, as_drawn(true), names)]
        for logger in loggers:
            logger.experiment.add_image(
                f"found, true/{index}", beside(pictures), task.global_step, dataformats="HWC"
            )


def as_drawn(found: Mapping[str, Tensor]) -> Drawn:
    """Detections or annotations of an image as objects to draw."""
    scores = found.get("scores")
    masks = found.get("masks")
    return Drawn(
        boxes=found["boxes"].cpu().numpy(),
        labels=found["labels"].tolist(),
        scores=None if scores is None else scores.tolist(),
        masks=None if masks is None else masks.bool().cpu().numpy(),
    )


def _loggers(task: Any) -> list[TensorBoardLogger]:
    return [one for one in task.trainer.loggers if isinstance(one, TensorBoardLogger)]


def _pixels(image: Tensor) -> np.ndarray:
    """An image (C, H, W) in 0..1, grey or in colour, as (H, W, 3) uint8."""
    pixels = (255 * image).round().clamp(0, 255).to(torch.uint8)
    colour = pixels.expand(3, *pixels.shape[1:])
    return np.ascontiguousarray(colour.permute(1, 2, 0).cpu().numpy())
