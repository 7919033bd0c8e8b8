from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data.detection_files import voc_object, write_voc
from qsdformer.data.detection import records
from qsdformer.data.detection.voc import class_names_of, read_voc
from qsdformer.errors import UserError


def error(root: Path, **options: object) -> str:
    with pytest.raises(UserError) as caught:
        read_voc(root, "val", **options)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_boxes_count_pixels_from_one_and_include_the_last(tmp_path: Path) -> None:
    write_voc(tmp_path, objects={"a": [voc_object(box=(1, 1, 48, 40)), voc_object("WBC")]})
    found = read_voc(tmp_path, "val")
    assert found.class_names == ("RBC", "WBC")
    record = found.records[0]
    assert record.boxes.tolist() == [[0, 0, 48, 40], [4, 6, 24, 16]]
    assert record.labels.tolist() == [1, 2]
    assert record.pixels(3).size == (48, 40)


def test_a_box_of_one_pixel_across_is_an_object(tmp_path: Path) -> None:
    boxes = [(5, 7, 5, 16), (5, 7, 24, 7), (5, 7, 4, 16)]
    write_voc(tmp_path, objects={"a": [voc_object(box=box) for box in boxes]})
    found = read_voc(tmp_path, "val")
    assert found.records[0].boxes.tolist() == [[4, 6, 5, 16], [4, 6, 24, 7]]
    file = tmp_path / "ImageSets" / "Main" / "val.txt"
    assert found.notes == (f"boxes of zero area in {file}, left out: 1",)


def test_objects_beyond_the_border_are_cut_and_those_outside_left_out(tmp_path: Path) -> None:
    boxes = [(41, 31, 60, 50), (50, 1, 60, 10), (9, 9, 8, 20), (2, 2, 9, 9)]
    write_voc(tmp_path, objects={"a": [voc_object(box=box) for box in boxes]})
    found = read_voc(tmp_path, "val")
    assert found.records[0].boxes.tolist() == [[40, 30, 48, 40], [1, 1, 9, 9]]
    assert [note.rpartition(": ")[2] for note in found.notes] == ["1", "1", "1"]
    assert [note.split(" in ")[0] for note in found.notes] == [
        "boxes beyond the image's border",
        "boxes of zero area",
        "boxes outside the image",
    ]


@pytest.mark.parametrize(
    "size",
    [
        "",
        "<size><width>0</width><height>0</height></size>",
        "<size><width>48</width><height>0</height></size>",
    ],
)
def test_boxes_are_cut_at_the_image_files_size_where_the_annotation_has_none(
    tmp_path: Path, size: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    boxes = [(500, 500, 600, 600), (41, 31, 60, 50), (2, 2, 9, 9)]
    write_voc(tmp_path, objects={"a": [voc_object(box=box) for box in boxes]})
    set_size(tmp_path, size)
    with monkeypatch.context() as patched:
        patched.setattr(records, "open_image", None)  # the header is enough
        found = read_voc(tmp_path, "val")
    assert found.records[0].boxes.tolist() == [[40, 30, 48, 40], [1, 1, 9, 9]]
    assert [note.split(" in ")[0] for note in found.notes] == [
        "boxes beyond the image's border",
        "boxes outside the image",
    ]
    assert found.records[0].pixels(3).size == (48, 40)


@pytest.mark.parametrize("ending", ["jpg", "png", "tiff"])
def test_a_size_that_only_the_image_file_has_is_that_of_the_upright_image(
    tmp_path: Path, ending: str
) -> None:
    write_voc(tmp_path, objects={"a": [voc_object(box=(1, 1, 45, 45))]})
    set_size(tmp_path, "")
    (tmp_path / "JPEGImages" / "a.jpg").unlink()
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter
    image = Image.fromarray(np.zeros((40, 48, 3), np.uint8))
    image.save(tmp_path / "JPEGImages" / f"a.{ending}", exif=exif)
    record = read_voc(tmp_path, "val").records[0]
    assert record.boxes.tolist() == [[0, 0, 40, 45]]
    assert record.pixels(3).size == (40, 48)


def test_an_unreadable_image_without_a_size_is_left_to_the_check_before_training(
    tmp_path: Path,
) -> None:
    write_voc(tmp_path, objects={"a": [voc_object()]})
    set_size(tmp_path, "")
    (tmp_path / "JPEGImages" / "a.jpg").write_bytes(b"no image")
    record = read_voc(tmp_path, "val").records[0]
    assert record.boxes.tolist() == [[4, 6, 24, 16]]
    with pytest.raises(UserError, match=r"cannot read image .*a\.jpg"):
        record.pixels(3)


def set_size(root: Path, size: str) -> None:
    """Put `size` in the place of an annotation's element of that name."""
    file = root / "Annotations" / "a.xml"
    file.write_text(re.sub("<size>.*</size>", size, file.read_text()))


def test_difficult_objects_are_not_learned(tmp_path: Path) -> None:
    write_voc(tmp_path, objects={"a": [voc_object(difficult=1), voc_object()]})
    record = read_voc(tmp_path, "val").records[0]
    assert record.iscrowd.tolist() == [True, False]


def test_classes_are_those_of_both_splits_or_of_the_model(tmp_path: Path) -> None:
    write_voc(tmp_path, "train", {"a": [voc_object("WBC")]})
    write_voc(tmp_path, "val", {"b": [voc_object("RBC")], "c": []})
    assert class_names_of(tmp_path, ("train", "val")) == ("RBC", "WBC")
    found = read_voc(tmp_path, "val", class_names=("WBC", "RBC"))
    assert found.records[0].labels.tolist() == [2]
    assert found.records[1].boxes.shape == (0, 4)
    assert "'RBC', which is none of WBC" in error(tmp_path, class_names=("WBC",))


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    assert "does not exist" in error(tmp_path / "nothing")
    write_voc(tmp_path, "train")
    message = error(tmp_path)
    assert "val.txt" in message
    assert "there is train" in message
    write_voc(tmp_path, objects={"a": [voc_object()]})
    (tmp_path / "JPEGImages" / "a.jpg").unlink()
    assert "no a.jpg in" in error(tmp_path)
    (tmp_path / "Annotations" / "a.xml").unlink()
    assert "no annotation file" in error(tmp_path)


def test_damaged_lists_are_refused(tmp_path: Path) -> None:
    write_voc(tmp_path)
    names = tmp_path / "ImageSets" / "Main" / "val.txt"
    names.write_text("\n")
    assert "names no images" in error(tmp_path)
    names.write_text("val_1 1\nval_1 -1\n")
    assert "more than once" in error(tmp_path)
    names.write_text("val_1\n", encoding="utf-16")
    assert "not text in UTF-8" in error(tmp_path)


def test_a_list_may_begin_with_a_byte_order_mark(tmp_path: Path) -> None:
    write_voc(tmp_path)
    (tmp_path / "ImageSets" / "Main" / "val.txt").write_text("val_1\n", encoding="utf-8-sig")
    assert len(read_voc(tmp_path, "val").records) == 1


@pytest.mark.parametrize("encoding", ["foo-9", "shift_jis"])
def test_an_encoding_that_cannot_be_read_is_one_line(tmp_path: Path, encoding: str) -> None:
    write_voc(tmp_path)
    file = tmp_path / "Annotations" / "val_1.xml"
    file.write_text(f'<?xml version="1.0" encoding="{encoding}"?>' + file.read_text())
    assert "not XML, or cut short" in error(tmp_path)


@pytest.mark.parametrize(
    ("inner", "words"),
    [
        (voc_object(box=(5, 7, "x", 16)), "bndbox/xmax is 'x'"),
        (voc_object(box=(5, 7, "nan", 16)), "bndbox/xmax"),
        ("<object><name>RBC</name></object>", "bndbox/xmin is None"),
        (voc_object(name=""), "has no name"),
        ("<object>", "not XML, or cut short"),
    ],
)
def test_damaged_annotations_are_refused(tmp_path: Path, inner: str, words: str) -> None:
    write_voc(tmp_path, objects={"a": [inner]})
    assert words in error(tmp_path)


def test_entities_that_could_blow_up_are_refused(tmp_path: Path) -> None:
    write_voc(tmp_path, objects={"a": [voc_object()]})
    file = tmp_path / "Annotations" / "a.xml"
    file.write_text('<!DOCTYPE a [<!ENTITY x "y">]>' + file.read_text())
    assert "entities" in error(tmp_path)


def test_a_split_without_objects_is_refused(tmp_path: Path) -> None:
    write_voc(tmp_path, objects={"a": []})
    assert "needs at least one" in error(tmp_path)


def test_the_image_may_have_the_name_that_its_annotation_gives(tmp_path: Path) -> None:
    write_voc(tmp_path, objects={"a": [voc_object()]})
    (tmp_path / "JPEGImages" / "a.jpg").rename(tmp_path / "JPEGImages" / "other.bmp.jpg")
    file = tmp_path / "Annotations" / "a.xml"
    file.write_text(file.read_text().replace("a.jpg", "other.bmp.jpg"))
    assert read_voc(tmp_path, "val").records[0].pixels(3).size == (48, 40)
