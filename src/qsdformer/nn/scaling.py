"""Maps of real values at another size."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F


def scaled(maps: Tensor, size: Sequence[int]) -> Tensor:
    """Maps (B, C, h, w) as (B, C, *size), bilinear with half-pixel centres."""
    if maps.shape[-2:] == torch.Size(size):
        return maps
    return F.interpolate(maps, size=tuple(size), mode="bilinear", align_corners=False)
