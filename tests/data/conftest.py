"""Small datasets written in exactly the published formats."""

from __future__ import annotations

import gzip
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest


def write_idx(path: Path, values: np.ndarray) -> None:
    """Write uint8 values as a gzipped IDX file."""
    header = bytes((0, 0, 8, values.ndim)) + struct.pack(f">{values.ndim}I", *values.shape)
    path.write_bytes(gzip.compress(header + values.astype(np.uint8).tobytes()))


@pytest.fixture
def idx_writer() -> Callable[[Path, np.ndarray], None]:
    return write_idx


@pytest.fixture
def fashion_folder(tmp_path: Path) -> Path:
    """Fashion-MNIST's four files with 50 training and 20 test images of noise."""
    folder = tmp_path / "fashion"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for split, count in (("train", 50), ("t10k", 20)):
        write_idx(folder / f"{split}-images-idx3-ubyte.gz", rng.integers(0, 256, (count, 28, 28)))
        write_idx(folder / f"{split}-labels-idx1-ubyte.gz", np.arange(count) % 10)
    return folder
