from __future__ import annotations

from typing import Any

import pytest
from torch._utils import ExceptionWrapper

from qsdformer.data.base import DataError, DataInfo, as_text
from qsdformer.data.config import DataConfig

INFO = DataInfo(image_size=32, channels=1, class_names=("a", "b"), mean=(0.5,), std=(0.25,))


def test_info_survives_a_round_trip_through_plain_values() -> None:
    values = INFO.to_dict()
    assert all(isinstance(v, (int, float, str, list)) for v in values.values())
    assert DataInfo.from_dict(values) == INFO


def test_images_need_not_be_square_and_squares_are_stored_as_ever() -> None:
    wide = DataInfo(**{**INFO.to_dict(), "image_size": (18, 24), "fit": "stretch"})
    assert wide.sides == (18, 24)
    assert wide.to_dict()["image_size"] == [18, 24]
    assert DataInfo.from_dict(wide.to_dict()) == wide
    square = DataInfo(**{**INFO.to_dict(), "image_size": [32, 32]})
    assert square == INFO
    assert square.to_dict()["image_size"] == 32
    assert "fit" not in square.to_dict()


def test_info_refuses_unknown_fields_and_names_them() -> None:
    with pytest.raises(ValueError, match="colour"):
        DataInfo.from_dict({**INFO.to_dict(), "colour": 1})


@pytest.mark.parametrize(
    "change",
    [
        {"channels": 0},
        {"channels": 2},
        {"image_size": 0},
        {"image_size": (16, 0)},
        {"image_size": (16, 16, 16)},
        {"fit": "tile"},
        {"mean": (0.5, 0.5)},
        {"std": (0.0,)},
        {"crop_pct": 0.0},
    ],
)
def test_info_refuses_impossible_values_and_names_the_field(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(change))):
        DataInfo(**{**INFO.to_dict(), **change})


@pytest.mark.parametrize(
    ("change", "allowed"),
    [
        ({"name": "mnist"}, "digits, fashion_mnist, cifar10, cifar100, image_folder"),
        ({"evaluate_on": "train"}, "test, holdout"),
        ({"train_limit": 0}, "at least 1"),
        ({"image_size": 0}, "1 to 8192 pixels"),
        ({"crop_padding": -1}, "0 or more"),
        ({"workers": -1}, "0 or more"),
        ({"random_erasing": 1.5}, r"\[0, 1\]"),
        ({"download": True}, "only fashion_mnist"),
        ({"root": "somewhere"}, "scikit-learn"),
        ({"split": "test"}, "only folders of images have others"),
        ({"name": "image_folder", "split": "../other"}, "the name of a folder"),
        ({"name": "image_folder", "split": "test", "evaluate_on": "holdout"}, "left out"),
        ({"name": "image_folder", "crop_padding": 2}, "random resized crops"),
    ],
)
def test_config_refuses_bad_values_and_says_what_is_allowed(
    change: dict[str, Any], allowed: str
) -> None:
    with pytest.raises(ValueError, match=allowed):
        DataConfig(**{"name": "digits", **change})


def test_a_data_error_is_one_line_again_after_a_loader_process_passed_it_on() -> None:
    try:
        try:
            raise OSError("inner: cause")
        except OSError as error:
            raise DataError("cannot read image a: b.png: truncated") from error
    except DataError:
        wrapped = ExceptionWrapper(where="in DataLoader worker process 0")
    with pytest.raises(DataError) as caught:
        wrapped.reraise()
    assert str(caught.value) == "cannot read image a: b.png: truncated"


def test_names_of_folders_become_text_whatever_the_locale_makes_of_them() -> None:
    assert as_text("naïve") == "naïve"
    assert as_text("na\udcc3\udcafve") == "naïve"  # as a locale of ASCII reads the same bytes
    assert as_text("caf\udce9") == "caf\\xe9"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("image_size", 10**9),
        ("image_size", 2.5),
        ("mean", (float("nan"),)),
        ("mean", ("x",)),
        ("class_names", (1, 2)),
        ("interpolation", 3),
    ],
)
def test_a_stored_description_that_is_none_is_refused(field: str, value: Any) -> None:
    good = {"image_size": 8, "channels": 1, "class_names": ["a"], "mean": [0.5], "std": [0.5]}
    assert DataInfo.from_dict(good).image_size == 8
    with pytest.raises((ValueError, TypeError, AttributeError)):
        DataInfo.from_dict({**good, field: value})
