"""Fashion-MNIST: 70,000 grey 28 x 28 images of clothing in four gzipped IDX files.

Xiao, Rasul and Vollgraf, "Fashion-MNIST: a novel image dataset for benchmarking machine learning
algorithms", 2017. The IDX format is described with MNIST: two zero bytes, a type code, the number
of dimensions, each dimension as a big-endian 32-bit integer, then the values.
"""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from qsdformer.data.base import DataInfo, Source, bad_file
from qsdformer.data.config import DataConfig
from qsdformer.data.download import cache_folder, download_into
from qsdformer.data.memory import Split, fit_of_square, memory_source
from qsdformer.errors import UserError
from qsdformer.files import at_home

SIZE = 28
MEAN, STD = 0.2860, 0.3530  # of the 60,000 training images, pixels in [0, 1]
CLASS_NAMES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
SPLITS = ("train", "t10k")
IMAGES, LABELS = "{}-images-idx3-ubyte.gz", "{}-labels-idx1-ubyte.gz"
FILES = tuple(pattern.format(split) for split in SPLITS for pattern in (IMAGES, LABELS))
UNSIGNED_BYTE = 0x08  # IDX type code
DEBIAN_FOLDER = Path("/usr/share/datasets/fashion-mnist")


def load(config: DataConfig, seed: int) -> Source:
    """Fashion-MNIST from the first folder that has it; see `find_folder`."""
    folder = find_folder(config.root, config.download)
    info = DataInfo(
        image_size=config.image_size or SIZE,
        channels=1,
        class_names=CLASS_NAMES,
        mean=(MEAN,),
        std=(STD,),
        fit=fit_of_square(config.image_size),
    )
    train, test = (partial(read_split, folder, split) for split in SPLITS)
    return memory_source(config, seed, info, train=train, test=test)


def find_folder(root: str | None, download: bool) -> Path:
    """The folder that holds all four files, downloaded into if that was asked for and needed.

    A given `root` is the only folder looked at: other data than what was asked for would be a
    silent mistake. Otherwise the usual places are tried. Raises `UserError` if there is none.
    """
    cache = cache_folder("fashion-mnist")
    usual = [Path("data/fashion-mnist"), cache, DEBIAN_FOLDER]
    candidates = [at_home(root)] if root else usual
    for folder in candidates:
        if not missing_files(folder):
            return folder
    if download:
        return _download(candidates[0] if root else cache)
    looked = ", ".join(str(folder) for folder in candidates)
    raise UserError(
        f"Fashion-MNIST not found: looked for {FILES[0]} and three more files in {looked}; "
        "either run 'apt-get install dataset-fashion-mnist' (then give no root), "
        "or give the folder as --data.root FOLDER, or have it downloaded with --data.download true "
        "(qsd scenes: --root FOLDER, --download)"
    )


def missing_files(folder: Path) -> list[str]:
    """Which of the four files `folder` lacks."""
    return [name for name in FILES if not (folder / name).is_file()]


def read_split(folder: Path, split: str) -> Split:
    """Images (N, 1, 28, 28) uint8 and labels (N,) int64 of "train" or "t10k", checked."""
    images_file, labels_file = folder / IMAGES.format(split), folder / LABELS.format(split)
    images, labels = read_idx(images_file, 3), read_idx(labels_file, 1)
    if images.shape[1:] != (SIZE, SIZE):
        found = " x ".join(str(side) for side in images.shape[1:])
        raise bad_file(images_file, f"images are {found} instead of {SIZE} x {SIZE}")
    if len(images) != len(labels):
        raise bad_file(labels_file, f"{len(labels)} labels for {len(images)} images")
    if not len(labels):
        raise bad_file(images_file, "it holds no images")
    if labels.max() >= len(CLASS_NAMES):
        raise bad_file(labels_file, f"label {int(labels.max())} is not in 0 to 9")
    return Split(images.unsqueeze(1), labels.long())


def read_idx(path: Path, dimensions: int) -> Tensor:
    """The bytes of a gzipped IDX file as a uint8 tensor with that many dimensions.

    Raises `UserError` naming the file if it is missing, corrupt, truncated or something else.
    """
    try:
        with gzip.open(path) as file:
            content = file.read()
    except (OSError, EOFError, zlib.error) as error:
        raise bad_file(path, getattr(error, "strerror", None) or str(error)) from error
    header = 4 + 4 * dimensions
    if len(content) < header or content[:4] != bytes((0, 0, UNSIGNED_BYTE, dimensions)):
        raise bad_file(path, f"not an IDX file of bytes with {dimensions} dimensions")
    shape = struct.unpack(f">{dimensions}I", content[4:header])
    if len(content) - header != math.prod(shape):
        raise bad_file(path, f"{len(content) - header} values where {math.prod(shape)} belong")
    # A bytearray, because torch wants memory it may write to; an empty one it would refuse.
    values = torch.frombuffer(bytearray(content), dtype=torch.uint8)
    return values[header:].reshape(shape)


def _download(folder: Path) -> Path:
    def fetch(temporary: Path) -> list[Path]:
        from torchvision.datasets import FashionMNIST  # which takes seconds

        FashionMNIST(str(temporary), download=True)
        return [temporary / "FashionMNIST" / "raw" / name for name in FILES]

    return download_into(
        folder,
        "Fashion-MNIST",
        fetch,
        "or run 'apt-get install dataset-fashion-mnist', or give a folder as --data.root FOLDER",
    )
