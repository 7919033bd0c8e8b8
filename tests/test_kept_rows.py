"""Tables of pages that are kept as rows in docs/results say what their rows say."""

from __future__ import annotations

import csv
import runpy
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def rows_of(name: str) -> list[dict[str, str]]:
    """The rows of docs/results/NAME.csv."""
    with (ROOT / f"docs/results/{name}.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def lines_of(page: str) -> list[str]:
    """The lines of docs/PAGE.md."""
    return (ROOT / f"docs/{page}.md").read_text(encoding="utf-8").splitlines()


def test_the_networks_on_the_accelerator_are_those_of_their_rows(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys, "path", [str(ROOT / "benchmarks"), *sys.path])
    line = runpy.run_path(str(ROOT / "benchmarks/accelerator_tables.py"))["line"]
    rows = rows_of("accelerator-networks")
    lines = lines_of("accelerator")
    start = next(n for n, text in enumerate(lines) if text.startswith("| network | top-1 |")) + 2
    assert lines[start : start + len(rows)] == [line(row) for row in rows]
