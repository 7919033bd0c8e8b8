"""Which scores of a RetinaNet's maps become boxes: what is decoded, and what the ledger counts."""

from __future__ import annotations

import torch
from torch import Tensor

from qsdformer.graph.post import DetectionPost


def candidates(post: DetectionPost, scores: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Scores, anchors and classes of what is decoded of a level, from its logits (A*K, H, W)."""
    each = by_anchor(scores, post.classes).sigmoid()
    if post.has_background:  # which is nothing that could be found
        each[:, 0] = 0
    flat = each.flatten()
    kept = torch.where(flat > post.score_threshold)[0]
    best, order = flat[kept].topk(min(post.candidates, len(kept)))
    chosen = kept[order]
    return best, chosen // post.classes, chosen % post.classes


def by_anchor(values: Tensor, each: int) -> Tensor:
    """A map (A * each, H, W) as (H * W * A, each)."""
    return values.unflatten(0, (-1, each)).permute(2, 3, 0, 1).reshape(-1, each)
