"""CIFAR-10 and CIFAR-100: 60,000 colour 32 x 32 images of ten or a hundred classes.

Krizhevsky, "Learning multiple layers of features from tiny images", 2009. Published as two
archives each: pickled dictionaries ("python"), and records of label bytes and pixels ("binary").
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch

from qsdformer.data.archives import file_names, read_files
from qsdformer.data.base import DataInfo, Source, bad_file
from qsdformer.data.cifar_names import CIFAR10, CIFAR100
from qsdformer.data.config import DataConfig
from qsdformer.data.download import cache_folder, download_into
from qsdformer.data.image_folder import load_in_memory
from qsdformer.data.memory import Split, fit_of_square, memory_source
from qsdformer.data.pickles import PICKLE_ERRORS, read_pickle
from qsdformer.errors import UserError
from qsdformer.files import at_home

SIZE = 32
PIXELS = 3 * SIZE * SIZE
TRAIN, TEST = "train", "test"
SPLITS = (TRAIN, TEST)


@dataclass(frozen=True, kw_only=True)
class Layout:
    """One published form of a data set: which files hold each split, and how to read one."""

    archive: str
    folder: str  # inside the archive
    files: dict[str, tuple[str, ...]]
    read: Callable[[bytes], tuple[np.ndarray, np.ndarray]]  # labels (N,), images (N, 3072)

    @property
    def names(self) -> tuple[str, ...]:
        """All files."""
        return tuple(name for split in SPLITS for name in self.files[split])


@dataclass(frozen=True, kw_only=True)
class Cifar:
    """One of the two data sets; mean and std are of its training images, pixels in [0, 1]."""

    title: str
    cache: str
    class_names: tuple[str, ...]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    layouts: tuple[Layout, ...]
    published: str  # the class of torchvision that says where, and with which checksum


def read_records(content: bytes, label_bytes: int) -> tuple[np.ndarray, np.ndarray]:
    """Labels (N,) and pixels (N, 3072) of a binary file; the last label byte is the class."""
    length = label_bytes + PIXELS
    if not content or len(content) % length:
        raise ValueError(f"{len(content)} bytes are not whole records of {length}")
    records = np.frombuffer(content, np.uint8).reshape(-1, length)
    return records[:, label_bytes - 1], records[:, label_bytes:]


def read_dictionary(content: bytes, label_key: str) -> tuple[np.ndarray, np.ndarray]:
    """Labels (N,) and pixels (N, 3072) of a pickled dictionary."""
    values = read_pickle(content)
    images, labels = values["data"], values[label_key]
    whole = isinstance(labels, list) and all(type(label) is int for label in labels)
    if not whole or not isinstance(images, np.ndarray):
        raise ValueError(f"its data or {label_key} are of another kind")
    if images.shape != (len(labels), PIXELS):
        raise ValueError(f"images of shape {images.shape} for {len(labels)} labels")
    return np.array(labels, np.int64), images


TEN = Cifar(
    title="CIFAR-10",
    cache="cifar-10",
    class_names=CIFAR10,
    mean=(0.4914, 0.4822, 0.4465),
    std=(0.2470, 0.2435, 0.2616),
    layouts=(
        Layout(
            archive="cifar-10-python.tar.gz",
            folder="cifar-10-batches-py",
            files={
                "train": tuple(f"data_batch_{i}" for i in range(1, 6)),
                "test": ("test_batch",),
            },
            read=partial(read_dictionary, label_key="labels"),
        ),
        Layout(
            archive="cifar-10-binary.tar.gz",
            folder="cifar-10-batches-bin",
            files={
                "train": tuple(f"data_batch_{i}.bin" for i in range(1, 6)),
                "test": ("test_batch.bin",),
            },
            read=partial(read_records, label_bytes=1),
        ),
    ),
    published="CIFAR10",
)
HUNDRED = Cifar(
    title="CIFAR-100",
    cache="cifar-100",
    class_names=CIFAR100,
    mean=(0.5071, 0.4866, 0.4409),
    std=(0.2673, 0.2564, 0.2762),
    layouts=(
        Layout(
            archive="cifar-100-python.tar.gz",
            folder="cifar-100-python",
            files={"train": ("train",), "test": ("test",)},
            read=partial(read_dictionary, label_key="fine_labels"),
        ),
        Layout(
            archive="cifar-100-binary.tar.gz",
            folder="cifar-100-binary",
            files={"train": ("train.bin",), "test": ("test.bin",)},
            read=partial(read_records, label_bytes=2),  # coarse, then fine
        ),
    ),
    published="CIFAR100",
)


def load(kind: Cifar, config: DataConfig, seed: int) -> Source:
    """CIFAR from the first folder that has it in any layout; see `find_root`."""
    root = find_root(kind, config.root, config.download, config.split)
    info = DataInfo(
        image_size=config.image_size or SIZE,
        channels=3,
        class_names=kind.class_names,
        mean=kind.mean,
        std=kind.std,
        fit=fit_of_square(config.image_size),
    )
    found = _published_files(kind, root)
    if found is None:
        folders = dataclasses.replace(config, root=str(root))
        return load_in_memory(folders, seed, info, dataclasses.replace(info, image_size=SIZE))
    layout, place = found
    if config.split not in ("val", TEST):
        raise UserError(
            f"data.split={config.split}: {place} has training and test images only; leave it out"
        )
    train, test = (partial(_read_split, kind, layout, place, split) for split in SPLITS)
    return memory_source(config, seed, info, train=train, test=test)


load_ten, load_hundred = partial(load, TEN), partial(load, HUNDRED)


def find_root(kind: Cifar, root: str | None, download: bool, split: str = "val") -> Path:
    """The folder or archive that has the data, downloaded if that was asked for and needed.

    A given `root` is the only place looked at; class folders may be those of `split` alone. Raises
    `UserError` if there is none.
    """
    cache = cache_folder(kind.cache)
    candidates = [at_home(root)] if root else [Path("data") / kind.cache, cache]
    for place in candidates:
        if _published_files(kind, place) is not None or _has_class_folders(place, split):
            return place
    if root and candidates[0].is_file():
        raise UserError(
            f"{root} is none of the archives of {kind.title}, or damaged: give one of these, or a "
            "folder; class folders in an archive have to be unpacked first"
        )
    if download:
        return _download(kind, candidates[0] if root else cache)
    looked = ", ".join(str(place) for place in candidates)
    known = ", ".join(f"{one.archive} or {one.folder}" for one in kind.layouts)
    raise UserError(
        f"{kind.title} not found: looked for {known}, or train/CLASS/ and val/CLASS/ folders of "
        f"images, in {looked}; give its folder as --data.root FOLDER, or have it "
        "downloaded with --data.download true"
    )


def _has_class_folders(place: Path, split: str) -> bool:
    return any((place / name).is_dir() for name in (TRAIN, split))


def is_published(kind: Cifar, root: str) -> bool:
    """Whether a published layout is at `root`, packed or unpacked."""
    return _published_files(kind, at_home(root)) is not None


def _published_files(kind: Cifar, place: Path) -> tuple[Layout, Path] | None:
    """The first published layout at `place`, and the archive or folder that holds its files."""
    for layout in kind.layouts:
        if place.is_file() and place.name == layout.archive:
            return layout, place
        for folder in (place, place / layout.folder):
            if any((folder / name).is_file() for name in layout.names):
                return layout, folder
        if (place / layout.archive).is_file():
            return layout, place / layout.archive
    if not place.is_file():
        return None
    # An archive by another name: what is in it decides.
    members = file_names(place)
    return next(((one, place) for one in kind.layouts if members & set(one.names)), None)


def _read_split(kind: Cifar, layout: Layout, place: Path, split: str) -> Split:
    contents = read_files(place, layout.files[split])
    parts: list[tuple[np.ndarray, np.ndarray]] = []
    for name in layout.files[split]:
        try:
            labels, images = layout.read(contents.pop(name))
        except PICKLE_ERRORS as error:
            reason = f"no {error}" if isinstance(error, KeyError) else " ".join(str(error).split())
            raise bad_file(place / name, f"{reason or type(error).__name__}") from error
        outside = labels[(labels < 0) | (labels >= len(kind.class_names))]
        if len(outside):
            most = len(kind.class_names) - 1
            raise bad_file(place / name, f"label {outside[0]} is not in 0 to {most}")
        if parts and len(labels) != len(parts[0][0]):
            first = f"{layout.files[split][0]} {len(parts[0][0])}"
            raise bad_file(place / name, f"it holds {len(labels)} images, and {first}")
        parts.append((labels.astype(np.int64), images.reshape(-1, 3, SIZE, SIZE)))
    if not len(parts[0][0]):
        raise bad_file(place / layout.files[split][0], "it holds no images")
    labels, images = (np.concatenate(values) for values in zip(*parts, strict=True))
    return Split(torch.from_numpy(images), torch.from_numpy(labels))


def _download(kind: Cifar, folder: Path) -> Path:
    def fetch(temporary: Path) -> list[Path]:
        from torchvision import datasets  # which takes seconds
        from torchvision.datasets.utils import download_url

        # Only the checked archive: torchvision's own class would unpickle it.
        published = getattr(datasets, kind.published)
        download_url(published.url, str(temporary), published.filename, published.tgz_md5)
        return [temporary / published.filename]

    return download_into(
        folder, kind.title, fetch, "or give a folder that has the data as --data.root FOLDER"
    )
