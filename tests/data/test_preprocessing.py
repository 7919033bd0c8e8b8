from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from qsdformer.data.base import DataInfo
from qsdformer.data.decoding import open_image
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


@pytest.mark.parametrize("size", [(48, 36), (50, 36), (48, 41), (10, 90), (24, 18)])
def test_an_image_that_is_not_square_is_covered_and_cropped_at_its_centre(size):
    pre = Preprocessing(image_size=(18, 24), channels=1, mean=(0.0,), std=(1.0,))
    ramp = np.add.outer(np.arange(size[1]), np.arange(size[0])).astype(np.uint8)
    found = pixels([Image.fromarray(ramp)], pre)[0, 0]
    assert found.shape == (18, 24)
    # A ramp keeps its middle, and its steps are those of one factor in both directions.
    middle = (size[0] + size[1] - 2) / 2
    assert abs(found.mean() - middle) < 2
    across, down = (np.diff(found.astype(float), axis=axis).mean() for axis in (1, 0))
    assert across == pytest.approx(down, abs=0.1)


def test_a_stretched_image_is_seen_whole():
    pre = Preprocessing(image_size=(4, 8), channels=1, mean=(0.0,), std=(1.0,), fit="stretch")
    halves = np.repeat(np.array([[0, 255]], np.uint8), 40, axis=1).repeat(10, axis=0)
    found = pixels([Image.fromarray(halves)], pre)[0, 0]
    assert found.shape == (4, 8)
    assert (found[:, :3] == 0).all()  # the filter mixes the two columns in the middle
    assert (found[:, 5:] == 255).all()
    info = DataInfo(**pre.to_dict(), class_names=("a",))
    seen = eval_transform(info)(Image.fromarray(halves))[0]
    assert torch.equal((seen * 255).round(), torch.from_numpy(found).float())


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


@pytest.mark.parametrize("fit", ["crop", "stretch", "pad"])
def test_images_of_pillow_are_taken_as_files_are_read(tmp_path, fit):
    shade = np.arange(12 * 8, dtype=np.uint8).reshape(12, 8)
    exif = Image.Exif()
    exif[0x0112] = 6  # a camera on its side
    Image.fromarray(shade).save(tmp_path / "turned.jpg", exif=exif, quality=100)
    Image.fromarray(shade.astype(np.uint16) << 8).save(tmp_path / "deep.png")
    pre = Preprocessing(image_size=8, channels=1, mean=(0.5,), std=(0.5,), fit=fit)
    for name in ("turned.jpg", "deep.png"):
        with Image.open(tmp_path / name) as image:
            found = pixels([image], pre)
        assert np.array_equal(found, pixels([open_image(tmp_path / name)], pre))
    wide = Image.fromarray(np.zeros((4, 4), np.int32) + 70000)
    with pytest.raises(UserError, match="mode I: it has numbers of 32 bits"):
        pixels([wide], pre)
