"""What images are taken to be for a model that does not say: see `assumed_info`."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor, nn

from qsdformer.data.base import DataInfo, numbered_classes
from qsdformer.errors import UserError
from qsdformer.graph.trace import BATCH, has_logits, logits_step, trace


def first_channels(model: nn.Module, size: tuple[int, int]) -> int:
    """Channels of the images (H, W) that a model takes, as its first layer has them.

    A linear layer that comes first is taken to read flattened images.
    """
    for m in model.modules():
        if isinstance(m, nn.Conv2d):
            return m.in_channels
        if isinstance(m, nn.Linear) and m.in_features % math.prod(size) == 0:
            return m.in_features // math.prod(size)
    raise UserError("the model has no layer that tells how many channels its images have")


def assumed_info(
    model: nn.Module, shape: Sequence[int], *, low: float = 0.0, high: float = 1.0
) -> DataInfo:
    """Images of `shape` (..., C, H, W) whose pixels 0..255 mean `low` to `high`.

    Classes are called by their numbers; a model without logits has none.
    """
    channels, height, width = shape[-3:]
    traced = trace(model, (*shape[:-4], BATCH, channels, height, width))
    classes = logits_step(traced).channels if has_logits(traced) else 0
    spread = high - low if high > low else 1.0
    return DataInfo(
        image_size=(height, width),
        channels=channels,
        class_names=numbered_classes(classes),
        mean=(-low / spread,) * channels,
        std=(1 / spread,) * channels,
    )


def assumed_of(model: nn.Module, images: Tensor) -> tuple[DataInfo, str]:
    """`assumed_info` for these images (..., C, H, W), and what was assumed, in a sentence.

    Whole numbers are pixels, and floats from 0 to 1 pixels / 255. Other floats are taken to
    256 steps between the least and the greatest of them.
    """
    if images.dim() < 4:
        raise UserError(f"images of shape {tuple(images.shape)}: give a batch, (B, C, H, W)")
    if images.numel() == 0:
        raise UserError("no images: give at least one")
    low, high, steps = 0.0, 1.0, "pixels / 255"
    if images.is_floating_point():
        least, most = (float(x) for x in images.aminmax())
        if least < 0 or most > 1:
            low, high, steps = least, most, f"256 steps from {least:.4g} to {most:.4g}"
    info = assumed_info(model, images.shape, low=low, high=high)
    return info, f"the model does not say what images it takes; assumed: {steps} (else give info=)"
