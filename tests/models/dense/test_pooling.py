"""Regions are read at their place, however much of the maps an image fills."""

from __future__ import annotations

from collections import OrderedDict

import pytest
import torch

from models.dense.small import detection, made
from qsdformer.models.dense.pooling import region_pool

STRIDES = {"fine": 4, "middle": 8, "coarse": 16}


def ramps(side: int) -> OrderedDict[str, torch.Tensor]:
    """Maps of a square of `side` pixels whose values are x in pixels, at places' left edges."""
    maps = OrderedDict()
    for name, stride in STRIDES.items():
        x = torch.arange(0, side, stride).float()
        maps[name] = x.expand(1, 1, len(x), len(x))
    return maps


@pytest.mark.parametrize("filled", [(128, 128), (40, 128), (33, 37)])
@pytest.mark.parametrize("box", [(8, 8, 24, 24), (4, 2, 36, 34), (0, 0, 64, 64)])
def test_a_region_has_the_values_at_its_place(
    filled: tuple[int, int], box: tuple[int, int, int, int]
) -> None:
    pool = region_pool(STRIDES, 2, sampling=2, canonical_scale=32, canonical_level=3)
    found = pool(ramps(128), [torch.tensor([box]).float()], [filled])
    assert found.mean().item() == pytest.approx((box[0] + box[2]) / 2)


@pytest.mark.parametrize("detector", ["mask_rcnn", "faster_rcnn"])
def test_a_detectors_regions_are_read_by_the_strides_of_its_backbone(detector: str) -> None:
    heads = made(detection(detector=detector)).roi_heads
    pools = [heads.box_roi_pool] + ([heads.mask_roi_pool] if detector == "mask_rcnn" else [])
    assert all(pool.scales == [1 / 4, 1 / 8, 1 / 16] for pool in pools)
