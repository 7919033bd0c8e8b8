"""Segmenting images of any size, and counting how well it went.

B images, K classes, H rows, W columns; images are normalised, (B, C, H, W) float32.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics.classification import MulticlassConfusionMatrix, MulticlassJaccardIndex

from qsdformer.data import DataInfo
from qsdformer.data.segmentation.labels import IGNORE
from qsdformer.errors import UserError
from qsdformer.nn.exact import exact_float32
from qsdformer.nn.scaling import scaled
from qsdformer.recipes.dense import SegmentationRecipe

Size = Sequence[int]  # height, width


@dataclass(frozen=True, kw_only=True)
class Segmenter:
    """A network and how images go through it: whole, or in windows that overlap.

    Called with images and a size (H, W), it returns logits (B, K, H, W).
    """

    network: nn.Module
    window: tuple[int, int] | None = None  # None: whole images
    overlap: float = 0.5

    @classmethod
    def of(cls, network: nn.Module, section: SegmentationRecipe, info: DataInfo) -> Segmenter:
        """As a recipe's section says; windows are of the size that the network was trained on."""
        window = info.sides if section.inference == "slide" else None
        return cls(network=network, window=window, overlap=section.overlap)

    def __call__(self, images: Tensor, size: Size | None = None) -> Tensor:
        """Logits at `size`, or at the size of the images."""
        logits = self._whole(images) if self.window is None else self._slide(images)
        return logits if size is None else scaled(logits, size)

    def _whole(self, images: Tensor) -> Tensor:
        """Images are padded with zeros to what the network's strides divide."""
        height, width = images.shape[-2:]
        images = padded(images, int(getattr(self.network, "multiple", 1)))
        coarse = self.network.forward(images)["mask"]
        return scaled(coarse, images.shape[-2:])[..., :height, :width]

    def _slide(self, images: Tensor) -> Tensor:
        """The mean of the logits of all windows that a pixel is in."""
        assert self.window is not None
        height, width = images.shape[-2:]
        tall, wide = (min(a, b) for a, b in zip(self.window, (height, width), strict=True))
        total: Tensor | None = None
        times = images.new_zeros(1, 1, height, width)
        for top in window_starts(height, tall, self.overlap):
            for left in window_starts(width, wide, self.overlap):
                logits = self._whole(images[..., top : top + tall, left : left + wide])
                if total is None:
                    total = logits.new_zeros(*logits.shape[:2], height, width)
                total[..., top : top + tall, left : left + wide] += logits
                times[..., top : top + tall, left : left + wide] += 1
        assert total is not None
        return total / times


def segmenter_on(segmenter: Segmenter, device: torch.device) -> Callable[[Tensor, Size], Tensor]:
    """Logits by a segmenter whose network is on `device`, in full float32."""

    def segment(images: Tensor, size: Size) -> Tensor:
        with exact_float32(device):
            return segmenter(images.to(device), size)

    return segment


def padded(images: Tensor, multiple: int) -> Tensor:
    """Images with zeros, which are the mean colour, below and at the right of them.

    Both sides become multiples of `multiple`.
    """
    height, width = images.shape[-2:]
    missing = -height % multiple, -width % multiple
    return F.pad(images, (0, missing[1], 0, missing[0])) if any(missing) else images


def window_starts(length: int, window: int, overlap: float) -> list[int]:
    """Where windows start so that they cover `length`, neighbours sharing at least `overlap`."""
    step = max(1, int(window * (1 - overlap)))
    starts = list(range(0, length - window, step))
    return [*starts, length - window]


class MaskScores(nn.Module):
    """Intersection over union and pixel accuracy of all masks given, over all processes.

    Intersections and unions are summed over the set. Classes that neither masks nor predictions
    show are left out of the mean.
    """

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.classes = classes
        options: dict[str, Any] = {"ignore_index": IGNORE, "validate_args": False}
        self.jaccard = MulticlassJaccardIndex(max(2, classes), average="none", **options)
        self.confusion = MulticlassConfusionMatrix(max(2, classes), **options)

    def update(self, found: Tensor, masks: Tensor) -> None:
        """Count predicted classes (B, H, W) against masks (B, H, W)."""
        self.jaccard.update(found, masks)
        self.confusion.update(found, masks)

    def compute(self) -> Scores:
        """What was counted since the last `reset`."""
        iou = self.jaccard.compute()[: self.classes].cpu()
        confusion = self.confusion.compute()[: self.classes, : self.classes].cpu().double()
        pixels, found, right = confusion.sum(1), confusion.sum(0), confusion.diag()
        return Scores(
            iou=tuple(torch.where(pixels + found > 0, iou, math.nan).tolist()),
            accuracy=tuple(torch.where(pixels > 0, right / pixels, math.nan).tolist()),
            share=tuple((pixels / pixels.sum().clamp(min=1)).tolist()),
        )

    def reset(self) -> None:
        """Forget everything."""
        self.jaccard.reset()
        self.confusion.reset()


@dataclass(frozen=True, kw_only=True)
class Scores:
    """For each class its IoU, the share of its pixels that was found, and its share of all pixels.

    IoU is NaN for a class that neither masks nor predictions show, the second for one that masks
    do not show.
    """

    iou: tuple[float, ...]
    accuracy: tuple[float, ...]
    share: tuple[float, ...]

    @property
    def mean_iou(self) -> float:
        """The mean over the classes that are shown; 0 where no pixel counts."""
        shown = [value for value in self.iou if not math.isnan(value)]
        return sum(shown) / max(1, len(shown))

    @property
    def pixel_accuracy(self) -> float:
        """The share of the pixels whose class was found; 0 where no pixel counts."""
        pairs = zip(self.accuracy, self.share, strict=True)
        return sum(found * share for found, share in pairs if share)


@dataclass(frozen=True, kw_only=True)
class MaskEvaluation:
    """What a network finds on a set; speed includes loading and preprocessing."""

    scores: Scores
    images: int
    images_per_second: float


@torch.inference_mode()
def evaluate_masks(
    segment: Callable[[Tensor, Size], Tensor],
    batches: Iterable[tuple[Any, Any]],
    classes: int,
) -> MaskEvaluation:
    """Scores of what gives logits (B, K, *size) for images (B, C, H, W) and a size.

    A batch is images and masks, each a tensor or a list of those of single images. Raises
    `UserError` where there are no images.
    """
    scores, images = MaskScores(classes), 0
    begin = time.perf_counter()
    for batch in batches:
        for part, masks in parts(batch):
            found = segment(part, masks.shape[-2:]).argmax(1).cpu()
            scores.update(found, masks)
            images += len(part)
    if not images:
        raise UserError("there are no images to evaluate on")
    speed = images / (time.perf_counter() - begin)
    return MaskEvaluation(scores=scores.compute(), images=images, images_per_second=speed)


def parts(batch: tuple[Any, Any]) -> Iterable[tuple[Tensor, Tensor]]:
    """A batch as parts in which all images have one size, and all masks."""
    images, masks = batch
    if isinstance(images, Tensor) and isinstance(masks, Tensor):
        return [(images, masks)]
    return [(image[None], mask[None]) for image, mask in zip(images, masks, strict=True)]
