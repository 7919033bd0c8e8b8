"""Cells of the packaged grids, trained for a step on images of the kind that they are written for.

One of each sort; that every cell of every grid is a recipe is tested beside the grids themselves.
Rows kept in docs/results are those of the grids as they are, so that they go on from there.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from data.cifar_files import write_class_folders

from qsdformer.experiments.ablation import finished_rows, run_cell
from qsdformer.experiments.ablation_report import read_rows
from qsdformer.experiments.grid import load_grid, wanted_cells, with_output

SORTS = {
    "ablation-cifar10": ["lif-4bit-published", "fgd-counts-published"],
    "ablation-cifar10-spikformer": ["lif-fp32", "logits-published"],
    "ablation-cifar10-gap": ["fgd-10-wide", "fgd-10-from-ann", "from-eight-levels", "ema"],
    "ablation-cifar10-bits": ["ternary", "levels-8", "group-10"],
    "ablation-cifar10-architectures": ["e-lif", "sdt", "spikformer"],
}

RESULTS = Path(__file__).parents[2] / "docs" / "results"
KEPT = sorted(file.stem for file in RESULTS.glob("ablation-*.csv"))


@pytest.mark.parametrize("name", KEPT)
def test_kept_rows_go_on_wherever_the_images_are(name: str, tmp_path: Path) -> None:
    kept = RESULTS / f"{name}.csv"
    shutil.copy(kept, tmp_path / "results.csv")
    grid = with_output(load_grid(name), str(tmp_path), {"data.root": "elsewhere"})
    assert len(finished_rows(grid)) == len(read_rows(kept)) > 0


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
