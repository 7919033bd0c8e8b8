"""Reading regions from maps of several strides."""

from __future__ import annotations

import math
from collections.abc import Mapping

from torchvision.ops import MultiScaleRoIAlign
from torchvision.ops.poolers import initLevelMapper


def region_pool(
    strides: Mapping[str, int],
    size: int,
    *,
    sampling: int,
    canonical_scale: int,
    canonical_level: int,
) -> MultiScaleRoIAlign:
    """RoIAlign on a grid of `size` from maps by name, each with its stride, from fine to coarse.

    A region of `canonical_scale` pixels is read from the map of stride 2^`canonical_level`. Strides
    are told: torchvision would guess them from the largest image of the first batch, and wrongly
    where images are much smaller than what they are filled up to.
    """
    scale, level = canonical_scale, canonical_level
    pool = MultiScaleRoIAlign(
        list(strides), size, sampling, canonical_scale=scale, canonical_level=level
    )
    pool.scales = [1 / stride for stride in strides.values()]
    levels = [round(math.log2(stride)) for stride in strides.values()]
    pool.map_levels = initLevelMapper(levels[0], levels[-1], scale, level)
    return pool
