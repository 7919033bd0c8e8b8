"""Random variation of whole batches, as a pure function of (seed, epoch, image index).

Random numbers come from a counter-based hash instead of a stateful generator: an image's draws
depend neither on the batch it is in nor on what the process did before, and cost no Python loop.

B images, C channels, H rows, W columns, P pixels of padding.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

Keys = npt.NDArray[np.uint64]  # (B,): all that an image's random numbers depend on

# Box areas and aspect ratios of random erasing (Zhong et al., 2020; timm's defaults).
ERASE_AREA = (0.02, 1 / 3)  # share of the image
ERASE_ASPECT = (0.3, 1 / 0.3)  # height / width

# SplitMix64 (Steele, Lea and Flood, 2014): increment and the two multipliers of its finaliser.
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)

# Draws per image before the noise of erased pixels starts.
_FLIP, _TOP, _LEFT, _ERASE, _AREA, _ASPECT, _BOX_TOP, _BOX_LEFT, _DRAWS = range(9)


@dataclass(frozen=True, kw_only=True)
class BatchAugment:
    """Which random variations images held in memory get; see `DataConfig` for the fields."""

    seed: int
    hflip: bool = False
    crop_padding: int = 0
    random_erasing: float = 0.0


def image_keys(seed: int, epochs: Tensor, indices: Tensor) -> Keys:
    """One key (B,) for each image, from the seed, its epoch (B,) and its index (B,)."""
    key = _mix(np.full(len(indices), seed % 2**64, dtype=np.uint64))
    key = _mix(key ^ epochs.numpy().astype(np.uint64))
    return _mix(key ^ indices.numpy().astype(np.uint64))


def uniforms(keys: Keys, count: int, start: int = 0) -> Tensor:
    """Draws `start` to `start + count` of each key: (B, count) float64 in [0, 1)."""
    counters = np.arange(start + 1, start + count + 1, dtype=np.uint64) * _GOLDEN
    bits = _mix(keys[:, None] + counters[None, :])
    # The upper 53 bits are as many as a float64 holds exactly.
    return torch.from_numpy((bits >> np.uint64(11)).astype(np.float64) * 2.0**-53)


def normals(keys: Keys, count: int, start: int = 0) -> Tensor:
    """Standard normal draws (B, count) float32 by Box and Muller's transform."""
    draws = uniforms(keys, 2 * count, start)
    radius = torch.sqrt(-2 * torch.log1p(-draws[:, :count]))
    return (radius * torch.cos(2 * math.pi * draws[:, count:])).float()


def crop_and_flip(images: Tensor, keys: Keys, augment: BatchAugment) -> Tensor:
    """Random crops of zero-padded images and random mirror images, (B, C, H, W) of any dtype."""
    draws = uniforms(keys, _DRAWS)
    if augment.crop_padding:
        places = 2 * augment.crop_padding + 1
        offsets = (draws[:, [_TOP, _LEFT]] * places).long()
        images = crop(images, offsets, augment.crop_padding)
    if augment.hflip:
        mirrored = (draws[:, _FLIP] < 0.5)[:, None, None, None]
        images = torch.where(mirrored, images.flip(-1), images)
    return images


def crop(images: Tensor, offsets: Tensor, padding: int) -> Tensor:
    """Zero-pad images (B, C, H, W) by P and cut H x W out at `offsets` (B, 2), each in 0..2P."""
    height, width = images.shape[-2:]
    padded = F.pad(images, (padding,) * 4)
    windows = padded.unfold(2, height, 1).unfold(3, width, 1)  # (B, C, 2P+1, 2P+1, H, W) view
    return windows[torch.arange(len(images)), :, offsets[:, 0], offsets[:, 1]]


def erase(images: Tensor, keys: Keys, probability: float) -> Tensor:
    """Fill a random box of some of the normalised images (B, C, H, W) with normal noise."""
    draws = uniforms(keys, _DRAWS)
    chosen = torch.nonzero(draws[:, _ERASE] < probability).squeeze(1)
    if not len(chosen):
        return images
    boxes = erase_boxes(draws[chosen], *images.shape[-2:])
    noise = normals(keys[chosen.numpy()], images[0].numel(), start=_DRAWS)
    before = images[chosen]
    images[chosen] = torch.where(boxes[:, None], noise.view_as(before), before)
    return images


def erase_boxes(draws: Tensor, height: int, width: int) -> Tensor:
    """Masks (B, H, W) that are true inside one box of each image, from its draws."""
    area = _between(draws[:, _AREA], *ERASE_AREA) * height * width
    log_aspect = _between(draws[:, _ASPECT], *(math.log(a) for a in ERASE_ASPECT))
    box_height = (area * log_aspect.exp()).sqrt().round().clamp(1, height)
    box_width = (area / box_height).round().clamp(1, width)
    top = (draws[:, _BOX_TOP] * (height - box_height + 1)).floor()
    left = (draws[:, _BOX_LEFT] * (width - box_width + 1)).floor()
    return (
        _inside(top, box_height, height)[:, :, None] & _inside(left, box_width, width)[:, None, :]
    )


def _inside(start: Tensor, length: Tensor, size: int) -> Tensor:
    """(B, size) masks of the positions in [start, start + length)."""
    positions = torch.arange(size)[None, :]
    return (positions >= start[:, None]) & (positions < (start + length)[:, None])


def _between(draw: Tensor, low: float, high: float) -> Tensor:
    return low + (high - low) * draw


def _mix(state: Keys) -> Keys:
    """SplitMix64's finaliser after one increment; unsigned overflow is meant."""
    state = state + _GOLDEN
    state = (state ^ (state >> np.uint64(30))) * _MIX_1
    state = (state ^ (state >> np.uint64(27))) * _MIX_2
    return state ^ (state >> np.uint64(31))
