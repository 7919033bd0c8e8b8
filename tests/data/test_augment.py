from __future__ import annotations

import pytest
import torch

from qsdformer.data.augment import (
    BatchAugment,
    crop,
    crop_and_flip,
    erase,
    erase_boxes,
    image_keys,
    normals,
    uniforms,
)


def keys(count: int, seed: int = 0, epoch: int = 0) -> object:
    return image_keys(seed, torch.full((count,), epoch), torch.arange(count))


def test_uniform_draws_are_in_range_uncorrelated_and_evenly_spread() -> None:
    draws = uniforms(keys(20_000), 4)
    assert draws.min() >= 0
    assert draws.max() < 1
    # Standard error of the mean is 0.002, of a correlation 0.007: five of each.
    torch.testing.assert_close(draws.mean(0), torch.full((4,), 0.5).double(), atol=0.01, rtol=0)
    assert (torch.corrcoef(draws.T) - torch.eye(4)).abs().max() < 0.035
    assert abs(torch.corrcoef(torch.stack([draws[1:, 0], draws[:-1, 0]]))[0, 1]) < 0.035
    counts = torch.histc(draws[:, 0], bins=20, min=0, max=1)
    assert (counts - 1000).abs().max() < 160


def test_draws_differ_between_seeds_epochs_and_images() -> None:
    several = [keys(100), keys(100, seed=1), keys(100, epoch=1), keys(100, seed=1, epoch=1)]
    draws = torch.cat([uniforms(k, 1) for k in several])
    assert len(draws.unique()) == 400


def test_later_draws_continue_where_earlier_ones_stopped() -> None:
    torch.testing.assert_close(uniforms(keys(5), 3, start=2), uniforms(keys(5), 5)[:, 2:])


def test_normal_draws_have_mean_zero_and_variance_one() -> None:
    noise = normals(keys(100), 500)
    assert abs(noise.mean()) < 0.025
    assert abs(noise.var() - 1) < 0.035
    assert noise.isfinite().all()


def test_crop_equals_slicing_the_padded_image() -> None:
    images = torch.randint(0, 256, (9, 2, 5, 6), dtype=torch.uint8)
    offsets = torch.tensor([[y, x] for y in (0, 1, 4) for x in (0, 2, 4)])
    padded = torch.zeros(9, 2, 9, 10, dtype=torch.uint8)
    padded[:, :, 2:7, 2:8] = images
    expected = [padded[i, :, y : y + 5, x : x + 6] for i, (y, x) in enumerate(offsets.tolist())]
    assert torch.equal(crop(images, offsets, 2), torch.stack(expected))


def test_flip_mirrors_about_half_of_the_images_and_leaves_the_rest() -> None:
    images = torch.randint(0, 256, (1000, 1, 4, 4), dtype=torch.uint8)
    flipped = crop_and_flip(images, keys(1000), BatchAugment(seed=0, hflip=True))
    mirrored = (flipped == images.flip(-1)).flatten(1).all(1)
    untouched = (flipped == images).flatten(1).all(1)
    assert (mirrored | untouched).all()
    assert 420 < mirrored.sum() < 580


def test_random_crops_use_every_offset() -> None:
    images = torch.zeros(500, 1, 5, 5, dtype=torch.uint8)
    images[:, :, 2, 2] = 1
    cropped = crop_and_flip(images, keys(500), BatchAugment(seed=0, crop_padding=1))
    seen = cropped.sum(0)[0] > 0
    assert seen[1:4, 1:4].all()
    assert seen.sum() == 9


def test_nothing_changes_when_nothing_is_asked_for() -> None:
    images = torch.randint(0, 256, (8, 1, 4, 4), dtype=torch.uint8)
    assert torch.equal(crop_and_flip(images, keys(8), BatchAugment(seed=0)), images)
    assert torch.equal(erase(images.float(), keys(8), 0.0), images.float())


def test_erased_boxes_cover_two_to_thirty_three_percent_and_reach_every_pixel() -> None:
    boxes = erase_boxes(uniforms(keys(3000), 8), 28, 28)
    share = boxes.flatten(1).float().mean(1)
    # Whole pixels: a box may miss its drawn area by up to half a row or column.
    assert share.min() > 0.012
    assert share.max() < 0.36
    assert share.median() > 0.12
    assert boxes.any(0).all()


def test_an_erased_region_is_one_solid_box() -> None:
    for box in erase_boxes(uniforms(keys(50), 8), 28, 20):
        rows, columns = box.any(1).nonzero(), box.any(0).nonzero()
        height, width = (int(c.max() - c.min()) + 1 for c in (rows, columns))
        assert box.sum() == height * width


@pytest.mark.parametrize("probability", [0.25, 1.0])
def test_erasing_fills_boxes_with_noise_at_the_given_probability(probability: float) -> None:
    images = torch.full((800, 1, 16, 16), 7.0)
    erased = erase(images.clone(), keys(800), probability)
    changed = erased != 7
    share = changed.flatten(1).any(1).float().mean()
    assert abs(share - probability) < 0.08
    assert abs(erased[changed].mean()) < 0.05
    assert abs(erased[changed].std() - 1) < 0.05


def test_what_happens_to_an_image_does_not_depend_on_its_batch() -> None:
    images = torch.randint(0, 256, (32, 1, 8, 8), dtype=torch.uint8)
    augment = BatchAugment(seed=3, hflip=True, crop_padding=2)
    together = erase(crop_and_flip(images, keys(32), augment).float(), keys(32), 0.5)
    some = torch.tensor([30, 4, 11])
    own = image_keys(0, torch.zeros(3, dtype=torch.int64), some)
    alone = erase(crop_and_flip(images[some], own, augment).float(), own, 0.5)
    assert torch.equal(alone, together[some])
