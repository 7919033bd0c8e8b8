"""`benchmarks/two_starts.py`: pairs from hand-made rows, and the kept rows of the page."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPT = runpy.run_path(str(ROOT / "benchmarks/two_starts.py"))
ROWS = """variant,label,seed,accuracy
ann,ANN,0,0.8
a-published,published start: a,0,0.3
a,a,0,0.5
a,a,1,0.7
alone,alone,0,0.9
b-published,without the other,0,0.4
"""


def test_variants_with_both_starts_are_pairs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results, picture = tmp_path / "rows.csv", tmp_path / "starts.png"
    results.write_text(ROWS)
    assert SCRIPT["main"]([str(results), "--output", str(picture)]) == 0
    line, file = capsys.readouterr().out.splitlines()
    assert (line, file) == ("a: 60.00 %, published start 30.00 %", str(picture))
    assert picture.stat().st_size > 10_000
    (pair,) = SCRIPT["pairs"](SCRIPT["read_rows"](results))
    assert pair == ("a", {0: 50.0, 1: 70.0}, {0: 30.0})


def test_rows_without_a_pair_are_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results, picture = tmp_path / "rows.csv", tmp_path / "starts.png"
    results.write_text("\n".join(ROWS.splitlines()[:2]))
    with pytest.raises(SystemExit, match="2"):
        SCRIPT["main"]([str(results), "--output", str(picture)])
    assert capsys.readouterr().err.count("\n") == 1
    assert not picture.exists()


def test_the_page_shows_seven_pairs_of_its_table() -> None:
    page = (ROOT / "docs/cifar10.md").read_text(encoding="utf-8")
    kept = ROOT / "docs/results/ablation-cifar10-spikformer.csv"
    found = SCRIPT["pairs"](SCRIPT["read_rows"](kept))
    assert len(found) == 7
    for pair in found:
        for label in (pair.label, f"published start, {pair.label}"):
            assert f"\n| {label} | 3 | " in page
    assert "](figures/cifar10-starts.png)" in page
