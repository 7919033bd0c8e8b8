"""`benchmarks/pareto.py`: means, fronts and the picture, from hand-made rows and kept ones."""

from __future__ import annotations

import runpy
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks/pareto.py"
ROWS = """variant,label,seed,accuracy,packed_bytes,additions,macs,uj_bit_aware,uj_twin_skip
ann,ANN,0,0.8,4096,0,3e6,100,
cheap,cheap,0,0.6,1024,1e6,1e3,2,4
cheap,cheap,1,0.7,1024,3e6,1e3,4,6
beaten,beaten,0,0.5,2048,4e6,1e3,3.5,9
old,without energies,0,0.9,1,1,1,,
"""


def test_means_fronts_and_picture(tmp_path: Path) -> None:
    results, picture = tmp_path / "results.csv", tmp_path / "pareto.png"
    results.write_text(ROWS)
    command = [sys.executable, str(SCRIPT), str(results), "--output", str(picture)]
    done = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    size, operations, energy, _ = done.splitlines()
    assert size.endswith("cheap: 1 at 65.00 %, ANN: 4 at 80.00 %")
    assert operations.endswith("cheap: 2 at 65.00 %, ANN: 3 at 80.00 %")
    assert energy.endswith("cheap: 3 at 65.00 %, ANN: 100 at 80.00 %")
    assert picture.stat().st_size > 10_000
    named = runpy.run_path(str(SCRIPT))
    found = named["points"](named["read_rows"](results))
    assert [(p.label, p.twin) for p in found] == [("ANN", None), ("cheap", 5.0), ("beaten", 9.0)]
    assert [round(p.spread, 3) for p in found] == [0.0, 7.071, 0.0]


def test_rows_without_energies_are_one_line(tmp_path: Path) -> None:
    results = tmp_path / "results.csv"
    results.write_text("variant,label,seed,accuracy\nann,ANN,0,0.8\n")
    done = subprocess.run([sys.executable, str(SCRIPT), str(results)], capture_output=True)
    assert done.returncode == 2
    assert done.stderr.count(b"\n") == 1


def test_the_architectures_of_the_page_are_the_kept_rows(tmp_path: Path) -> None:
    root = SCRIPT.parents[1]
    kept, picture = root / "docs/results/ablation-cifar10-architectures.csv", tmp_path / "a.png"
    table = runpy.run_path(str(SCRIPT.with_name("cost_table.py")))["lines"](kept)
    page = (root / "docs/cifar10.md").read_text(encoding="utf-8").splitlines()
    assert len(table) == 11
    assert set(table) <= set(page)
    command = [sys.executable, str(SCRIPT), str(kept), "--output", str(picture)]
    subprocess.run(command, check=True, capture_output=True)
    assert picture.stat().st_size > 10_000


def test_a_table_of_costs_needs_rows_that_have_them() -> None:
    lines = runpy.run_path(str(SCRIPT.with_name("cost_table.py")))["lines"]
    old = SCRIPT.parents[1] / "docs/results/ablation-activity.csv"
    with pytest.raises(SystemExit, match=r"ablation-activity\.csv lacks values of "):
        lines(old)
