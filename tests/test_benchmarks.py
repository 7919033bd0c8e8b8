"""The scripts under benchmarks/ still load, and the lines that texts show of them are understood.

What they measure is not repeated here: that takes trained networks, whole machines, or hours.
"""

from __future__ import annotations

import argparse
import re
import runpy
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from shell import benchmark

from qsdformer.data.base import DataInfo
from qsdformer.models.checkpoint import load_checkpoint
from qsdformer.nn.quantizers import quantized_layers
from qsdformer.recipes.recipe import load_recipe
from qsdformer.tasks.classification import Classification

ROOT = Path(__file__).parents[1]
SCRIPTS = sorted(path.name for path in (ROOT / "benchmarks").glob("*.py"))
TEXTS = [ROOT / "README.md", *sorted(ROOT.glob("docs/*.md")), *sorted(ROOT.glob("zoo/*.md"))]


def shown() -> list[str]:
    """The command lines of scripts in all texts, those without words left out."""
    pattern = re.compile(r"`(benchmarks/\w+\.py [^`]+)`|^python (benchmarks/\w+\.py .+)$", re.M)
    found = [pattern.findall(text.read_text("utf-8")) for text in TEXTS]
    return ["".join(parts) for lines in found for parts in lines]


class Understood(Exception):
    """A script's options were read; nothing is run."""


@pytest.fixture
def only_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Scripts stop when they have read their options."""
    parse = argparse.ArgumentParser.parse_args

    def read(parser: argparse.ArgumentParser, *given: Any, **named: Any) -> None:
        parse(parser, *given, **named)
        raise Understood

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", read)
    monkeypatch.setattr(sys, "path", [str(ROOT / "benchmarks"), *sys.path])


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_loads_and_says_what_it_takes(
    name: str, only_reads: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if name == "scalesim_check.py":
        pytest.importorskip("scalesim")  # which the project does not install
    path = ROOT / "benchmarks" / name
    scope = runpy.run_path(str(path))
    assert callable(scope["main"])
    if "ArgumentParser" in path.read_text("utf-8"):
        monkeypatch.setattr(sys, "argv", [name, "--help"])
        with pytest.raises(SystemExit) as caught:
            runpy.run_path(str(path), run_name="__main__")
        assert caught.value.code == 0
        assert capsys.readouterr().out.startswith("usage: ")


@pytest.mark.parametrize("line", shown())
def test_a_line_that_a_text_shows_is_understood(
    line: str, only_reads: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", shlex.split(line))
    with pytest.raises(Understood):
        runpy.run_path(str(ROOT / sys.argv[0]), run_name="__main__")


def test_step_sizes_start_otherwise_and_weights_as_in_training(tmp_path: Path) -> None:
    name = "cifar10-spikformer-tiny"
    command = ["step_size_start.py", name, "--seed", 3, "--checkpoint", tmp_path / "start.ckpt"]
    recipe = load_recipe(name, {"seed": "3"})
    halves = (0.5, 0.5, 0.5)
    info = DataInfo(
        image_size=32, channels=3, mean=halves, std=halves, class_names=tuple("0123456789")
    )
    begun = Classification(recipe, info).model
    errors = []
    for start in (1, 0.5, "least-error"):
        done = benchmark(*command, "--start", start)
        errors += re.findall(r"([0-9.]+)% with LSQ's step sizes, ([0-9.]+)% here", done.stdout)
        made = load_checkpoint(tmp_path / "start.ckpt").model
        for name, layer in quantized_layers(begun).items():
            other = made.get_submodule(name)
            assert torch.equal(layer.weight, other.weight)
            if start != "least-error":
                assert torch.allclose(layer.step_size * start, other.step_size)
    (own, same), (_, half), (_, least) = errors
    assert own == same
    assert float(least) < float(half) < float(own)
    (tmp_path / "start.ckpt").rename(tmp_path / "trained.ckpt")
    trained = benchmark(*command, "--start", 0.5, "--trained", tmp_path / "trained.ckpt").stdout
    assert "weights 1.0 to 1.0 times, codes at the ends of their range " in trained
    refused = benchmark(*command, "--start", "-1")
    assert refused.code == 2
    assert refused.stderr.endswith("--start -1: must be least-error or a number above 0\n")


def test_times_are_added_to_a_table_of_the_same_columns_alone(tmp_path: Path) -> None:
    add = runpy.run_path(str(ROOT / "benchmarks" / "native_speed.py"))["add"]
    table, other = tmp_path / "times.csv", tmp_path / "other.csv"
    add(table, [{"active": 40.0, "native": 2.0}])
    add(table, [{"active": 20.0, "native": 1.5}])
    assert table.read_text("utf-8").split() == ["active,native", "40.0,2.0", "20.0,1.5"]
    other.write_text("active,native\n", "utf-8")
    add(other, [{"active": 40.0, "native": 2.0}])
    assert other.read_text("utf-8").split() == ["active,native", "40.0,2.0"]
    for text in ("name,active\n", "name,active\na,1\n", ""):
        other.write_text(text, "utf-8")
        with pytest.raises(SystemExit, match="its columns are not active, native; name another"):
            add(other, [{"active": 40.0, "native": 2.0}])
        assert other.read_text("utf-8") == text
