"""CIFAR archives as they were published, but tiny."""

from __future__ import annotations

import io
import pickle
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image

from qsdformer.data.cifar_names import CIFAR10

PER_BATCH = 8  # training images in each of CIFAR-10's five files
TEN = {**{f"data_batch_{i}": i for i in range(1, 6)}, "test_batch": 6}


def pixels(seed: int, count: int = PER_BATCH) -> np.ndarray:
    """(count, 3072) uint8 of noise."""
    return np.random.default_rng(seed).integers(0, 256, (count, 3072), dtype=np.uint8)


def labels(seed: int, count: int = PER_BATCH, classes: int = 10) -> np.ndarray:
    """(count,) of consecutive classes."""
    return (np.arange(count) + seed) % classes


def binary_ten() -> dict[str, bytes]:
    """The files of cifar-10-batches-bin: a label byte and 3,072 pixels an image."""
    return {
        f"{name}.bin": np.concatenate(
            [labels(seed)[:, None].astype(np.uint8), pixels(seed)], axis=1
        ).tobytes()
        for name, seed in TEN.items()
    }


def binary_hundred() -> dict[str, bytes]:
    """The files of cifar-100-binary: coarse and fine label bytes before the pixels."""
    files = {}
    for name, seed in (("train.bin", 90), ("test.bin", 95)):
        fine = labels(seed, 40, 100)
        columns = [(fine // 5)[:, None], fine[:, None], pixels(seed, 40)]
        files[name] = np.concatenate(columns, axis=1).astype(np.uint8).tobytes()
    return files


def pickled(values: dict[str, object]) -> bytes:
    """As Python 2 wrote it: protocol 2, NumPy's old module name."""
    return pickle.dumps(values, protocol=2).replace(b"numpy._core", b"numpy.core")


def python_ten() -> dict[str, bytes]:
    """The files of cifar-10-batches-py."""
    return {
        name: pickled(
            {
                "batch_label": f"batch {seed}",
                "labels": labels(seed).tolist(),
                "data": pixels(seed),
                "filenames": [f"{i}.png" for i in range(PER_BATCH)],
            }
        )
        for name, seed in TEN.items()
    }


def python_hundred() -> dict[str, bytes]:
    """The files of cifar-100-python."""
    files = {"meta": pickled({"fine_label_names": []})}
    for name, seed in (("train", 90), ("test", 95)):
        fine = labels(seed, 40, 100)
        coarse = (fine // 5).tolist()
        values = {"fine_labels": fine.tolist(), "coarse_labels": coarse, "data": pixels(seed, 40)}
        files[name] = pickled(values)
    return files


def write_folder(folder: Path, files: dict[str, bytes]) -> Path:
    """Files in a new folder."""
    folder.mkdir(parents=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


def write_archive(path: Path, folder: str, files: dict[str, bytes]) -> Path:
    """Files in a folder inside a .tar.gz."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w:gz") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(f"{folder}/{name}")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


def write_tiny_cifar10(root: Path) -> Path:
    """A root for `--data.root`: the binary archive with 40 training and 8 test images."""
    write_archive(root / "cifar-10-binary.tar.gz", "cifar-10-batches-bin", binary_ten())
    return root


def write_class_folders(root: Path, train: int = 2, val: int = 1, size: int = 32) -> Path:
    """A root with train/CLASS/*.png and val/CLASS/*.png for the classes of CIFAR-10."""
    rng = np.random.default_rng(0)
    for split, count in (("train", train), ("val", val)):
        for name in CIFAR10:
            (root / split / name).mkdir(parents=True)
            for index in range(count):
                values = rng.integers(0, 256, (size, size, 3), dtype=np.uint8)
                Image.fromarray(values).save(root / split / name / f"{index}.png")
    return root
