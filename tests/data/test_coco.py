from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from data.detection_files import CATEGORIES, annotation, write_coco, write_image
from qsdformer.data.detection.coco import read_coco
from qsdformer.data.detection.records import DetectionSet, Record
from qsdformer.data.detection.segments import (
    encode_mask,
    parse_segment,
    run_lengths,
    segment_masks,
)
from qsdformer.errors import UserError


def read(root: Path, segments: bool = True) -> DetectionSet:
    return read_coco(root, "val", segments=segments)


def error(root: Path, segments: bool = True) -> str:
    with pytest.raises(UserError) as caught:
        read(root, segments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def only(root: Path, *annotations: Any, **options: Any) -> Record:
    write_coco(root, annotations=annotations, images=1, **options)
    return read(root).records[0]


def test_ids_with_gaps_become_labels_without_and_can_be_taken_back(tmp_path: Path) -> None:
    record = only(
        tmp_path,
        annotation(1, 1, category_id=90),
        annotation(2, 1, category_id=3),
        annotation(3, 1, category_id=17),
    )
    found = read(tmp_path)
    assert record.labels.tolist() == [3, 1, 2]
    assert found.class_names == ("cat", "dog", "bird")
    assert [found.category_ids[label - 1] for label in record.labels] == [90, 3, 17]


def test_boxes_become_corners(tmp_path: Path) -> None:
    record = only(tmp_path, annotation(1, 1, bbox=[4.5, 6, 20, 10.25], area=123.5))
    assert record.boxes.tolist() == [[4.5, 6, 24.5, 16.25]]
    assert record.area.tolist() == [123.5]


def test_images_without_objects_are_empty_records(tmp_path: Path) -> None:
    record = only(tmp_path)
    assert record.boxes.shape == (0, 4)
    assert record.masks((40, 48)).shape == (0, 40, 48)


def test_boxes_without_area_or_outside_are_left_out_counted_and_said(tmp_path: Path) -> None:
    record = only(
        tmp_path,
        annotation(1, 1),
        annotation(2, 1, bbox=[4, 6, 0, 10]),
        annotation(3, 1, bbox=[4, 6, 10, -1]),
        annotation(4, 1, bbox=[60, 6, 10, 10]),
        annotation(5, 1, bbox=[40, 6, 30, 10]),
    )
    assert record.boxes.tolist() == [[4, 6, 24, 16], [40, 6, 48, 16]]
    assert len(record.segments) == 2
    file = tmp_path / "annotations" / "instances_val.json"
    assert read(tmp_path).notes == (
        f"boxes beyond the image's border in {file}, cut at it: 1",
        f"boxes of zero area in {file}, left out: 2",
        f"boxes outside the image in {file}, left out: 1",
    )


@pytest.mark.parametrize("outline", [[], None, [[4, 6]], "text"])
def test_what_is_left_out_needs_no_outline(tmp_path: Path, outline: Any) -> None:
    record = only(
        tmp_path,
        annotation(1, 1),
        annotation(2, 1, bbox=[4, 6, 0, 10], segmentation=outline),
        annotation(3, 1, bbox=[60, 6, 10, 10], segmentation=outline),
    )
    assert record.boxes.tolist() == [[4, 6, 24, 16]]
    assert record.masks((40, 48)).sum() == 200
    assert [note.rpartition(", ")[2] for note in read(tmp_path).notes] == ["left out: 1"] * 2


def test_crowds_are_kept_and_marked(tmp_path: Path) -> None:
    runs = {"size": [40, 48], "counts": [40 * 48 - 5, 5]}
    record = only(tmp_path, annotation(1, 1), annotation(2, 1, iscrowd=1, segmentation=runs))
    assert record.iscrowd.tolist() == [False, True]
    learned = record.without_crowds()
    assert (len(learned.boxes), len(learned.segments)) == (1, 1)


def test_polygons_and_both_kinds_of_run_lengths_mean_the_same_mask(tmp_path: Path) -> None:
    mask = np.zeros((40, 48), bool)
    mask[6:16, 4:24] = True
    compressed = encode_mask(mask)
    assert isinstance(compressed["counts"], str)
    runs = {"size": [40, 48], "counts": run_lengths(mask)}
    record = only(
        tmp_path,
        annotation(1, 1),
        annotation(2, 1, segmentation=runs),
        annotation(3, 1, segmentation=compressed),
    )
    assert all(np.array_equal(found, mask) for found in record.masks((40, 48)))


@pytest.mark.parametrize("seed", range(5))
def test_run_lengths_of_any_mask_come_back(tmp_path: Path, seed: int) -> None:
    rng = np.random.default_rng(seed)
    mask = rng.random((40, 48)) < rng.random()
    runs = {"size": [40, 48], "counts": run_lengths(mask)}
    record = only(
        tmp_path,
        annotation(1, 1, segmentation=runs),
        annotation(2, 1, segmentation=encode_mask(mask)),
    )
    assert all(np.array_equal(found, mask) for found in record.masks((40, 48)))


@pytest.mark.parametrize(
    ("points", "pixels"),
    [
        ([0, 0, 200, 0, 0, 200], 100 * 100),
        ([20, 50, 50, -50, 80, 50], 2250),  # a trapezium: 60 and 30 wide, 50 high
        ([1e300, 0, 1e300, 100, 50, 100, 50, 0], 5000),
    ],
)
def test_a_polygon_is_cut_at_the_border_its_edges_as_they_were(
    points: list[float], pixels: int
) -> None:
    size = (100, 100)
    assert abs(segment_masks([parse_segment([points], size)], size).sum() - pixels) <= 20


def test_crowds_may_be_said_by_yes_and_no(tmp_path: Path) -> None:
    record = only(tmp_path, annotation(1, 1, iscrowd=True), annotation(2, 1, iscrowd=False))
    assert record.iscrowd.tolist() == [True, False]


def test_an_object_in_two_pieces_has_both_in_its_mask(tmp_path: Path) -> None:
    pieces = [[4, 6, 8, 6, 8, 10, 4, 10], [20, 20, 24, 20, 24, 24, 20, 24]]
    mask = only(tmp_path, annotation(1, 1, segmentation=pieces)).masks((40, 48))[0]
    assert mask.sum() == 32
    assert mask[6:10, 4:8].all()
    assert mask[20:24, 20:24].all()


@pytest.mark.parametrize(
    ("segmentation", "words"),
    [
        ([[4, 6, 24]], "at least three points"),
        ([[4, 6, 24, 6, 24]], "at least three points"),
        ([[4, 6, 24, 6, 24, "x"]], "something else than numbers"),
        ([[4, 6, 24, 6, 24, float("inf")]], "not finite"),
        ("text", "neither polygons nor run lengths"),
        ([[10**400, 6, 24, 6, 24, 16]], "something else than numbers"),
        ({"size": [48, 40], "counts": [1920]}, "not [40, 48]"),
        ({"size": 5, "counts": [1920]}, "for size 5, not [40, 48]"),
        ({"size": [40, 48], "counts": [1919]}, "do not add up"),
        ({"size": [40, 48], "counts": [2000, -80]}, "do not add up"),
        ({"size": [40, 48], "counts": "\x01"}, "damaged"),
        ({"size": [40, 48], "counts": "o"}, "cut short"),
        ({"size": [40, 48], "counts": None}, "not whole numbers"),
        ({"size": [40, 48], "counts": [2**80]}, "not whole numbers"),
    ],
)
def test_a_damaged_outline_is_one_line(tmp_path: Path, segmentation: Any, words: str) -> None:
    write_coco(tmp_path, annotations=[annotation(7, 1, segmentation=segmentation)])
    message = error(tmp_path)
    assert "annotation 7" in message
    assert words in message


def test_outlines_are_needed_for_masks_only(tmp_path: Path) -> None:
    bare = annotation(1, 1)
    del bare["segmentation"]
    write_coco(tmp_path, annotations=[bare])
    assert len(read(tmp_path, segments=False).records[0].boxes) == 1
    assert "faster_rcnn" in error(tmp_path)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"annotations": [annotation(5, 99)]}, "annotation 5 is of image 99, which is not listed"),
        ({"annotations": [annotation(5, 1, category_id=4)]}, "category 4, which is not listed"),
        ({"annotations": [annotation(5, 1) | {"image_id": [1]}]}, "image [1], which is not listed"),
        ({"annotations": [annotation(5, 1, category_id=[3])]}, "category [3], which is not listed"),
        ({"annotations": [annotation(5, 1, category_id=3.0)]}, "category 3.0, which is not"),
        ({"annotations": [annotation(5, 1, bbox=[1, 2, 3])]}, "x, y, width, height"),
        ({"annotations": [annotation(5, 1, bbox=[1, 2, 3, "x"])]}, "x, y, width, height"),
        ({"annotations": [annotation(5, 1, bbox=[1, 2, 3, float("nan")])]}, "x, y, width"),
        ({"annotations": [annotation(5, 1, bbox=[10**400, 2, 3, 4])]}, "x, y, width"),
        ({"annotations": [annotation(5, 1, area=10**400)]}, "annotation 5 has the area 1000"),
        ({"annotations": [annotation(5, 1, area=float("nan"))]}, "annotation 5 has the area nan"),
        ({"annotations": [annotation(5, 1, area=-5)]}, "annotation 5 has the area -5"),
        ({"annotations": [annotation(5, 1, area="9")]}, "annotation 5 has the area '9'"),
        ({"annotations": [annotation(5, 1, iscrowd="0")]}, "annotation 5 has iscrowd '0'"),
        ({"annotations": [annotation(5, 1, iscrowd=2)]}, "annotation 5 has iscrowd 2"),
        ({"annotations": {}}, "no list annotations"),
        ({"images": []}, "lists no images"),
        ({"images": [{"id": 1, "file_name": "a.png", "height": 0, "width": 4}]}, "height 0"),
        ({"images": [{"id": 1, "file_name": "a", "height": 10**400, "width": 4}]}, "height 1000"),
        ({"images": [{"id": 2**63, "file_name": "a", "height": 4, "width": 4}]}, "64 bits"),
        ({"images": [{"id": 1, "height": 1, "width": 4}]}, "file_name"),
        ({"categories": []}, "lists no categories"),
        ({"categories": [*CATEGORIES, {"id": 3, "name": "cow"}]}, "category id 3"),
        ({"categories": [*CATEGORIES, {"id": 4, "name": "cat"}]}, "two categories are called"),
        ({"categories": [{"id": "3", "name": "cat"}]}, "without a whole id"),
    ],
)
def test_a_damaged_file_is_one_line(tmp_path: Path, changes: Any, words: str) -> None:
    write_coco(tmp_path, changes=changes)
    assert words in error(tmp_path)


def test_two_images_of_one_id_are_refused(tmp_path: Path) -> None:
    file = write_coco(tmp_path)
    content = json.loads(file.read_text())
    content["images"][1]["id"] = 1
    file.write_text(json.dumps(content))
    assert "two images have the id 1" in error(tmp_path)


def test_a_missing_annotation_file_names_those_that_are_there(tmp_path: Path) -> None:
    write_coco(tmp_path, "val2017")
    assert "instances_val2017.json" in error(tmp_path)
    assert "does not exist" in error(tmp_path / "nothing")
    (tmp_path / "annotations" / "instances_val2017.json").unlink()
    assert "ROOT/annotations" in error(tmp_path)


def test_a_file_that_is_no_json_is_refused(tmp_path: Path) -> None:
    file = write_coco(tmp_path)
    file.write_text(file.read_text()[:-20])
    assert "cut short" in error(tmp_path)
    file.write_text("[]")
    assert "no list images" in error(tmp_path)


def test_listed_images_must_be_there(tmp_path: Path) -> None:
    write_coco(tmp_path, images=3)
    (tmp_path / "val" / "000000000002.png").unlink()
    (tmp_path / "val" / "000000000003.png").unlink()
    message = error(tmp_path)
    assert "000000000002.png and 1 more" in message
    (tmp_path / "val" / "000000000001.png").unlink()
    assert "in none of" in error(tmp_path)


@pytest.mark.parametrize("place", ["val", "val/images", "images/val", "."])
def test_images_are_found_in_the_usual_places(tmp_path: Path, place: str) -> None:
    write_coco(tmp_path, images=1)
    image = next((tmp_path / "val").iterdir())
    target = tmp_path / place / image.name
    target.parent.mkdir(parents=True, exist_ok=True)
    image.rename(target)
    assert read(tmp_path).records[0].pixels(3).size == (48, 40)


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA"])
def test_grey_colour_and_transparent_images_are_converted(tmp_path: Path, mode: str) -> None:
    write_coco(tmp_path, images=1)
    write_image(tmp_path / "val" / "000000000001.png", mode=mode)
    record = read(tmp_path).records[0]
    assert record.pixels(3).mode == "RGB"
    assert record.pixels(1).mode == "L"


def save_turned(path: Path, size: tuple[int, int]) -> Image.Image:
    """A JPEG stored with `size` (height, width) that is to be turned by a quarter."""
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(path, "PNG", exif=exif)
    return image


def test_an_image_turned_by_its_exif_data_is_turned_as_its_annotations_are(tmp_path: Path) -> None:
    write_coco(tmp_path, images=1)
    path = tmp_path / "val" / "000000000001.png"
    stored = save_turned(path, (40, 48))  # the annotations are for 40 x 48: as stored
    found = read(tmp_path).records[0].pixels(3)
    assert np.array_equal(np.asarray(found), np.asarray(stored))
    stored = save_turned(path, (48, 40))  # ... and now upright
    found = read(tmp_path).records[0].pixels(3)
    assert np.array_equal(np.asarray(found), np.rot90(np.asarray(stored), -1))


def test_an_image_of_another_size_than_its_annotations_is_refused(tmp_path: Path) -> None:
    write_coco(tmp_path, images=1)
    write_image(tmp_path / "val" / "000000000001.png", (50, 50))
    with pytest.raises(UserError, match="is 50x50 pixels, but its annotations are for 48x40"):
        read(tmp_path).records[0].pixels(3)
