from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
import torch

from data import cifar_files as tiny
from qsdformer.data import DataConfig, DataModule
from qsdformer.data.augment import image_keys
from qsdformer.data.base import DataInfo
from qsdformer.data.policies import apply_policy, batch_mix, image_policy
from qsdformer.errors import UserError


def info(channels: int) -> DataInfo:
    return DataInfo(
        image_size=32,
        channels=channels,
        class_names=("a", "b"),
        mean=(0.3,) * channels,
        std=(0.3,) * channels,
    )


def images(channels: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    shape = (6, channels, 32, 32)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)


@pytest.mark.parametrize("name", ["rand-m9-mstd0.5-inc1", "augmix-m3-w3", "original"])
@pytest.mark.parametrize("channels", [1, 3])
def test_a_policy_in_memory_depends_on_the_image_alone(name: str, channels: int) -> None:
    policy = image_policy(DataConfig(name="cifar10", auto_augment=name), info(channels))
    assert policy is not None
    keys = image_keys(0, torch.zeros(6, dtype=torch.int64), torch.arange(6))
    before = images(channels)
    random.seed(1)
    together = apply_policy(before, keys, policy)
    state = random.getstate()
    alone = apply_policy(before[4:5], keys[4:5], policy)
    assert together.shape == before.shape
    assert not torch.equal(together, before)
    assert torch.equal(together[4:5], alone)
    assert random.getstate() == state


@pytest.mark.parametrize("magnitude", [0, 9, 10])
def test_policies_may_posterize_to_no_bits_at_all(magnitude: int) -> None:
    for increasing in ("", "-inc1"):
        name = f"rand-m{magnitude}-n20{increasing}"
        policy = image_policy(DataConfig(name="cifar10", auto_augment=name), info(3))
        assert policy is not None
        keys = image_keys(0, torch.zeros(6, dtype=torch.int64), torch.arange(6))
        assert apply_policy(images(3), keys, policy).shape == (6, 3, 32, 32)


def test_an_unknown_policy_is_one_line_for_images_in_memory_too(tmp_path: Path) -> None:
    root = str(tiny.write_tiny_cifar10(tmp_path / "root"))
    with pytest.raises(UserError, match="not a policy timm knows"):
        DataModule(DataConfig(name="cifar10", root=root, auto_augment="rnad"), batch_size=8)


def test_batches_with_every_variation_are_the_same_however_they_are_loaded(tmp_path: Path) -> None:
    def batches(workers: int) -> list[torch.Tensor]:
        config = DataConfig(
            name="cifar10",
            root=str(tiny.write_tiny_cifar10(tmp_path / f"root{workers}")),
            hflip=True,
            crop_padding=4,
            auto_augment="rand-m9-mstd0.5-inc1",
            random_erasing=0.5,
            workers=workers,
        )
        return [images for images, _ in DataModule(config, batch_size=8).train_dataloader()]

    for one, other in zip(batches(0), batches(1), strict=True):
        assert torch.equal(one, other)


def test_mixed_targets_say_how_much_of_each_image_is_there() -> None:
    # Image i is all i, so that a mixed image's mean tells the shares.
    batch = torch.arange(4.0).view(4, 1, 1, 1).expand(4, 3, 32, 32)
    for options in ({"mixup": 0.8}, {"cutmix": 1.0}, {"mixup": 0.8, "cutmix": 1.0}):
        mix = batch_mix(DataConfig(name="cifar10", **options), classes=4)
        assert mix is not None
        moved, constant = [], []
        for seed in range(10):
            torch.manual_seed(seed)
            mixed, targets = mix(batch, torch.arange(4))
            torch.testing.assert_close(targets.sum(1), torch.ones(4))
            expected = (targets * torch.arange(4.0)).sum(1)
            torch.testing.assert_close(mixed.mean((1, 2, 3)), expected)
            moved.append(not torch.equal(mixed, batch))
            constant.append(bool((mixed.flatten(1).std(1) < 1e-6).all()))
        assert sum(moved) >= 8
        # Mixup leaves an image of one value, CutMix pieces of two; where both are on, either.
        pieces = moved.count(True) - sum(m and c for m, c in zip(moved, constant, strict=True))
        if "cutmix" not in options:
            assert pieces == 0
        elif "mixup" not in options:
            assert pieces == sum(moved)
        else:
            assert 0 < pieces < sum(moved)


def test_nothing_is_mixed_unless_asked_for() -> None:
    assert batch_mix(DataConfig(name="cifar10"), classes=4) is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mixup": -1.0}, "mixup=-1.0: must be 0"),
        ({"cutmix": float("nan")}, "cutmix=nan: must be 0"),
        ({"mixup_off_epoch": 0}, "mixup_off_epoch=0: must be at least 1"),
        ({"in_memory": True}, "in_memory=True: must be false"),
    ],
)
def test_bad_values_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DataConfig(name="cifar10", **options)  # type: ignore[arg-type]


def test_an_image_folder_held_in_memory_is_varied_like_the_other_sources(image_root: Path) -> None:
    config = DataConfig(
        name="image_folder", root=str(image_root), in_memory=True, crop_padding=2, hflip=True
    )
    data = DataModule(config, batch_size=4)
    batch, _ = next(iter(data.train_dataloader()))
    assert batch.shape == (4, 3, 32, 32)
    assert data.info.crop_pct == 1.0


def test_images_that_would_not_fit_into_memory_are_refused_before_they_are_read(
    image_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("qsdformer.data.images.physical_memory", lambda: 1000)
    config = DataConfig(name="image_folder", root=str(image_root), in_memory=True)
    with pytest.raises(UserError, match=r"lower data\.image_size"):
        DataModule(config, batch_size=4)


def test_a_resumed_run_mixes_what_an_uninterrupted_one_does() -> None:
    mix = batch_mix(DataConfig(name="cifar10", mixup=0.8, cutmix=1.0), classes=2)
    assert mix is not None
    batch, labels = torch.rand(4, 3, 8, 8), torch.tensor([0, 1, 1, 0])
    torch.manual_seed(3)
    first = mix(batch, labels)
    np.random.rand(5), random.random()  # noqa: NPY002  # what happened before in the process
    torch.manual_seed(3)
    second = mix(batch, labels)
    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))
