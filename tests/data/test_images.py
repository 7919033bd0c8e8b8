from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from qsdformer.data import DataInfo, load_images
from qsdformer.errors import UserError

GREY = DataInfo(image_size=8, channels=1, class_names=("a", "b"), mean=(0.5,), std=(0.25,))
COLOUR = DataInfo(
    image_size=8, channels=3, class_names=("a", "b"), mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4)
)


def save(path: Path, pixels: np.ndarray) -> Path:
    Image.fromarray(pixels).save(path)
    return path


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def test_an_image_of_the_right_size_is_only_normalised(tmp_path: Path) -> None:
    pixels = noise(8, 8)
    images = load_images([save(tmp_path / "a.png", pixels)], GREY)
    expected = (torch.from_numpy(pixels).float() / 255 - 0.5) / 0.25
    torch.testing.assert_close(images, expected[None, None])


def test_colour_channels_have_their_own_statistics(tmp_path: Path) -> None:
    pixels = noise(8, 8, 3)
    images = load_images([save(tmp_path / "a.png", pixels)], COLOUR)
    scaled = torch.from_numpy(pixels).permute(2, 0, 1).float() / 255
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (COLOUR.mean, COLOUR.std))
    torch.testing.assert_close(images[0], (scaled - mean) / std)


def test_grey_and_colour_are_converted_to_what_the_model_wants(tmp_path: Path) -> None:
    grey = save(tmp_path / "grey.png", noise(8, 8))
    colour = save(tmp_path / "colour.png", noise(12, 10, 3))
    transparent = save(tmp_path / "transparent.png", noise(9, 20, 4))
    paths = [grey, colour, str(transparent)]
    assert load_images(paths, GREY).shape == (3, 1, 8, 8)
    assert load_images(paths, COLOUR).shape == (3, 3, 8, 8)


def test_sixteen_bit_grey_keeps_its_shades(tmp_path: Path) -> None:
    pixels = noise(8, 8)
    deep = save(tmp_path / "deep.png", pixels.astype(np.uint16) * 257)
    plain = save(tmp_path / "plain.png", pixels)
    assert torch.equal(load_images([deep], GREY), load_images([plain], GREY))


def test_the_crop_keeps_the_centre(tmp_path: Path) -> None:
    pixels = np.zeros((8, 24), dtype=np.uint8)
    pixels[:, 8:16] = 255
    images = load_images([save(tmp_path / "wide.png", pixels)], GREY)
    torch.testing.assert_close(images, torch.full((1, 1, 8, 8), 2.0))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"gone\.png: No such file"):
        load_images([tmp_path / "gone.png"], GREY)


def test_a_truncated_image_is_named(tmp_path: Path) -> None:
    path = save(tmp_path / "half.png", noise(64, 64, 3))
    path.write_bytes(path.read_bytes()[:4000])
    with pytest.raises(UserError, match=r"half\.png: .*truncated"):
        load_images([path], GREY)


def test_text_with_an_image_name_is_named(tmp_path: Path) -> None:
    path = tmp_path / "text.png"
    path.write_text("hello")
    with pytest.raises(UserError, match=r"text\.png: not an image") as caught:
        load_images([path], GREY)
    assert "\n" not in str(caught.value)


def test_a_folder_is_not_an_image(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="Is a directory"):
        load_images([tmp_path], GREY)


def test_no_paths_at_all_is_an_error() -> None:
    with pytest.raises(ValueError, match="at least one"):
        load_images([], GREY)
