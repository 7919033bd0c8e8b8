"""The heads of an R-CNN in the ledger: they run once for each region, of which images have many.

The detector runs in floating point on images of a set; what RoIAlign reads is measured in the heads
batch by batch, as images are in a network. Their rows are scaled to an image by its mean number of
regions.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from qsdformer.analysis.energy import Row
from qsdformer.analysis.ledger import make_ledger
from qsdformer.analysis.measure import Measurement
from qsdformer.analysis.post import DECODE, PAIR, RESIZE, SCORE, PostWork
from qsdformer.graph.post import BOX, MASK, RegionPost
from qsdformer.nn.exact import exact_float32
from qsdformer.tasks.deployment import Deployable

MODULES = {BOX: "roi_heads.box_head", MASK: "roi_heads.mask_head"}
POOL = (4, 4)  # products and sums of a point of RoIAlign, which goes into a mean
SCALED = ("count", "estimate", "additions", "multiplications", "moved")


@torch.inference_mode()
def add_regions(
    found: Deployable, batches: Iterable[tuple[Any, Any]], work: PostWork
) -> tuple[Row, ...]:
    """The rows of the heads for regions, an image; what is done around them is added to `work`.

    Batches are those of a detection set: lists of images (C, h, w) in 0..1.
    """
    network: Any = found.network
    post = found.post
    assert isinstance(post, RegionPost)
    device = next(network.parameters()).device
    heads = {name: Measurement(head.part, device) for name, head in found.heads.items()}
    values = dict.fromkeys(heads, 0)  # that a region has
    proposals: list[int] = []  # of each image
    images = 0
    for shown, _ in batches:
        regions: dict[str, list[Tensor]] = {name: [] for name in heads}
        with _kept(network, regions, proposals), exact_float32(device):
            sizes = [(image.shape[-2], image.shape[-1]) for image in shown]
            results = network.eval().detect([image.to(device) for image in shown], sizes)
        for name, kept in regions.items():
            for read in filter(len, kept):
                heads[name].add(read, None)
                values[name] = read[0].numel()
        images += len(shown)
        if post.has_masks:
            _note_masks(post, work, [result["boxes"] for result in results])
    _note_suppression(post, work, proposals)
    rows: list[Row] = []
    for name, head in found.heads.items():
        if not values[name]:
            continue
        measured = heads[name].finish()
        _note_regions(post, name, work, measured.images, values[name])
        ledger = make_ledger(name, head.part, measured)
        rows += [_of_image(row, measured.images / images, images) for row in ledger.rows]
    return tuple(rows)


@contextlib.contextmanager
def _kept(network: Any, regions: dict[str, list[Tensor]], proposals: list[int]) -> Iterator[None]:
    """What the heads read inside the block, appended to `regions`, and each image's `proposals`."""

    def count(_: nn.Module, given: tuple[Any, ...]) -> None:
        proposals.extend(len(boxes) for boxes in given[1])

    with contextlib.ExitStack() as stack:
        stack.callback(network.roi_heads.register_forward_pre_hook(count).remove)
        for name, kept in regions.items():
            module = network.get_submodule(MODULES[name])

            def keep(_: nn.Module, given: tuple[Tensor], kept: list[Tensor] = kept) -> None:
                kept.append(given[0])

            stack.callback(module.register_forward_pre_hook(keep).remove)
        yield


def _note_regions(post: RegionPost, name: str, work: PostWork, total: int, values: int) -> None:
    """RoIAlign of all regions, and of the box head softmax and decoding."""
    work.note(total * values * post.sampling**2, POOL)
    if name == BOX:
        classes = len(post.class_names)
        work.note(total * (classes + 1), SCORE)
        work.note(total * classes, DECODE)


def _note_suppression(post: RegionPost, work: PostWork, proposals: list[int]) -> None:
    """Pairs of boxes of one class: of every image its own, whatever the batches are."""
    work.note(len(post.class_names) * sum(n * (n - 1) // 2 for n in proposals), PAIR)


def _note_masks(post: RegionPost, work: PostWork, boxes: list[Tensor]) -> None:
    """Sigmoids of masks, and scaling each to the size of its box."""
    for found in boxes:
        area = (found[:, 2:] - found[:, :2]).clamp(min=0).prod(1).sum()
        work.note(len(found) * (2 * post.mask_size) ** 2, SCORE)
        work.note(int(area), RESIZE)


def _of_image(row: Row, regions: float, images: int) -> Row:
    """The row of a head for an image with so many regions."""
    scaled = {name: getattr(row, name) * regions for name in SCALED}
    macs = round(row.dense_macs * regions)
    return dataclasses.replace(row, images=images, dense_macs=macs, **scaled)
