"""Handwritten digits, bundled with scikit-learn: 1,797 grey 8 x 8 images of ten classes."""

from __future__ import annotations

import numpy as np
import torch

from qsdformer.data.base import DataInfo, Source
from qsdformer.data.config import DataConfig
from qsdformer.data.memory import Split, fit_of_square, memory_source

DEFAULT_SIZE = 32
CLASS_NAMES = tuple(str(digit) for digit in range(10))
# Of the training split's pixels at 32 x 32, in [0, 1].
MEAN, STD = 0.3054, 0.3237
BRIGHTEST = 16  # the largest pixel value in the bundled images
HELD_OUT = 0.2  # share of the images


def load(config: DataConfig, seed: int) -> Source:
    """The digits, split 80/20 with equal class shares; the split is the same for every seed."""
    from sklearn.datasets import load_digits  # which takes seconds
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    images = torch.from_numpy(digits.images).unsqueeze(1) / BRIGHTEST * 255
    images = images.round().to(torch.uint8)  # (N, 1, 8, 8)
    labels = torch.from_numpy(digits.target).long()
    train, test = train_test_split(
        np.arange(len(labels)), test_size=HELD_OUT, random_state=0, stratify=digits.target
    )
    info = DataInfo(
        image_size=config.image_size or DEFAULT_SIZE,
        channels=1,
        class_names=CLASS_NAMES,
        mean=(MEAN,),
        std=(STD,),
        fit=fit_of_square(config.image_size),
    )
    return memory_source(
        config,
        seed,
        info,
        train=lambda: Split(images[train], labels[train]),
        test=lambda: Split(images[test], labels[test]),
    )
