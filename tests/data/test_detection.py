"""Batches of images with boxes: what training and evaluation see of the records."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from data.detection_files import annotation, voc_object, write_coco, write_image, write_voc
from qsdformer.data import DataInfo
from qsdformer.data.detection.config import DetectionData
from qsdformer.data.detection.dataset import DetectionBatch, Preparation
from qsdformer.data.detection.module import DetectionDataModule
from qsdformer.data.detection.vary import (
    Sample,
    Variation,
    cropped,
    fitted_size,
    mirrored,
    resized,
    upside_down,
)
from qsdformer.errors import UserError
from qsdformer.recipes.recipe import parse_section


@pytest.fixture
def coco(tmp_path: Path) -> Path:
    """Five training and two evaluation images of 40 x 48 pixels, with a crowd in each."""
    for split, images in (("train", 5), ("val", 2)):
        objects = [annotation(number, number) for number in range(1, images + 1)]
        runs = {"size": [40, 48], "counts": [40 * 48 - 5, 5]}
        crowds = [
            annotation(100 + number, number, iscrowd=1, bbox=[0, 0, 9, 9], segmentation=runs)
            for number in range(1, images + 1)
        ]
        write_coco(tmp_path, split, images=images, annotations=[*objects, *crowds])
    return tmp_path


def module(root: Path, masks: bool = True, **options: Any) -> DetectionDataModule:
    seed = options.pop("seed", 0)
    names = options.pop("class_names", None)
    info = names and DataInfo(
        image_size=24, channels=3, class_names=names, mean=(0.5,) * 3, std=(0.5,) * 3
    )
    config = DetectionData(root=str(root), **{"image_size": (20, 24), **options})
    return DetectionDataModule(config, masks=masks, batch_size=2, seed=seed, evaluate_as=info)


def error(*arguments: Any, **options: Any) -> str:
    with pytest.raises(UserError) as caught:
        module(*arguments, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def batches(data: DetectionDataModule, epoch: int = 0) -> list[DetectionBatch]:
    loader = data.train_dataloader()
    loader.sampler.set_epoch(epoch)  # type: ignore[union-attr]
    return list(loader)


def same(one: list[DetectionBatch], other: list[DetectionBatch]) -> bool:
    return all(
        torch.equal(mine, yours)
        for (a, targets), (b, others) in zip(one, other, strict=True)
        for mine, yours in zip(
            [*a, *(value for target in targets for value in target.values())],
            [*b, *(value for target in others for value in target.values())],
            strict=True,
        )
    )


def test_training_leaves_crowds_out_and_resizes_boxes_and_masks(coco: Path) -> None:
    images, targets = batches(module(coco))[0]
    assert [tuple(image.shape) for image in images] == [(3, 20, 24)] * 2
    assert images[0].min() >= 0
    assert images[0].max() <= 1
    target = targets[0]
    assert target["boxes"].tolist() == [[2, 3, 12, 8]]
    assert target["masks"].shape == (1, 20, 24)
    assert target["masks"][0, 3:8, 2:12].all()
    assert target["masks"].sum() == 50


def test_evaluation_keeps_crowds_and_the_annotations_of_the_file(coco: Path) -> None:
    images, targets = next(iter(module(coco).val_dataloader()))
    assert images[0].shape == (3, 20, 24)
    assert targets[0]["boxes"].tolist() == [[4, 6, 24, 16], [0, 0, 9, 9]]
    assert targets[0]["iscrowd"].tolist() == [0, 1]
    assert targets[0]["area"].tolist() == [200, 200]
    assert targets[0]["masks"].shape == (2, 40, 48)
    assert targets[0]["size"].tolist() == [40, 48]
    assert [int(target["image_id"]) for target in targets] == [1, 2]


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_follow_from_seed_and_epoch_in_any_process(coco: Path, workers: int) -> None:
    options: dict[str, Any] = {"hflip": True, "vflip": True, "train_sizes": (16, 20, 30)}
    first = batches(module(coco, **options), epoch=3)
    assert same(first, batches(module(coco, workers=workers, **options), epoch=3))
    assert not same(first, batches(module(coco, **options), epoch=4))


def test_images_of_many_sizes_make_a_batch_of_many_sizes(coco: Path) -> None:
    for number, size in ((1, (40, 48)), (2, (48, 40))):
        write_image(coco / "val" / f"{number:012}.png", size)
    changes = [
        {"id": 1, "file_name": "000000000001.png", "height": 40, "width": 48},
        {"id": 2, "file_name": "000000000002.png", "height": 48, "width": 40},
    ]
    write_coco(coco, images=0, annotations=[], changes={"images": changes})
    images, _ = next(iter(module(coco, keep_aspect=True).val_dataloader()))
    assert [tuple(image.shape) for image in images] == [(3, 20, 24), (3, 24, 20)]


@pytest.mark.parametrize(
    ("size", "short", "longest", "expected"),
    [
        ((480, 640), 800, 1333, (800, 1067)),
        ((640, 480), 800, 1333, (1067, 800)),
        ((200, 800), 800, 1333, (333, 1333)),
        ((1, 1000), 800, 1333, (1, 1333)),
    ],
)
def test_the_shorter_side_is_met_unless_the_longer_one_would_be_too_long(
    size: tuple[int, int], short: int, longest: int, expected: tuple[int, int]
) -> None:
    assert fitted_size(size, short, longest) == expected


@pytest.mark.parametrize(("keep_aspect", "expected"), [(True, (30, 36)), (False, (30, 60))])
def test_another_shorter_side_scales_the_whole_image(
    keep_aspect: bool, expected: tuple[int, int]
) -> None:
    preparation = Preparation(size=(20, 40), keep_aspect=keep_aspect, channels=3)
    assert preparation.target_size((40, 48), 30) == expected


@pytest.fixture
def sample() -> Sample:
    """A bright rectangle, rows 2 to 5 and columns 3 to 8 of 10 x 12 pixels, with box and mask."""
    mask = np.zeros((10, 12), bool)
    mask[2:5, 3:8] = True
    return Sample(
        image=Image.fromarray((mask * 255).astype(np.uint8)),
        boxes=np.array([[3, 2, 8, 5]], np.float32),
        masks=mask[None],
        kept=np.ones(1, bool),
    )


def agrees(sample: Sample) -> bool:
    """Whether image, box and mask of a sample are still the same rectangle."""
    assert sample.masks is not None
    bright = np.asarray(sample.image) > 127
    rows, columns = np.nonzero(sample.masks[0])
    around = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
    return np.array_equal(bright, sample.masks[0]) and sample.boxes[0].tolist() == around


def test_image_boxes_and_masks_are_varied_together(sample: Sample) -> None:
    assert agrees(sample)
    assert agrees(mirrored(sample))
    assert mirrored(sample).boxes.tolist() == [[4, 2, 9, 5]]
    assert agrees(upside_down(sample))
    assert upside_down(sample).boxes.tolist() == [[3, 5, 8, 8]]
    assert agrees(resized(sample, (20, 24)))
    assert agrees(cropped(sample, (4, 1, 10, 4)))
    assert cropped(sample, (4, 1, 10, 4)).boxes.tolist() == [[0, 1, 4, 3]]


def test_samples_are_mirrored_half_of_the_time_and_only_if_asked_to(sample: Sample) -> None:
    def share(changed: Sample, **options: bool) -> int:
        made = (Variation(**options)(sample, np.random.default_rng(s))[0] for s in range(40))
        return sum(one.boxes.tolist() == changed.boxes.tolist() for one in made)

    assert 10 <= share(mirrored(sample), hflip=True) <= 30
    assert 10 <= share(upside_down(sample), vflip=True) <= 30
    assert share(sample) == 40
    both = Variation(hflip=True, vflip=True)
    made = [both(sample, np.random.default_rng(s))[0].boxes.tolist() for s in range(40)]
    assert len({str(boxes) for boxes in made}) == 4


def test_sizes_are_drawn_from_those_given(sample: Sample) -> None:
    variation = Variation(sizes=(16, 20))
    assert {variation(sample, np.random.default_rng(s))[1] for s in range(20)} == {16, 20}


def test_a_crop_without_an_object_drops_it(sample: Sample) -> None:
    empty = cropped(sample, (8, 0, 12, 10))
    assert empty.boxes.shape == (0, 4)
    assert empty.masks is not None
    assert empty.masks.shape == (0, 10, 4)
    assert empty.kept.tolist() == [False]


def test_a_box_that_vanishes_by_rounding_is_not_learned(tmp_path: Path) -> None:
    thin = annotation(1, 1, bbox=[40.0, 6, 1e-6, 10], segmentation=[[40, 6, 41, 6, 41, 16]])
    write_coco(tmp_path, "train", annotations=[thin, annotation(2, 1), annotation(3, 2)])
    write_coco(tmp_path, "val")
    _, targets = batches(module(tmp_path))[0]
    assert [len(target["boxes"]) for target in targets] == [1, 1]
    assert [len(target["masks"]) for target in targets] == [1, 1]
    assert [target["labels"].tolist() for target in targets] == [[1], [1]]


def test_the_published_crop_is_of_384_to_600_pixels(sample: Sample) -> None:
    variation = Variation(random_crop=True)
    sizes = [variation(sample, np.random.default_rng(seed))[0].image.size for seed in range(40)]
    changed = [size for size in sizes if size != (12, 10)]
    assert 10 <= len(changed) <= 30
    assert all(384 <= side <= 600 for size in changed for side in size)


def test_small_and_empty_images_can_be_left_out_of_training(tmp_path: Path) -> None:
    write_coco(tmp_path, "train", images=3, annotations=[annotation(1, 1), annotation(2, 2)])
    write_coco(tmp_path, "val", images=1)
    data = module(tmp_path, skip_empty=True)
    assert data.train_size == 2
    assert data.notes == ("training images without objects, left out: 1",)
    assert "no image to train on" in error(tmp_path, min_size=41)
    assert module(tmp_path, train_limit=1).train_size == 1
    assert "there are only 3" in error(tmp_path, train_limit=4)


def test_both_splits_need_the_same_categories(coco: Path) -> None:
    other = {"categories": [{"id": 3, "name": "cow"}]}
    write_coco(coco, "train", changes=other)
    assert "category 3 is 'cow' in train but 'cat' in val" in error(coco)


def test_a_trained_model_needs_its_own_classes(coco: Path) -> None:
    data = module(coco, class_names=("cat", "dog", "bird"))
    assert data.eval_size == 2
    assert "the model's class 'cow' is 'dog'" in error(coco, class_names=("cat", "cow", "bird"))
    assert "it has 3 classes, the model 2" in error(coco, class_names=("cat", "dog"))


def test_a_set_without_anything_to_learn_is_refused(tmp_path: Path) -> None:
    write_coco(tmp_path, "train", annotations=[annotation(1, 1, iscrowd=1)])
    write_coco(tmp_path, "val")
    assert "no object to learn" in error(tmp_path)


def test_voc_has_no_masks(tmp_path: Path) -> None:
    write_voc(tmp_path, "train", {"a": [voc_object("WBC")]})
    write_voc(tmp_path, "val", {"b": [voc_object("RBC")]})
    assert module(tmp_path, masks=False, name="voc").info.class_names == ("RBC", "WBC")
    assert "has boxes only" in error(tmp_path, name="voc")


def test_unreadable_images_are_named_before_training(coco: Path) -> None:
    data = module(coco)
    data.check()
    (coco / "train" / "000000000002.png").write_bytes(b"no image")
    with pytest.raises(UserError, match="1 of 7 images cannot be read") as caught:
        data.check()
    assert "skip_bad" not in str(caught.value)  # which detection does not have


def test_images_of_another_size_than_annotated_are_named_before_training(coco: Path) -> None:
    data = module(coco)
    for name in ("train/000000000002", "val/000000000001"):
        write_image(coco / f"{name}.png", (50, 60))
    with pytest.raises(UserError, match=r"02\.png is 60x50 .* for 48x40, and 1 more") as caught:
        data.check()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"image_size": 0}, "image_size"),
        ({"image_size": [10, 20, 30]}, "image_size"),
        ({"train_sizes": []}, "train_sizes"),
        ({"channels": 2}, "channels"),
        ({"split": "../x"}, "split"),
        ({"workers": -1}, "workers"),
        ({"name": "yolo"}, "name"),
        ({"min_size": 0}, "min_size"),
        ({"train_limit": 0}, "train_limit"),
    ],
)
def test_bad_keys_are_one_line(options: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words) as caught:
        parse_section(DetectionData, "data", options)
    assert "\n" not in str(caught.value)
