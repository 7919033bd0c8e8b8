from __future__ import annotations

import dataclasses
import os
import random
import shutil
import traceback
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from qsdformer.data import DataConfig, DataInfo, DataModule, load_images
from qsdformer.errors import UserError


def module(root: Path | None, **options: object) -> DataModule:
    config = DataConfig(
        name="image_folder", root=root and str(root), **{"image_size": 32, **options}
    )
    return DataModule(config, batch_size=4)


def one_line_error(root: Path | None, **options: object) -> str:
    with pytest.raises(UserError) as caught:
        module(root, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_batches_and_class_names_come_from_the_folders(image_root: Path) -> None:
    data = module(image_root, auto_augment="rand-m9-mstd0.5-inc1", random_erasing=0.25)
    assert (data.train_size, data.eval_size) == (12, 6)
    assert data.info.class_names == ("cat", "dog")
    images, labels = next(iter(data.train_dataloader()))
    assert images.shape == (4, 3, 32, 32)
    assert images.dtype == torch.float32
    assert set(labels.tolist()) <= {0, 1}


def test_images_are_mirrored_only_if_the_recipe_says_so(tmp_path: Path) -> None:
    dark_left = np.zeros((8, 8, 3), np.uint8)
    dark_left[:, 4:] = 255
    for split in ("train", "val"):
        for name in "ab":
            (tmp_path / split / name).mkdir(parents=True)
            for number in range(20):
                Image.fromarray(dark_left).save(tmp_path / split / name / f"{number}.png")

    def mirrored(hflip: bool) -> int:
        data = module(tmp_path, hflip=hflip, image_size=8)
        batches = [images for images, _ in data.train_dataloader()]
        images = torch.cat(batches).mean((1, 2))
        return int((images[:, 0] > images[:, -1]).sum())

    assert mirrored(hflip=False) == 0
    assert 10 <= mirrored(hflip=True) <= 30


def test_the_first_images_are_not_all_of_the_first_class(tmp_path: Path) -> None:
    for split, count in (("train", 2), ("val", 10)):
        for name in "abcd":
            (tmp_path / split / name).mkdir(parents=True)
            for number in range(count):
                Image.new("RGB", (8, 8)).save(tmp_path / split / name / f"{number}.png")
    for in_memory in (False, True):
        config = DataConfig(name="image_folder", root=str(tmp_path), image_size=8)
        config = dataclasses.replace(config, in_memory=in_memory)
        [labels, *_] = [y for _, y in DataModule(config, batch_size=20, seed=0).val_dataloader()]
        assert set(labels.tolist()) == {0, 1, 2, 3}


def test_prediction_sees_files_exactly_as_evaluation_does(image_root: Path) -> None:
    data = module(image_root)
    batches = list(data.val_dataloader())
    images = torch.cat([images for images, _ in batches])
    labels = torch.cat([labels for _, labels in batches])
    paths = sorted((image_root / "val" / "cat").iterdir())
    assert same_images(load_images(paths, data.info), images[labels == 0])


def same_images(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether two batches hold the same images, in whatever order."""
    return sorted(one.flatten(1).tolist()) == sorted(other.flatten(1).tolist())


def test_default_size_and_statistics_are_those_of_imagenet(image_root: Path) -> None:
    info = module(image_root, image_size=None).info
    assert (info.image_size, info.crop_pct, info.interpolation) == (224, 0.875, "bicubic")
    assert info.mean == (0.485, 0.456, 0.406)


def test_loading_leaves_the_global_random_generators_alone(image_root: Path) -> None:
    def draws() -> tuple[float, float, float]:
        return random.random(), np.random.random(), torch.rand(1).item()  # noqa: NPY002

    def seed() -> None:
        random.seed(1)
        np.random.seed(1)  # noqa: NPY002
        torch.manual_seed(1)

    data = module(image_root, auto_augment="rand-m9-mstd0.5-inc1", random_erasing=0.5)
    seed()
    expected = draws()
    seed()
    list(data.train_dataloader())
    assert draws() == expected


@pytest.mark.parametrize("gone", [".", "train", "val"])
def test_missing_folders_are_named(image_root: Path, gone: str) -> None:
    shutil.rmtree(image_root / gone)
    message = one_line_error(image_root)
    assert str(image_root) in message
    assert gone == "." or gone in message


def test_a_missing_root_option_is_asked_for() -> None:
    assert "--data.root" in one_line_error(None)


@pytest.mark.parametrize("split", ["train", "val"])
def test_empty_splits_are_refused(image_root: Path, split: str) -> None:
    for path in (image_root / split).glob("*/*.jpg"):
        path.unlink()
    assert f"{image_root / split} holds no images" in one_line_error(image_root)
    for path in (image_root / split).iterdir():
        path.rmdir()
    assert f"{image_root / split} has no class folders" in one_line_error(image_root)


def test_an_empty_class_is_named(image_root: Path) -> None:
    for path in (image_root / "train" / "dog").iterdir():
        path.unlink()
    assert str(image_root / "train" / "dog") in one_line_error(image_root)


def test_a_single_class_is_refused(image_root: Path) -> None:
    for split in ("train", "val"):
        shutil.rmtree(image_root / split / "dog")
    assert "only one class, cat" in one_line_error(image_root)


@pytest.mark.parametrize("split", ["train", "val"])
def test_classes_that_differ_between_splits_are_named(image_root: Path, split: str) -> None:
    shutil.copytree(image_root / split / "dog", image_root / split / "emu")
    message = one_line_error(image_root)
    assert "class emu" in message


def test_an_unknown_policy_is_refused(image_root: Path) -> None:
    assert "'magic'" in one_line_error(image_root, auto_augment="magic")


@pytest.mark.parametrize("workers", [0, 1])
def test_a_corrupt_image_met_while_loading_is_one_line_that_names_it(
    image_root: Path, workers: int
) -> None:
    path = image_root / "val" / "dog" / "1.jpg"
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(UserError) as caught:
        list(module(image_root, workers=workers).val_dataloader())
    assert str(caught.value).startswith(f"cannot read image {path}: ")
    assert "\n" not in str(caught.value)
    # Ends the loader's process now; torch waits 5 s for one left to the garbage collector.
    traceback.clear_frames(caught.tb)


def tree(root: Path) -> list[str]:
    data = module(root)
    return [str(Path(p).relative_to(root)) for p in data._train.paths]  # type: ignore[attr-defined]


def test_links_hidden_folders_and_pipes_change_nothing(image_root: Path) -> None:
    before = sorted(tree(image_root))
    train = image_root / "train"
    (train / ".git").mkdir()
    (train / "cat" / "up").symlink_to("..")
    (train / "cat" / "self").symlink_to(".")
    (train / "cat" / "dogs").symlink_to("../dog")
    (train / "cat" / "root").symlink_to(image_root)
    os.mkfifo(train / "cat" / "pipe.jpg")
    assert sorted(tree(image_root)) == before


def test_files_left_out_are_counted_and_gifs_are_not_among_them(image_root: Path) -> None:
    cats = image_root / "train" / "cat"
    Image.new("RGB", (40, 40)).save(cats / "7.gif")
    (cats / "notes.txt").touch()
    (cats / "more.txt").touch()
    data = module(image_root)
    assert data.train_size == 13
    assert data.notes == (
        f"files in {image_root / 'train'} that are no images, left out: 2, "
        f"such as {cats / 'more.txt'}",
    )


def damage(root: Path) -> list[Path]:
    """One image of each kind of damage; one more with rubbish after its end, which is fine."""
    cats, dogs = (root / "train" / name for name in ("cat", "dog"))
    (cats / "0.jpg").write_bytes(b"")
    (cats / "1.jpg").write_text("no image")
    (cats / "2.jpg").write_bytes((cats / "2.jpg").read_bytes()[:-200])
    (dogs / "gone.jpg").symlink_to("nowhere.jpg")
    Image.new("RGB", (40, 40)).save(dogs / "x.png")
    content = bytearray((dogs / "x.png").read_bytes())
    content[len(content) // 2] ^= 1
    (dogs / "x.png").write_bytes(bytes(content))
    (dogs / "3.jpg").write_bytes((dogs / "3.jpg").read_bytes() + bytes(9000))
    return [cats / "0.jpg", cats / "1.jpg", cats / "2.jpg", dogs / "gone.jpg", dogs / "x.png"]


@pytest.mark.parametrize("in_memory", [False, True])
def test_bad_images_are_counted_and_named_before_training_or_skipped(
    image_root: Path, in_memory: bool
) -> None:
    bad = damage(image_root)
    with pytest.raises(UserError) as caught:
        module(image_root, in_memory=in_memory).check()
    message = str(caught.value)
    total = 14 if in_memory else 20  # in memory, images are read split by split
    assert message.startswith(f"5 of {total} images cannot be read: ")
    assert sum(str(path) in message for path in bad) == 3
    assert "--data.skip_bad true" in message
    assert "\n" not in message
    data = module(image_root, in_memory=in_memory, skip_bad=True)
    assert data.train_size == 9
    assert f"left out: 5 of 14 images in {image_root / 'train'}: " in data.notes[0]
    data.check()
    for loader in (data.train_dataloader(), data.val_dataloader()):
        assert len(list(loader)) > 0


def test_a_class_of_bad_images_only_is_named(image_root: Path) -> None:
    for path in (image_root / "val" / "dog").iterdir():
        path.write_bytes(b"")
    assert f"{image_root / 'val' / 'dog'} holds no" in one_line_error(image_root, skip_bad=True)


def test_a_thin_image_among_the_others_is_cropped_not_magnified_whole(image_root: Path) -> None:
    for split in ("train", "val"):
        Image.new("RGB", (1, 200_000), "red").save(image_root / split / "cat" / "thin.png")
    data = module(image_root, image_size=224)
    for loader in (data.train_dataloader(), data.val_dataloader()):
        assert all(images.shape[1:] == (3, 224, 224) for images, _ in loader)


def test_evaluation_needs_no_training_images_and_prepares_them_as_the_model_wants(
    image_root: Path,
) -> None:
    shutil.rmtree(image_root / "train")
    (image_root / "val" / "cat" / "notes.txt").touch()
    info = DataInfo(
        image_size=24,
        channels=3,
        class_names=("cat", "lion"),
        mean=(0.1, 0.2, 0.3),
        std=(0.4, 0.5, 0.6),
        crop_pct=0.7,
    )
    config = DataConfig(name="image_folder", root=str(image_root))
    data = DataModule(config, batch_size=6, evaluate_as=info)
    images, _ = next(iter(data.val_dataloader()))
    paths = [
        path for name in ("cat", "dog") for path in sorted(image_root.glob(f"val/{name}/*.jpg"))
    ]
    assert same_images(images, load_images(paths, info))
    assert data.info.class_names == ("cat", "dog")
    assert len(data.notes) == 1
    with pytest.raises(UserError, match="has no folder train"):
        DataModule(config, batch_size=6)


def test_held_out_training_images_are_evaluated_as_the_model_wants_too(image_root: Path) -> None:
    config = DataConfig(name="image_folder", root=str(image_root), evaluate_on="holdout")
    before = DataModule(config, batch_size=6)
    small = dataclasses.replace(before.info, image_size=20)
    images, _ = next(iter(DataModule(config, batch_size=6, evaluate_as=small).val_dataloader()))
    assert images.shape == (before.eval_size, 3, 20, 20)


def test_another_split_than_val_is_evaluated_where_it_is_named(image_root: Path) -> None:
    (image_root / "val" / "cat" / "0.jpg").rename(image_root / "val" / "cat" / "kept.jpg")
    (image_root / "val").rename(image_root / "test")
    assert "has no folder val" in one_line_error(image_root)
    assert "has no folder nix" in one_line_error(image_root, split="nix")
    for in_memory in (False, True):
        data = module(image_root, split="test", in_memory=in_memory)
        assert (data.train_size, data.eval_size) == (12, 6)
    assert module(image_root, split="train").eval_size == 12


def test_colours_stay_as_they_are_unless_a_policy_varies_them(tmp_path: Path) -> None:
    for split in ("train", "val"):
        for name in ("cat", "dog"):
            (tmp_path / split / name).mkdir(parents=True)
            for index in range(4):
                image = Image.new("RGB", (40, 40), (128, 64, 32))
                image.save(tmp_path / split / name / f"{index}.png")
    data = module(tmp_path)
    images, _ = next(iter(data.train_dataloader()))
    still, _ = next(iter(data.val_dataloader()))
    assert torch.equal(images, still[:1].expand_as(images))


@pytest.mark.parametrize("in_memory", [False, True])
def test_held_out_images_need_no_folder_val(image_root: Path, in_memory: bool) -> None:
    options = {"evaluate_on": "holdout", "in_memory": in_memory}
    expected = module(image_root, **options)
    shutil.rmtree(image_root / "val")
    found = module(image_root, **options)
    assert (found.train_size, found.eval_size) == (expected.train_size, expected.eval_size)
    for one, other in zip(found.val_dataloader(), expected.val_dataloader(), strict=True):
        assert torch.equal(one[0], other[0])
        assert torch.equal(one[1], other[1])
