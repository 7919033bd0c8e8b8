"""What is drawn of objects, pixel by pixel."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image

from qsdformer.data.detection.drawing import OPACITY, Drawn, beside, drawn
from qsdformer.data.segmentation.overlay import palette

GREY = 100
NAMES = ("cat", "dog")
BOX = (40, 60, 140, 160)  # x1, y1, x2, y2 of an object of 100 x 100 pixels
FIELD = (slice(30, 60), slice(40, 140))  # above the box, where name and score stand


def pixels(*boxes: Sequence[float], side: int = 300, **options: object) -> np.ndarray:
    """What is drawn of boxes on a grey square: (side, side, 3), as numbers that may be negative."""
    labels = options.pop("labels", [2] * len(boxes))
    objects = Drawn(boxes=np.array(boxes, np.float32).reshape(-1, 4), labels=labels, **options)  # type: ignore[arg-type]
    return np.asarray(drawn(Image.new("L", (side, side), GREY), objects, NAMES)).astype(int)


def colour(label: int) -> np.ndarray:
    return palette(len(NAMES) + 1)[label].astype(int)


def letters(field: np.ndarray, around: np.ndarray) -> np.ndarray:
    """Where a field has neither the colour around letters nor the image's."""
    return (field != around).any(axis=-1) & (field != GREY).any(axis=-1)


def test_a_box_has_its_classs_colour_on_its_border_and_nothing_elsewhere() -> None:
    for label in (1, 2):
        picture = pixels(BOX, labels=[label])
        border = np.zeros((300, 300), bool)
        border[60:160, 40:140] = True
        border[62:158, 42:138] = False
        assert (picture[border] == colour(label)).all()
        assert (picture[62:158, 42:138] == GREY).all()  # no mask: the inside stays
        assert (picture[160:] == GREY).all()
        assert (picture[:30] == GREY).all()
        assert (picture[:, :40] == GREY).all()
        assert (picture[:, 140:] == GREY).all()
    assert (colour(1) != colour(2)).any()


def test_a_mask_tints_its_own_pixels_and_no_others() -> None:
    mask = np.zeros((1, 300, 300), bool)
    mask[0, 80:100, 60:120] = True
    picture = pixels(BOX, masks=mask)
    tint = ((1 - OPACITY) * GREY + OPACITY * colour(2)).astype(int)
    assert (picture[80:100, 60:120] == tint).all()
    outside = ~mask[0]
    assert (picture[62:158, 42:138][outside[62:158, 42:138]] == GREY).all()


def test_name_and_score_stand_above_the_box_in_its_colour() -> None:
    bare, likely, unlikely = (pixels(BOX, scores=s) for s in (None, [0.87], [0.31]))
    other = pixels(BOX, labels=[1])
    for picture in (bare, likely, unlikely):
        field = picture[FIELD]
        assert (field == colour(2)).all(axis=-1).sum() > 100
        assert letters(field, colour(2)).sum() > 20
    inked = [(picture[FIELD] != GREY).any(axis=-1) for picture in (bare, likely, other)]
    assert inked[1].sum() > inked[0].sum()  # a score makes the field longer
    changed = np.argwhere((likely != unlikely).any(axis=-1))
    assert len(changed) > 0  # other digits, and nothing but them
    assert changed[:, 0].max() < 60
    assert changed[:, 0].min() >= 30


def test_the_first_object_lies_on_top() -> None:
    picture = pixels(BOX, (90, 60, 190, 160), labels=[1, 2])
    assert (picture[159, 40:140] == colour(1)).all()
    assert (picture[159, 140:190] == colour(2)).all()


def test_without_objects_the_picture_is_the_image() -> None:
    assert (pixels(scores=[], masks=np.zeros((0, 300, 300), bool)) == GREY).all()


def test_a_small_image_is_magnified_with_its_boxes_and_the_name_stays_inside() -> None:
    picture = pixels((0, 0, 64, 64), side=64)
    assert picture.shape == (256, 256, 3)
    assert (picture[-2:] == colour(2)).all()
    assert (picture[:, -2:] == colour(2)).all()
    assert (picture[100:150, 100:150] == GREY).all()
    assert letters(picture[2:20, 2:30], colour(2)).sum() > 20


def test_pictures_beside_one_another_keep_their_pixels() -> None:
    row = beside([Image.new("RGB", (3, 4), (9, 9, 9)), Image.new("RGB", (2, 6), (7, 7, 7))])
    assert row.shape == (6, 5, 3)
    assert (row[:4, :3] == 9).all()
    assert (row[4:, :3] == 0).all()
    assert (row[:, 3:] == 7).all()
