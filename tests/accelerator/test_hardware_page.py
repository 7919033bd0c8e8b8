"""The commands of docs/accelerator-hardware.md on a network of one's own, on a shorter training."""

from __future__ import annotations

import re
import runpy
import sys
from pathlib import Path

import pytest
from shell import pasted

from qsdformer.cli import run

pytest.importorskip("amaranth")

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_a_network_of_ones_own_runs_in_both_circuits(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    page = (ROOT / "docs/accelerator-hardware.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"^```\n(qsd train .*?)^```", page, re.DOTALL | re.MULTILINE)
    train, image, measure = block.splitlines()
    short = ["--epochs", "2", "--train_limit", "256"]
    assert run([*train.split()[1:], *short]) == 0
    pasted(image, tmp_path)
    capsys.readouterr()
    _, program, *arguments = measure.split()
    monkeypatch.setattr(sys, "argv", [program, *arguments])
    runpy.run_path(str(ROOT / program), run_name="__main__")
    printed = capsys.readouterr().out
    assert re.findall(r"(\w+) differing +0 of 1536$", printed, re.MULTILINE) == ["sums", "counts"]
    cycles = re.findall(r"(\w+) +cycles +([\d,]+) in the circuit, ([\d,]+) in the sim", printed)
    assert [name for name, *_ in cycles] == ["adding", "encoding", "merging", "filtering"]
    assert all(circuit == simulated for _, circuit, simulated in cycles)
