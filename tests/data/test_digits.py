from __future__ import annotations

import torch
from PIL import Image

from qsdformer.data import DataConfig, digits
from qsdformer.data.images import prepare


def test_split_is_stratified_and_the_same_for_every_seed() -> None:
    first = digits.load(DataConfig(name="digits"), seed=0)
    second = digits.load(DataConfig(name="digits"), seed=1)
    assert (len(first.train()), len(first.test)) == (1437, 360)
    assert torch.equal(first.test.labels, second.test.labels)
    shares = [torch.bincount(part.labels) / len(part) for part in (first.train(), first.test)]
    torch.testing.assert_close(*shares, atol=0.003, rtol=0)


def test_images_are_normalised_and_have_the_asked_size() -> None:
    for size in (None, 16):
        source = digits.load(DataConfig(name="digits", image_size=size), seed=0)
        images, labels = source.train().__getitems__(range(len(source.train())))
        side = size or 32
        assert images.shape == (1437, 1, side, side)
        assert labels.shape == (1437,)
        assert abs(images.mean()) < 0.01
        assert abs(images.std() - 1) < 0.02
    assert source.info.class_names == tuple("0123456789")


def test_images_that_are_not_square_are_predicted_as_they_are_trained() -> None:
    whole = digits.load(DataConfig(name="digits", image_size=8), seed=0)
    wide = digits.load(DataConfig(name="digits", image_size=(24, 32)), seed=0)
    shown, _ = wide.test.__getitems__([0])
    original = Image.fromarray(whole.test.images[0, 0].numpy())  # type: ignore[attr-defined]
    predicted = prepare([original], wide.info)
    # Pillow rounds to whole grey levels after each direction.
    torch.testing.assert_close(predicted, shown, atol=0.02, rtol=0)
    assert whole.info.fit == "crop"
