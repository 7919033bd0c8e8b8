"""Cells of the packaged grids, trained for a step on images of the kind that they are written for.

One of each sort; that every cell of every grid is a recipe is tested beside the grids themselves.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from qsdformer.experiments.ablation import run_cell
from qsdformer.experiments.grid import load_grid, wanted_cells, with_output

CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
TRAINING, VALIDATION = 2, 1  # images of each class
SORTS = {
    "ablation-cifar10": ["lif-4bit-published", "fgd-counts-published"],
    "ablation-cifar10-spikformer": ["lif-fp32", "logits-published"],
    "ablation-cifar10-gap": ["fgd-10-wide", "from-ann", "ema"],
    "ablation-cifar10-bits": ["ternary", "levels-8", "group-10"],
    "ablation-cifar10-architectures": ["e-lif", "sdt", "spikformer"],
}


@pytest.fixture(scope="module")
def cifar(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder laid out as CIFAR-10's images, of noise."""
    root, random = tmp_path_factory.mktemp("cifar"), np.random.default_rng(0)
    for split, count in (("train", TRAINING), ("val", VALIDATION)):
        for name in CLASSES:
            folder = root / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                pixels = random.integers(0, 256, (32, 32, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{i}.png")
    return root


@pytest.mark.parametrize("name", SORTS)
def test_cells_of_each_sort_are_trained_and_measured(name: str, cifar: Path, tmp_path: Path):
    short = {"data.root": str(cifar), "train.epochs": "1", "train.batch_size": "10"}
    grid = with_output(load_grid(name), str(tmp_path), short)
    cells = wanted_cells(grid, SORTS[name], [0])
    rows = {cell.variant: run_cell(grid, cell) for cell in cells}
    assert set(SORTS[name]) <= set(rows)  # and those that they learn or start from
    for row in rows.values():
        assert 0 <= float(row["accuracy"]) <= 1
        assert float(row["additions"]) + float(row["macs"]) > 0
