"""What docs/accelerator.md and the README say of trained networks is that of their rows."""

from __future__ import annotations

import csv
import runpy
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/accelerator.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def rows() -> list[dict[str, str]]:
    path = ROOT / "docs/results/accelerator-networks.csv"
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_the_table_is_that_of_its_rows(
    rows: list[dict[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", [str(ROOT / "benchmarks"), *sys.path])
    line = runpy.run_path(str(ROOT / "benchmarks/accelerator_tables.py"))["line"]
    lines = PAGE.splitlines()
    start = next(n for n, text in enumerate(lines) if text.startswith("| network | top-1 |")) + 2
    assert lines[start : start + len(rows)] == [line(row) for row in rows]


def test_what_the_ways_of_a_sparse_design_take_is_that_of_the_rows(
    rows: list[dict[str, str]],
) -> None:
    def between(over: str, under: str, chosen: list[dict[str, str]] = rows) -> str:
        ratios = [float(row[over]) / float(row[under]) for row in chosen]
        return f"{min(ratios):.1f} to {max(ratios):.1f}"

    faster = between("kcycles: dense", "kcycles: counts")
    dearer = between("µJ: counts", "µJ: dense")
    shared = between("kcycles: dense", "kcycles: shared")
    said = f"sparse is {faster} times as fast as the dense array, and takes {dearer} times its"
    assert said in PAGE
    assert f"it is {shared} times as fast, and takes" in PAGE
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert f"storing counts {faster} × as fast, for {dearer} × the energy" in readme
    assert f"sharing weights {shared} × as fast" in readme
    several = [row for row in rows if "D = 1" not in row["network"]]
    cycles = between("kcycles: D passes", "kcycles: counts", several)
    energy = between("µJ: D passes", "µJ: counts", several)
    assert f"by {cycles} times in cycles and in energy by {energy}" in PAGE
