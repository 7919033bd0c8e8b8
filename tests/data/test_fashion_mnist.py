from __future__ import annotations

import gzip
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import torch
import torchvision

from qsdformer.data import DataConfig, DataModule, fashion_mnist
from qsdformer.errors import UserError

LABELS = "train-labels-idx1-ubyte.gz"
IMAGES = "train-images-idx3-ubyte.gz"


def module(folder: Path, **options: object) -> DataModule:
    config = DataConfig(name="fashion_mnist", root=str(folder), **options)
    return DataModule(config, batch_size=10)


@pytest.fixture
def nowhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """No usual folder has the data; returns the home folder."""
    monkeypatch.setattr(fashion_mnist, "DEBIAN_FOLDER", tmp_path / "debian")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "home"


def one_line_error(folder: Path, **options: object) -> str:
    with pytest.raises(UserError) as caught:
        module(folder, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_pixels_and_labels_are_those_in_the_files(fashion_folder: Path) -> None:
    data = module(fashion_folder)
    images, labels = next(iter(data.val_dataloader()))
    raw = gzip.decompress((fashion_folder / "t10k-images-idx3-ubyte.gz").read_bytes())[16:]
    pixels = torch.tensor(list(raw)).view(20, 1, 28, 28)[:10] / 255
    torch.testing.assert_close(images, (pixels - 0.2860) / 0.3530)
    assert labels.tolist() == list(range(10))
    assert (data.train_size, data.eval_size, data.info.image_size) == (50, 20, 28)
    assert (data.info.class_names[0], data.info.class_names[9]) == ("T-shirt/top", "Ankle boot")


def test_images_are_resized_when_asked(fashion_folder: Path) -> None:
    images, _ = next(iter(module(fashion_folder, image_size=32).train_dataloader()))
    assert images.shape == (10, 1, 32, 32)


@pytest.mark.parametrize("place", ["work/data/fashion-mnist", "cache", "debian"])
def test_usual_folders_are_found_without_a_root(
    nowhere: Path, fashion_folder: Path, tmp_path: Path, place: str
) -> None:
    cache = nowhere / ".cache/qsdformer/fashion-mnist"
    target = cache if place == "cache" else tmp_path / place
    shutil.copytree(fashion_folder, target)
    assert fashion_mnist.find_folder(None, download=False).resolve() == target.resolve()


def test_missing_data_says_where_it_looked_and_two_ways_to_get_it(nowhere: Path) -> None:
    with pytest.raises(UserError) as caught:
        DataModule(DataConfig(name="fashion_mnist"), batch_size=8)
    message = str(caught.value)
    for part in ("data/fashion-mnist", ".cache/qsdformer", "debian", "apt-get", "data.download"):
        assert part in message
    assert "\n" not in message


def test_a_given_root_without_the_files_is_not_replaced_by_another(
    nowhere: Path, fashion_folder: Path, tmp_path: Path
) -> None:
    shutil.copytree(fashion_folder, tmp_path / "debian")
    assert str(tmp_path / "empty") in one_line_error(tmp_path / "empty")


def test_truncated_file_is_named(fashion_folder: Path) -> None:
    path = fashion_folder / IMAGES
    path.write_bytes(path.read_bytes()[:-2000])
    assert str(path) in one_line_error(fashion_folder)


def test_corrupt_file_is_named(fashion_folder: Path) -> None:
    path = fashion_folder / IMAGES
    content = bytearray(path.read_bytes())
    content[len(content) // 2 : len(content) // 2 + 200] = bytes(200)
    path.write_bytes(bytes(content))
    assert str(path) in one_line_error(fashion_folder)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"not gzip at all", "gzip"),
        (b"", "IDX"),
        (gzip.compress(b"\0\0"), "IDX"),
        (gzip.compress(b"\0\0\x0d\x01\0\0\0\x01\0"), "IDX"),
        (gzip.compress(b"\0\0\x08\x01\0\0\0\x32" + bytes(49)), "49 values where 50"),
        (gzip.compress(b"\0\0\x08\x01\0\0\0\0"), "0 labels for 50"),
        (gzip.compress(b"\0\0\x08\x01\0\0\0\x32" + b"\x0a" * 50), "label 10"),
    ],
    ids=["not gzip", "empty", "short header", "wrong type", "too short", "no labels", "label 10"],
)
def test_bad_label_files_are_named_with_the_reason(
    fashion_folder: Path, content: bytes, reason: str
) -> None:
    (fashion_folder / LABELS).write_bytes(content)
    message = one_line_error(fashion_folder)
    assert LABELS in message
    assert reason in message


def test_images_of_another_size_are_refused(
    fashion_folder: Path, idx_writer: Callable[[Path, np.ndarray], None]
) -> None:
    idx_writer(fashion_folder / IMAGES, np.zeros((50, 32, 32)))
    assert "32 x 32 instead of 28 x 28" in one_line_error(fashion_folder)


def test_one_class_is_refused(
    fashion_folder: Path, idx_writer: Callable[[Path, np.ndarray], None]
) -> None:
    idx_writer(fashion_folder / LABELS, np.full(50, 3))
    assert "one class, Dress" in one_line_error(fashion_folder)


@pytest.mark.parametrize("error", [URLError("no route\nto host"), RuntimeError("mirrors failed")])
def test_download_without_network_is_one_line_and_leaves_nothing(
    nowhere: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail(root: str, download: bool) -> None:
        (Path(root) / "half").write_text("half a file")
        raise error

    monkeypatch.setattr(torchvision.datasets, "FashionMNIST", fail)
    message = one_line_error(tmp_path / "new", download=True)
    assert re.search("no route to host|mirrors failed", message)
    assert list((tmp_path / "new").iterdir()) == []


def test_download_goes_into_the_cache_and_is_found_there_again(
    nowhere: Path, fashion_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def fetch(root: str, download: bool) -> None:
        calls.append(root)
        shutil.copytree(fashion_folder, Path(root) / "FashionMNIST" / "raw")

    monkeypatch.setattr(torchvision.datasets, "FashionMNIST", fetch)
    config = DataConfig(name="fashion_mnist", download=True)
    for _ in range(2):
        assert DataModule(config, batch_size=8).train_size == 50
    assert len(calls) == 1
    names = {path.name for path in (nowhere / ".cache/qsdformer/fashion-mnist").iterdir()}
    assert names == set(fashion_mnist.FILES)
