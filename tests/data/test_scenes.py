from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from qsdformer.cli import run
from qsdformer.data import DataModule
from qsdformer.data.detection.coco import read_coco
from qsdformer.data.detection.outlines import outlines
from qsdformer.data.detection.scenes import LEAST_SEEN, make_scene, write_scenes
from qsdformer.data.detection.segments import segment_masks
from qsdformer.data.segmentation.config import SegmentationData
from qsdformer.errors import UserError


@pytest.fixture(scope="module")
def items() -> tuple[np.ndarray, np.ndarray]:
    """Ten discs and rings of 28 x 28 pixels."""
    y, x = np.mgrid[:28, :28] - 13.5
    radius = np.hypot(y, x)
    images = [
        np.where((radius < 13) & (radius > inner), 200, 0).astype(np.uint8)
        for inner in range(-1, 9)
    ]
    return np.stack(images), np.arange(10)


@pytest.mark.parametrize("seed", range(20))
def test_outlines_of_a_mask_are_filled_to_the_same_mask(seed: int) -> None:
    rng = np.random.default_rng(seed)
    mask = ndimage.gaussian_filter(rng.normal(size=(30, 40)), 1 + seed % 3) > 0.02
    mask = ndimage.binary_fill_holes(mask)
    polygons = tuple(np.array(points, np.float64) for points in outlines(mask))
    assert np.array_equal(segment_masks([polygons], (30, 40))[0], mask)


def test_the_outline_of_a_rectangle_has_its_four_corners() -> None:
    mask = np.zeros((6, 8), bool)
    mask[1:3, 2:7] = True
    (corners,) = outlines(mask)
    assert sorted(zip(corners[::2], corners[1::2], strict=True)) == [(2, 1), (2, 3), (7, 1), (7, 3)]


def test_parts_that_touch_at_a_corner_have_polygons_of_their_own() -> None:
    assert len(outlines(np.eye(3, dtype=bool))) == 3


@pytest.mark.parametrize("seed", range(10))
def test_items_do_not_overlap_and_most_of_each_is_seen(
    items: tuple[np.ndarray, np.ndarray], seed: int
) -> None:
    scene = make_scene(*items, np.random.default_rng(seed))
    assert scene.pixels.shape == (128, 128)
    assert 1 <= len(scene.items) <= 6
    assert np.sum([item.mask for item in scene.items], axis=0).max() == 1
    assert all(item.mask.sum() >= LEAST_SEEN * item.whole for item in scene.items)


def test_written_scenes_are_read_back_with_the_same_masks(
    fashion_folder: Path, tmp_path: Path
) -> None:
    counts = write_scenes(tmp_path / "s", train=6, val=4, root=str(fashion_folder))
    for split, images in (("train", 6), ("val", 4)):
        found = read_coco(tmp_path / "s", split, segments=True)
        assert len(found.records) == images
        assert sum(len(record.boxes) for record in found.records) == counts[split]
        assert found.notes == ()
        for record in found.records:
            drawn = np.zeros((128, 128), np.int64)
            for label, mask, area, box in zip(
                record.labels, record.masks((128, 128)), record.area, record.boxes, strict=True
            ):
                drawn[mask] = label
                assert mask.sum() == area
                rows, columns = np.nonzero(mask)
                around = columns.min(), rows.min(), columns.max() + 1, rows.max() + 1
                assert tuple(box) == around
            path = str(record.image).replace("images", "masks")
            assert np.array_equal(np.asarray(Image.open(path)), drawn)


def test_scenes_serve_segmentation_too(fashion_folder: Path, tmp_path: Path) -> None:
    write_scenes(tmp_path / "s", train=4, val=2, root=str(fashion_folder))
    config = SegmentationData(root=str(tmp_path / "s"), image_size=128)
    data = DataModule(config, batch_size=2)
    assert (data.train_size, data.eval_size) == (4, 2)
    assert data.info.class_names[:2] == ("background", "T-shirt/top")
    _, masks = next(iter(data.val_dataloader()))
    assert set(np.unique(masks)) <= set(range(11))


def test_scenes_follow_from_the_seed(fashion_folder: Path, tmp_path: Path) -> None:
    written = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        write_scenes(tmp_path / name, train=2, val=1, seed=seed, root=str(fashion_folder))
        written.append((tmp_path / name / "train" / "images" / "00001.png").read_bytes())
    assert written[0] == written[1] != written[2]


def test_the_command_makes_both_kinds_of_outline(
    fashion_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--train", "30", "--val", "1", "--root", str(fashion_folder)]
    assert run(["scenes", str(tmp_path / "s"), *arguments]) == 0
    assert "30 scenes with" in capsys.readouterr().out
    content = json.loads((tmp_path / "s" / "annotations" / "instances_train.json").read_text())
    kinds = {type(entry["segmentation"]) for entry in content["annotations"]}
    assert kinds == {list, dict}
    assert run(["scenes", str(tmp_path / "s"), *arguments]) == 2
    assert "is there already" in capsys.readouterr().err


def test_a_missing_source_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="Fashion-MNIST not found"):
        write_scenes(tmp_path / "s", root=str(tmp_path))
