"""From logits to class names."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from qsdformer.graph.ops import Array


def top_classes(logits: Array, names: Sequence[str], count: int) -> list[list[tuple[str, float]]]:
    """The `count` likeliest (class, probability) of each row of real logits, best first."""
    shares = np.exp(logits - logits.max(axis=1, keepdims=True))
    shares /= shares.sum(axis=1, keepdims=True)
    order = np.argsort(-shares, axis=1, kind="stable")[:, :count]
    return [
        [(names[i], float(row[i])) for i in best] for row, best in zip(shares, order, strict=True)
    ]
