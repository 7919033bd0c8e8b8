"""Cells of the packaged grids, trained for a step on images of the kind that they are written for.

One of each sort; that every cell of every grid is a recipe is tested beside the grids themselves.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from data.cifar_files import write_class_folders

from qsdformer.experiments.ablation import run_cell
from qsdformer.experiments.grid import load_grid, wanted_cells, with_output

SORTS = {
    "ablation-cifar10": ["lif-4bit-published", "fgd-counts-published"],
    "ablation-cifar10-spikformer": ["lif-fp32", "logits-published"],
    "ablation-cifar10-gap": ["fgd-10-wide", "from-ann", "ema"],
    "ablation-cifar10-bits": ["ternary", "levels-8", "group-10"],
    "ablation-cifar10-architectures": ["e-lif", "sdt", "spikformer"],
}


@pytest.mark.parametrize("name", SORTS)
def test_cells_of_each_sort_are_trained_and_measured(name: str, tmp_path: Path) -> None:
    root = write_class_folders(tmp_path / "images")
    short = {"data.root": str(root), "train.epochs": "1", "train.batch_size": "10"}
    grid = with_output(load_grid(name), str(tmp_path / "out"), short)
    cells = wanted_cells(grid, SORTS[name], [0])
    rows = {cell.variant: run_cell(grid, cell) for cell in cells}
    assert set(SORTS[name]) <= set(rows)  # and those that they learn or start from
    for row in rows.values():
        assert 0 <= float(row["accuracy"]) <= 1
        assert float(row["additions"]) + float(row["macs"]) > 0
