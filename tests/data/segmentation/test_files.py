from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from data.segmentation.mask_files import save, write_ade20k, write_camvid
from qsdformer.data.segmentation.config import SegmentationData
from qsdformer.data.segmentation.dataset import load
from qsdformer.data.segmentation.files import find_pairs
from qsdformer.data.segmentation.names import ADE20K, CAMVID
from qsdformer.errors import UserError

GREY = np.zeros((4, 6), np.uint8)
COLOUR = np.zeros((4, 6, 3), np.uint8)


def write(root: Path, images: str, masks: str, *names: str) -> Path:
    for name in names:
        save(COLOUR, root / images / f"{name}.jpg")
        save(GREY, root / masks / f"{name}.png")
    return root


@pytest.mark.parametrize(
    ("images", "masks"),
    [
        ("val/images", "val/masks"),
        ("images/val", "masks/val"),
        ("images/val", "annotations/val"),
        ("images/validation", "annotations/validation"),
        ("val", "valannot"),
        ("ADEChallengeData2016/images/validation", "ADEChallengeData2016/annotations/validation"),
    ],
)
def test_images_and_masks_of_equal_names_are_found_in_every_layout(
    tmp_path: Path, images: str, masks: str
) -> None:
    write(tmp_path, images, masks, "b", "a", "deeper/c")
    found = find_pairs(str(tmp_path), "val", skip_bad=False)
    assert [Path(pair.image).name for pair in found.pairs] == ["a.jpg", "b.jpg", "c.jpg"]
    assert [Path(pair.mask).name for pair in found.pairs] == ["a.png", "b.png", "c.png"]
    assert found.notes == ()


def test_what_is_missing_is_named_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"give --data\.root"):
        find_pairs(None, "val", skip_bad=False)
    with pytest.raises(UserError, match="does not exist"):
        find_pairs(str(tmp_path / "nowhere"), "val", skip_bad=False)
    write(tmp_path, "train/images", "train/masks", "a", "b")
    with pytest.raises(UserError, match="no images and masks of a split val"):
        find_pairs(str(tmp_path), "val", skip_bad=False)
    (tmp_path / "train/masks/b.png").unlink()
    with pytest.raises(UserError, match=r"1 of 2 images have no mask in .*b\.jpg"):
        find_pairs(str(tmp_path), "train", skip_bad=False)
    found = find_pairs(str(tmp_path), "train", skip_bad=True)
    assert [Path(pair.image).name for pair in found.pairs] == ["a.jpg"]
    assert "b.jpg" in found.notes[0]
    save(GREY, tmp_path / "train/masks/z.png")
    assert "z.png" in find_pairs(str(tmp_path), "train", skip_bad=True).notes[1]
    save(COLOUR, tmp_path / "train/images/a.png")
    with pytest.raises(UserError, match="same name"):
        find_pairs(str(tmp_path), "train", skip_bad=True)


def test_damaged_files_are_left_out_only_where_the_recipe_says_so(tmp_path: Path) -> None:
    write(tmp_path, "train/images", "train/masks", "a", "b", "c")
    (tmp_path / "train/images/a.jpg").write_bytes(b"no image")
    (tmp_path / "train/masks/b.png").write_bytes(b"no mask")
    found = find_pairs(str(tmp_path), "train", skip_bad=True)
    assert [Path(pair.image).name for pair in found.pairs] == ["c.jpg"]
    assert "2 files" in found.notes[0]
    assert len(find_pairs(str(tmp_path), "train", skip_bad=False).pairs) == 3


def test_classes_are_those_published_given_written_beside_or_counted(tmp_path: Path) -> None:
    camvid = write_camvid(tmp_path / "camvid", count=2)
    ade = write_ade20k(tmp_path / "ade", count=2)

    def names(**keys: object) -> tuple[str, ...]:
        return load(SegmentationData(**keys), 0).info.class_names  # type: ignore[arg-type]

    assert names(name="camvid", root=str(camvid)) == CAMVID
    assert names(name="ade20k", root=str(ade)) == ADE20K
    assert (len(CAMVID), len(ADE20K), len(set(ADE20K))) == (11, 150, 150)
    assert names(root=str(camvid), ignore_label=11) == tuple(map(str, range(11)))
    assert names(root=str(camvid), classes=CAMVID, ignore_label=11) == CAMVID
    (camvid / "classes.txt").write_text("\n".join(CAMVID) + "\n\n")
    assert names(root=str(camvid), ignore_label=11) == CAMVID
    (camvid / "classes.txt").write_text("one\none\n")
    with pytest.raises(UserError, match=r"classes\.txt"):
        names(root=str(camvid))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"image_size": [0, 4]}, "image_size"),
        ({"longest_side": 8}, "longest_side"),
        ({"shorter_side": 8, "longest_side": 4}, "longest_side"),
        ({"scale": (2.0, 1.0)}, "scale"),
        ({"ignore_label": 256}, "ignore_label"),
        ({"reduce_zero_label": True, "ignore_label": 0}, "ignore_label"),
        ({"classes": ("one",)}, "classes"),
        ({"max_class_share": 0.0}, "max_class_share"),
        ({"split": "../val"}, "split"),
        ({"workers": -1}, "workers"),
    ],
)
def test_impossible_keys_are_refused_and_named(change: dict[str, object], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        SegmentationData(**change)  # type: ignore[arg-type]
