"""Variation by the policies of timm (RandAugment, AugMix, AutoAugment) and by mixing images.

B images, C channels, H rows, W columns, K classes. timm and torchvision take seconds to
import and come only where they are used.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from qsdformer.data.augment import Keys
from qsdformer.data.base import DataInfo
from qsdformer.data.config import DataConfig
from qsdformer.data.seeding import keep_random_state, seed_everything
from qsdformer.errors import UserError

Policy = Callable[[Image.Image], Image.Image]
# Images (B, C, H, W) float32 and labels (B,) int64 to mixed images and targets (B, K) float32.
Mix = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


def create_train_transform(config: DataConfig, info: DataInfo, **options: Any) -> Any:
    """timm's training transform with the recipe's policy; `UserError` if timm does not know it."""
    from timm.data import create_transform

    try:
        with _posterize_down_to_nothing():
            return create_transform(
                input_size=(info.channels, *info.sides),
                is_training=True,
                auto_augment=config.auto_augment,
                interpolation=info.interpolation,
                **options,
            )
    except (AssertionError, ValueError, KeyError, IndexError) as error:
        raise UserError(
            f"auto_augment={config.auto_augment!r} is not a policy timm knows; "
            "use for example rand-m9-mstd0.5-inc1, augmix-m3-w3, original or 3a, or none"
        ) from error


@contextlib.contextmanager
def _posterize_down_to_nothing() -> Iterator[None]:
    """Let timm's policies made in this block keep 0 bits, which Pillow 12 refuses, as before."""
    from timm.data import auto_augment

    table = auto_augment.NAME_TO_OP
    theirs = {name: op for name, op in table.items() if op is auto_augment.posterize}
    table.update(dict.fromkeys(theirs, _posterize))
    try:
        yield
    finally:
        table.update(theirs)


def _posterize(image: Image.Image, bits: int, **options: Any) -> Image.Image:
    if bits == 0:
        return Image.new(image.mode, image.size)  # black
    from timm.data import auto_augment

    varied: Image.Image = auto_augment.posterize(image, bits, **options)
    return varied


def image_policy(config: DataConfig, info: DataInfo) -> Policy | None:
    """The recipe's `auto_augment` alone, from RGB image to RGB image; None where there is none."""
    if config.auto_augment is None:
        return None
    fill = info.mean * (3 // info.channels)  # what rotations uncover
    stages = create_train_transform(config, info, mean=fill, color_jitter=None, separate=True)
    policy: Policy = stages[1]  # the first crops and flips, the last makes tensors
    return policy


def apply_policy(images: Tensor, keys: Keys, policy: Policy) -> Tensor:
    """uint8 images (B, C, H, W), grey or RGB, each varied by `policy` with its own key's draws."""
    grey = images.shape[1] == 1
    varied = []
    with keep_random_state():
        for pixels, key in zip(images.permute(0, 2, 3, 1).numpy(), keys.tolist(), strict=True):
            seed_everything(key)
            image = Image.fromarray(pixels[..., 0] if grey else np.ascontiguousarray(pixels))
            image = policy(image.convert("RGB"))
            varied.append(np.asarray(image.convert("L"))[..., None] if grey else np.asarray(image))
    return torch.from_numpy(np.stack(varied)).permute(0, 3, 1, 2).contiguous()


def batch_mix(config: DataConfig, classes: int) -> Mix | None:
    """Mixup (Zhang et al., 2018) and CutMix (Yun et al., 2019), one of the two where both are on.

    It draws from torch's global generator, which training seeds anew for each step.
    """
    from torchvision.transforms import v2

    mixes: list[Mix] = []
    if config.mixup:
        mixes.append(v2.MixUp(alpha=config.mixup, num_classes=classes))
    if config.cutmix:
        mixes.append(v2.CutMix(alpha=config.cutmix, num_classes=classes))
    if not mixes:
        return None
    return mixes[0] if len(mixes) == 1 else v2.RandomChoice(mixes)
