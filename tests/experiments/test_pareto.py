"""`benchmarks/pareto.py`: means, fronts and the picture, from hand-made rows and kept ones."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest
from shell import BENCHMARKS, benchmark

SCRIPT = BENCHMARKS / "pareto.py"
TABLE = SCRIPT.with_name("cost_table.py")
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
    done = benchmark(SCRIPT.name, results, "--output", picture)
    assert done.code == 0
    size, operations, energy, _ = done.stdout.splitlines()
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
    done = benchmark(SCRIPT.name, results)
    assert done.code == 2
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(("grid", "variants"), [("architectures", 11), ("bits", 13)])
def test_tables_and_figures_of_the_page_are_made_of_the_kept_rows(
    grid: str, variants: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = SCRIPT.parents[1]
    kept, picture = root / f"docs/results/ablation-cifar10-{grid}.csv", tmp_path / "a.png"
    page = (root / "docs/cifar10.md").read_text(encoding="utf-8")
    command = re.search(rf"`benchmarks/cost_table.py docs/results/{kept.name}(.*?)`", page)
    assert command is not None
    runpy.run_path(str(TABLE))["main"]([str(kept), *command[1].split()])
    table = capsys.readouterr().out
    assert table.count("\n") == variants + 2
    assert f"\n\n{table}\n" in page
    assert benchmark(SCRIPT.name, kept, "--output", picture).code == 0
    assert picture.stat().st_size > 10_000


def test_a_table_of_costs_needs_rows_that_have_them(tmp_path: Path) -> None:
    lines = runpy.run_path(str(TABLE))["lines"]
    old = SCRIPT.parents[1] / "docs/results/ablation-activity.csv"
    with pytest.raises(SystemExit, match=r"ablation-activity\.csv lacks values of "):
        lines(old)
    results = tmp_path / "results.csv"
    results.write_text(ROWS)
    columns = ("packed_bytes", "additions", "uj_twin_skip")
    *_, ann, cheap, beaten, none = lines(results, columns)
    assert ann == "| ANN | 1 | 80.00 | 4 | 3.0 (MACs) | – |"
    assert cheap == "| cheap | 2 | 65.00 ± 7.07 | 1 | 2.0 | 5.00 |"
    assert beaten.endswith("| 9.00 |")
    assert none.endswith("| – |")
    results.write_text(ROWS.replace("1e3,2,4\n", "1e3,2,\n"))
    with pytest.raises(SystemExit, match="some seeds of cheap lack their quantised ANN, skipping"):
        lines(results, columns)
