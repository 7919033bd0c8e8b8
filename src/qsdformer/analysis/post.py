"""What floating-point post-processing does for an image, as one row of the ledger.

It is no part of the integer graph. Counted are, in fp32:

- segmentation: scaling the map of logits up to the network's input size, four products and three
  sums a value, and K - 1 comparisons a pixel to find the largest of K;
- detection: of every anchor and class a sigmoid (an exponential and a division, two products and
  two sums) and two comparisons (threshold, selection); of every candidate, which the background
  never is, 8 products and 12 sums to decode and clip its box; of every pair of candidates of one
  class, all that non-maximum suppression could compare, 2 products and 9 sums;
- an R-CNN (`regions.py`) besides: of every value that RoIAlign reads, four products and four sums
  for each point that it is the mean of; of every region the class scores, boxes and pairs as above;
  of every mask a sigmoid a value, and its scaling to the size of its box.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from qsdformer.analysis.energy import Row
from qsdformer.graph.candidates import candidates
from qsdformer.graph.post import DetectionPost, Post, RegionPost, SegmentationPost

NAME = "post-processing"
RESIZE = (4, 3)  # products and sums of a value between four others
SCORE = (2, 4)
DECODE = (8, 12)
PAIR = (2, 9)


@dataclass
class PostWork:
    """Products and sums over `images` images."""

    images: int = 0
    products: float = 0.0
    sums: float = 0.0

    def add(self, post: Post, outputs: Mapping[str, Tensor], size: tuple[int, int]) -> None:
        """What `post` does with real `outputs` of a batch of images of `size` (H, W)."""
        names = list(post.channels)
        batch = len(outputs[names[0]])
        self.images += batch
        if isinstance(post, SegmentationPost):
            pixels, classes = batch * size[0] * size[1], len(post.class_names)
            self.note(pixels * classes, RESIZE)
            self.sums += pixels * (classes - 1)
            return
        for i in range(batch):
            self._detector(post, {name: outputs[name][i] for name in names})

    def row(self) -> Row:
        """The work of one image, the mean over all."""
        products, sums = self.products / self.images, self.sums / self.images
        return Row(
            name=NAME,
            kind="post",
            images=self.images,
            count=products + sums,
            additions=sums,
            multiplications=products,
        )

    def note(self, count: int, work: tuple[int, int]) -> None:
        """`count` times so many products and sums."""
        self.products += count * work[0]
        self.sums += count * work[1]

    def _detector(self, post: DetectionPost | RegionPost, maps: Mapping[str, Tensor]) -> None:
        for level in post.levels:
            self.note(maps[level.scores].numel(), SCORE)
        if isinstance(post, RegionPost):  # proposals; see regions.py for what follows them
            for level in post.levels:
                count = min(post.candidates, maps[level.scores].numel())
                self.note(count, DECODE)
                self.note(count * (count - 1) // 2, PAIR)
            return
        classes = torch.cat([candidates(post, maps[level.scores])[2] for level in post.levels])
        by_class = classes.bincount()
        self.note(len(classes), DECODE)
        self.note(int((by_class * (by_class - 1) // 2).sum()), PAIR)
