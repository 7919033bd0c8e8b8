from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from qsdformer.data.base import DataInfo
from qsdformer.data.images import eval_transform
from qsdformer.data.preprocessing import Preprocessing, pixels
from qsdformer.errors import UserError
from qsdformer.graph.classes import top_classes


@pytest.mark.parametrize("size", [(40, 60), (61, 37), (64, 64), (32, 32), (36, 33), (20, 31)])
@pytest.mark.parametrize(
    ("interpolation", "crop_pct", "channels"),
    [("bilinear", 1.0, 1), ("bicubic", 0.875, 3), ("bilinear", 0.9, 3)],
)
def test_pixels_are_those_of_the_evaluation_transform(size, interpolation, crop_pct, channels):
    shared = {
        "image_size": 32,
        "channels": channels,
        "mean": (0.5,) * channels,
        "std": (0.25,) * channels,
        "interpolation": interpolation,
        "crop_pct": crop_pct,
    }
    noise = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), np.uint8)
    image = Image.fromarray(noise).convert("L" if channels == 1 else "RGB")
    expected = eval_transform(DataInfo(class_names=("a",), **shared))(image)
    found = pixels([image], Preprocessing(**shared))[0]
    assert found.dtype == np.uint8
    assert torch.equal(((expected * 0.25 + 0.5) * 255).round(), torch.from_numpy(found).float())


def test_images_are_converted_to_the_channels_of_the_model():
    grey = Preprocessing(image_size=8, channels=1, mean=(0.0,), std=(1.0,))
    assert pixels([Image.new("RGBA", (8, 8), "white")], grey).shape == (1, 1, 8, 8)
    colour = Preprocessing(image_size=8, channels=3, mean=(0.0,) * 3, std=(1.0,) * 3)
    assert pixels([Image.new("L", (9, 8), 7)] * 2, colour).shape == (2, 3, 8, 8)
    with pytest.raises(UserError, match="no images"):
        pixels([], grey)


def test_top_classes_are_sorted_with_their_probabilities():
    logits = np.array([[0.0, np.log(3.0), -50.0]])
    (first, second), *_ = top_classes(logits, ("a", "b", "c"), 2)
    assert first == ("b", pytest.approx(0.75))
    assert second == ("a", pytest.approx(0.25))
