from __future__ import annotations

import contextlib
import os
import pickle
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image

from data import cifar_files as tiny
from qsdformer.data import DataConfig, DataModule, cifar
from qsdformer.data.cifar_names import CIFAR10, CIFAR100
from qsdformer.errors import UserError


def module(root: Path, name: str = "cifar10", **options: object) -> DataModule:
    return DataModule(DataConfig(name=name, root=str(root), **options), batch_size=8)


def one_line_error(root: Path, name: str = "cifar10", **options: object) -> str:
    with pytest.raises(UserError) as caught:
        module(root, name, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


WRITERS: dict[str, tuple[str, Callable[[Path], Path]]] = {
    "ten, binary archive": ("cifar10", tiny.write_tiny_cifar10),
    "ten, binary folder": (
        "cifar10",
        lambda root: tiny.write_folder(root / "cifar-10-batches-bin", tiny.binary_ten()).parent,
    ),
    "ten, binary files": ("cifar10", lambda root: tiny.write_folder(root, tiny.binary_ten())),
    "ten, pickles in an archive by another name": (
        "cifar10",
        lambda root: tiny.write_archive(
            root / "mine.tgz", "cifar-10-batches-py", tiny.python_ten()
        ),
    ),
    "ten, pickles": (
        "cifar10",
        lambda root: tiny.write_folder(root / "cifar-10-batches-py", tiny.python_ten()).parent,
    ),
    "hundred, binary archive": (
        "cifar100",
        lambda root: tiny.write_archive(
            root / "cifar-100-binary.tar.gz", "cifar-100-binary", tiny.binary_hundred()
        ),
    ),
    "hundred, pickles": (
        "cifar100",
        lambda root: tiny.write_folder(root / "cifar-100-python", tiny.python_hundred()).parent,
    ),
}


@pytest.mark.parametrize("layout", WRITERS)
def test_pixels_and_labels_are_those_of_every_published_layout(tmp_path: Path, layout: str) -> None:
    name, write = WRITERS[layout]
    data = module(write(tmp_path / "root"), name)
    kind = cifar.TEN if name == "cifar10" else cifar.HUNDRED
    seed, count, train = (6, 8, 40) if name == "cifar10" else (95, 40, 40)
    assert (data.train_size, data.eval_size) == (train, count)
    assert data.info.class_names == kind.class_names
    images, labels = next(iter(data.val_dataloader()))
    raw = torch.from_numpy(tiny.pixels(seed, count)[:8]).view(8, 3, 32, 32) / 255
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (kind.mean, kind.std))
    torch.testing.assert_close(images, (raw - mean) / std)
    assert labels.tolist() == tiny.labels(seed, count, len(kind.class_names))[:8].tolist()


def test_class_names_are_as_many_as_published_and_in_the_order_of_labels() -> None:
    assert (len(set(CIFAR10)), len(set(CIFAR100))) == (10, 100)
    assert sorted(CIFAR10) == list(CIFAR10)
    assert sorted(CIFAR100) == list(CIFAR100)


def test_class_folders_give_the_same_pixels_as_their_files(tmp_path: Path) -> None:
    root = tiny.write_class_folders(tmp_path / "root")
    data = module(root)
    assert (data.train_size, data.eval_size) == (20, 10)
    images, labels = next(iter(data.val_dataloader()))
    first = int((labels == 3).nonzero()[0])
    with Image.open(root / "val/cat/0.png") as file:
        raw = torch.from_numpy(np.array(file)).permute(2, 0, 1) / 255
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (cifar.TEN.mean, cifar.TEN.std))
    torch.testing.assert_close(images[first], (raw - mean) / std)


def test_evaluation_reads_no_training_files(tmp_path: Path) -> None:
    root = tiny.write_class_folders(tmp_path / "root")
    info = module(root).info
    shutil.rmtree(root / "train")
    files = {"test_batch.bin": tiny.binary_ten()["test_batch.bin"]}
    for place in (root, tiny.write_folder(tmp_path / "other", files)):
        config = DataConfig(name="cifar10", root=str(place))
        data = DataModule(config, batch_size=4, evaluate_as=info)
        assert data.info == info
        assert next(iter(data.val_dataloader()))[0].shape == (4, 3, 32, 32)


def test_grey_images_and_images_of_other_sizes_among_class_folders_fit_in(tmp_path: Path) -> None:
    root = tiny.write_class_folders(tmp_path / "root")
    Image.new("L", (50, 40), 128).save(root / "train/cat/grey.png")
    data = module(root)
    assert data._train.images.shape == (21, 3, 32, 32)  # type: ignore[attr-defined]


def test_a_class_folder_too_many_or_too_few_is_named(tmp_path: Path) -> None:
    root = tiny.write_class_folders(tmp_path / "root")
    for split in ("train", "val"):
        shutil.copytree(root / split / "cat", root / split / "lynx")
    assert "lynx too many" in one_line_error(root)
    for split in ("train", "val"):
        shutil.rmtree(root / split / "lynx")
        shutil.rmtree(root / split / "dog")
    assert "no folder dog" in one_line_error(root)


@pytest.mark.parametrize("kept", [0.5, 0.9])
def test_a_truncated_archive_is_named(tmp_path: Path, kept: float) -> None:
    root = tiny.write_tiny_cifar10(tmp_path / "root")
    archive = root / "cifar-10-binary.tar.gz"
    content = archive.read_bytes()
    archive.write_bytes(content[: int(kept * len(content))])
    assert str(archive) in one_line_error(root)


def test_an_archive_under_another_name_is_found_and_named_where_it_is_truncated(
    tmp_path: Path,
) -> None:
    archive = tiny.write_archive(tmp_path / "mine.tgz", "x", tiny.binary_ten())
    assert module(archive).train_size == 40
    content = archive.read_bytes()
    archive.write_bytes(content[: len(content) // 2])
    assert f"{archive}: truncated or damaged" in one_line_error(archive)


def test_class_folders_in_an_archive_are_to_be_unpacked(tmp_path: Path) -> None:
    root = tiny.write_class_folders(tmp_path / "root")
    archive = tmp_path / "cifar10.tar"
    with tarfile.open(archive, "w") as tar:
        tar.add(root, "cifar10")
    assert "have to be unpacked first" in one_line_error(archive)


def test_class_folders_may_have_another_split_and_archives_may_not(tmp_path: Path) -> None:
    root = tiny.write_class_folders(tmp_path / "root", val=1)
    (root / "val").rename(root / "kept")
    assert module(root, split="kept").eval_size == 10
    info = module(root, split="kept").info
    shutil.rmtree(root / "train")
    config = DataConfig(name="cifar10", root=str(root), split="kept")
    assert DataModule(config, batch_size=4, evaluate_as=info).eval_size == 10
    published = tiny.write_tiny_cifar10(tmp_path / "published")
    assert module(published, split="test").eval_size == 8
    with pytest.raises(UserError, match=r"data\.split=kept: .* leave it out"):
        module(published, split="kept")


@pytest.mark.parametrize("content", [b"", b"no archive", bytes(2000)])
def test_what_is_no_archive_is_named(tmp_path: Path, content: bytes) -> None:
    archive = tmp_path / "cifar-10-python.tar.gz"
    archive.write_bytes(content)
    assert str(archive) in one_line_error(tmp_path)


@pytest.mark.parametrize(
    ("file", "change", "reason"),
    [
        ("data_batch_3.bin", lambda c: c[:-100], "whole records of 3073"),
        ("data_batch_3.bin", lambda c: c[:-3073], "it holds 7 images, and data_batch_1.bin 8"),
        ("data_batch_3.bin", lambda c: b"\x0a" + c[1:], "label 10 is not in 0 to 9"),
        ("test_batch.bin", lambda c: b"", "0 bytes"),
    ],
)
def test_damaged_binary_files_are_named_with_the_reason(
    tmp_path: Path, file: str, change: Callable[[bytes], bytes], reason: str
) -> None:
    files = tiny.binary_ten()
    files[file] = change(files[file])
    message = one_line_error(tiny.write_folder(tmp_path / "root", files))
    assert file in message
    assert reason in message


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    files = tiny.binary_ten()
    del files["data_batch_4.bin"]
    assert "data_batch_4.bin" in one_line_error(tiny.write_folder(tmp_path / "root", files))
    tiny.write_archive(tmp_path / "a.tar.gz", "x", files)
    assert "lacks data_batch_4.bin" in one_line_error(tmp_path / "a.tar.gz")


class _Attack:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, ("attacked",)


def batch(**values: object) -> bytes:
    return tiny.pickled({"labels": [1] * 8, "data": tiny.pixels(0), **values})


BAD_PICKLES = {
    "code": (batch(x=_Attack()), "mkdir, which is not data"),
    "label 10": (batch(labels=[10] * 8), "label 10 is not in 0 to 9"),
    "label -1": (batch(labels=[-1] * 8), "label -1 is not in 0 to 9"),
    "huge label": (batch(labels=[10**30] * 8), "cannot read"),
    "text label": (batch(labels=["cat"] * 8), "of another kind"),
    "few labels": (batch(labels=[1] * 7), "(8, 3072) for 7 labels"),
    "objects": (batch(data=np.array([None] * 8)), "not one of bytes"),
    "floats": (batch(data=np.zeros((8, 3072))), "not one of bytes"),
    "no labels": (tiny.pickled({"data": tiny.pixels(0)}), "no 'labels'"),
    "a list": (pickle.dumps([1, 2], protocol=2), "no dictionary"),
    "truncated": (batch()[:-50], "cannot read"),
    "huge memo": (b"\x80\x02Nr\xff\xff\xff\x7f.", "no dictionary"),
    "huge text": (b"\x80\x02T\xff\xff\xff\x7f.", "cannot read"),
    "empty": (b"", "cannot read"),
}


@pytest.mark.parametrize("kind", BAD_PICKLES)
def test_bad_pickles_are_named_and_never_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.chdir(tmp_path)
    content, reason = BAD_PICKLES[kind]
    files = {**tiny.python_ten(), "data_batch_1": content}
    message = one_line_error(tiny.write_folder(tmp_path / "root", files))
    assert "data_batch_1" in message
    assert reason in message
    assert not Path("attacked").exists()


def test_damaged_pickles_never_raise_anything_but_one_line(tmp_path: Path) -> None:
    content = bytearray(tiny.python_ten()["test_batch"])
    rng = np.random.default_rng(0)
    header = len(content) - 8 * 3072  # most places are pixels, where all values are fine
    for _ in range(300):
        damaged = content.copy()
        damaged[int(rng.integers(0, header))] = int(rng.integers(0, 256))
        with contextlib.suppress(*cifar.PICKLE_ERRORS):
            cifar.read_dictionary(bytes(damaged), "labels")


def test_missing_data_says_where_it_looked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as caught:
        DataModule(DataConfig(name="cifar100"), batch_size=8)
    for part in ("data/cifar-100", ".cache/qsdformer", "cifar-100-python.tar.gz", "data.download"):
        assert part in str(caught.value)


def test_a_download_is_one_checked_archive_that_is_found_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def fetch(url: str, root: str, filename: str, md5: str) -> None:
        calls.append((url, md5))
        tiny.write_archive(Path(root) / filename, "cifar-10-batches-py", tiny.python_ten())

    monkeypatch.setattr(torchvision.datasets.utils, "download_url", fetch)
    for _ in range(2):
        assert module(tmp_path / "new", download=True).train_size == 40
    assert len(calls) == 1
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["cifar-10-python.tar.gz"]


def test_a_failed_download_is_one_line_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(url: str, root: str, filename: str, md5: str) -> None:
        (Path(root) / filename).write_text("half")
        raise URLError("no route\nto host")

    monkeypatch.setattr(torchvision.datasets.utils, "download_url", fail)
    assert "no route to host" in one_line_error(tmp_path / "new", download=True)
    assert list((tmp_path / "new").iterdir()) == []
