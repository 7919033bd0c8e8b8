"""`qsd simulate` and the report's section on a design."""

from __future__ import annotations

import csv
import dataclasses
import itertools
import json
import re
import runpy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image
from shell import pasted

import qsdformer as qsd
from accelerator.networks import family_graph, pixels, plain_values, small_design
from accelerator.test_published import settled
from qsdformer.accelerator import sweep as sweep_module
from qsdformer.accelerator.design import load_design
from qsdformer.cli import run
from qsdformer.errors import UserError


def simulate(*arguments: str | Path) -> int:
    return run(["simulate", *map(str, arguments)])


def test_tables_csv_and_json_hold_every_stage_of_every_design(
    stored: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = ("--csv", tmp_path / "rows.csv", "--json", tmp_path / "all.json")
    assert simulate(stored / "spiking.ckpt", "--images", "2", *files) == 0
    shown = capsys.readouterr().out
    for text in ("Stages on sdt-sparse", "Units of", "Memory of", "GSOP/W", "2 images, all spikes"):
        assert text in shown
    values = json.loads((tmp_path / "all.json").read_text())
    assert [v["design"] for v in values] == ["sdt-sparse", "dense-int"]
    for value in values:
        assert value["images"] == 2
        assert value["differing_from_reference"] == 0
        assert value["cycles"] == sum(stage["cycles"] for stage in value["stages"])
        energy = sum(value["energy_pj"].values())
        assert value["millijoules"] == pytest.approx(energy / 1e9)
        assert {"weights", "spikes", "dram"} <= set(value["reads_bits"])
    with (tmp_path / "rows.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == sum(len(value["stages"]) for value in values)
    cycles = sum(float(row["cycles"]) for row in rows if row["design"] == "dense-int")
    assert cycles == pytest.approx(values[1]["cycles"])
    # Both add for the same spikes.
    assert values[0]["synaptic_operations"] == values[1]["synaptic_operations"] > 0


def test_an_artifact_is_simulated_on_the_data_that_is_named(
    stored: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ("--data.name", "digits", "--images", "1", "--design", "dense-int")
    assert simulate(stored / "spiking.qsd", *arguments) == 0
    assert "Stages on dense-int" in capsys.readouterr().out


def test_published_designs_are_estimated_by_their_formulas(
    stored: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = ("mint", "eyeriss", "sato", "ptb", "prosperity")
    designs = [word for name in names for word in ("--design", name)]
    arguments = ("--images", "2", *designs, "--json", tmp_path / "all.json")
    assert simulate(stored / "spiking.ckpt", *arguments) == 0
    assert "Published designs by their formulas" in capsys.readouterr().out
    values = json.loads((tmp_path / "all.json").read_text())
    assert [v["design"] for v in values] == list(names)
    assert all(v["cycles"] > 0 and v["millijoules"] > 0 and v["left_out"] for v in values)
    assert simulate(stored / "spiking.ckpt", "--design", "mint", "--sweep", "lanes=1") == 2


def test_published_designs_alone_are_rows_of_the_csv(
    stored: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = ("--csv", tmp_path / "rows.csv", "--json", tmp_path / "all.json")
    words = ("--images", "1", "--design", "mint", "--design", "sato", *files)
    assert simulate(stored / "spiking.ckpt", *words) == 0
    assert "see --json" not in capsys.readouterr().out
    values = json.loads((tmp_path / "all.json").read_text())
    with (tmp_path / "rows.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["design"] for row in rows] == ["mint", "sato"]
    for row, value in zip(rows, values, strict=True):
        assert set(row) == set(value)
        assert float(row["cycles"]) == value["cycles"] > 0
        assert row["left_out"].split(", ") == value["left_out"]


def test_a_csv_of_stages_says_which_designs_it_lacks(
    stored: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("--images", "1", "--design", "dense-int", "--design", "mint")
    assert simulate(stored / "spiking.ckpt", *words, "--csv", tmp_path / "rows.csv") == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "has rows of stages, and none of mint: see --json" in shown
    with (tmp_path / "rows.csv").open(newline="") as file:
        assert {row["design"] for row in csv.DictReader(file)} == {"dense-int"}


@pytest.mark.parametrize(
    "more",
    [
        ["--ledger"],
        ["--design", "sdt-sparse", "--design", "dense-int"],
        ["--design", "sdt-sparse", "--design", "mint"],
        ["--design", "mint", "--design", "sdt-sparse"],
    ],
)
def test_a_sweep_refuses_what_it_would_leave_out_before_it_loads(
    more: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert simulate(tmp_path / "missing.ckpt", "--sweep", "lanes=2", *more) == 2
    error = capsys.readouterr().err
    assert error.startswith("qsd: error: --sweep shows the variants of one design and nothing else")
    assert error.count("\n") == 1


def test_a_design_of_ones_own_is_a_file(
    stored: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    values = plain_values()
    values["clock_mhz"]["value"] = 100
    mine = tmp_path / "mine.yaml"
    mine.write_text(yaml.safe_dump(values))
    assert simulate(stored / "spiking.ckpt", "--images", "1", "--design", mine) == 0
    assert "Stages on mine" in capsys.readouterr().out


def test_a_sweep_has_a_line_for_every_combination_and_marks_the_best(
    stored: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    keys = "lanes=2|64,encoding=bitmap|address|address+count,buffers=1|0.0001"
    arguments = ("--images", "1", "--sweep", keys, "--json", tmp_path / "points.json")
    assert simulate(stored / "spiking.ckpt", *arguments) == 0
    assert "is too small" in " ".join(capsys.readouterr().out.split())
    points = json.loads((tmp_path / "points.json").read_text())
    assert len(points) == 12
    possible = [p for p in points if p["frames_per_second"]]
    assert len(possible) == 6
    best = [p for p in possible if p["best"]]
    assert best
    for point in possible:
        beaten = any(
            other["frames_per_second"] >= point["frames_per_second"]
            and other["millijoules"] <= point["millijoules"]
            and other["on_chip_kib"] <= point["on_chip_kib"]
            for other in possible
            if other is not point
        )
        assert point["best"] == (not beaten)


def test_the_first_variant_of_a_sweep_that_is_possible_is_compared(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    compared = []

    def noted(graph: Any, design: Any, images: Any, check: bool = True) -> Any:
        compared.append(check)
        return exact(graph, design, images, check=check)

    exact = sweep_module.simulate
    monkeypatch.setattr(sweep_module, "simulate", noted)
    graph = family_graph("sdt", levels=1)
    points = sweep_module.sweep(graph, small_design(), pixels(), {"buffers": [1e-4, 1.0, 2.0]})
    assert [point.found is not None for point in points] == [False, True, True]
    assert compared == [True, True, False]


def test_the_sweeps_of_the_page_run_as_written(stored: Path, tmp_path: Path) -> None:
    page = Path(__file__).parents[2] / "docs" / "accelerator.md"
    sweeps = re.findall(
        r'^qsd simulate CKPT --sweep "(.*?)"', page.read_text("utf-8"), re.MULTILINE
    )
    found = []
    for keys in sweeps:
        arguments = ("--images", "1", "--sweep", keys, "--json", tmp_path / "points.json")
        assert simulate(stored / "spiking.ckpt", *arguments) == 0
        found.append(json.loads((tmp_path / "points.json").read_text()))
    assert [len(points) for points in found] == [18, 2]
    counts, shared = found[1]
    assert shared["millijoules"] != counts["millijoules"]  # less only in larger networks


def test_the_ledgers_traffic_stands_beside_that_of_the_design(
    stored: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert simulate(stored / "spiking.ckpt", "--images", "1", "--ledger") == 0
    shown = capsys.readouterr().out
    for text in ("memory model", "weights read", "sums in accumulators"):
        assert text in shown


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["ann.ckpt"], "spiking"),
        (["missing.ckpt"], "no checkpoint"),
        (["spiking.ckpt", "--design", "tpu"], "no design 'tpu'"),
        (["spiking.ckpt", "--sweep", "lane=1"], "--sweep: unknown key lane: did you mean lanes?"),
        (["spiking.ckpt", "--sweep", "lanes"], "--sweep: 'lanes' must be KEY=VALUE|VALUE"),
        (["spiking.ckpt", "--sweep", "lanes=2,lanes=4"], "--sweep: lanes is given twice"),
        (
            ["spiking.ckpt", "--sweep", "lanes=2,units.linear.lanes=4"],
            "--sweep: lanes and units.linear.lanes both change units.linear.lanes: give one",
        ),
        (["spiking.ckpt", "--sweep", "units.mask_add.lanes=2"], "units.mask_add.lanes=2: must be"),
        (["spiking.ckpt", "--sweep", "lanes=0"], "--sweep: lanes=0: must be above 0"),
        (["spiking.ckpt", "--sweep", "encoding=x"], "encoding='x': must be one of bitmap"),
        (["spiking.ckpt", "--sweep", "buffers=big"], "--sweep: buffers='big': must be a number"),
        (["spiking.ckpt", "--sweep", "buffers=0.00001"], "is too small"),
        (["spiking.qsd"], "--data.name"),
        (["spiking.qsd", "--data.name", "digits", "--ledger"], "--ledger is of a checkpoint"),
    ],
)
def test_bad_input_gives_one_line_and_no_file(
    stored: Path,
    tmp_path: Path,
    arguments: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    files = ("--images", "1", "--json", tmp_path / "out.json")
    assert simulate(stored / arguments[0], *arguments[1:], *files) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.startswith("qsd: error: ")
    assert error.count("\n") == 1
    assert not (tmp_path / "out.json").exists()


def test_the_report_has_a_section_about_the_designs_asked_for(
    stored: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "page.html"
    arguments = ["report", str(stored / "spiking.ckpt"), "--limit", "8", "--output", str(out)]
    designs = ["--design", "sdt-sparse", "--design", "dense-int"]
    assert run([*arguments, *designs, "--device", "cpu"]) == 0
    page = out.read_text()
    for name in ("timeline", "traffic", "roofline", "designs"):
        figure = re.search(rf'data-figure="{name}".*?</figure>', page, re.DOTALL)
        assert figure is not None
        assert re.search("<rect|<circle", figure[0])
    assert run([*arguments, "--design", "none-such"]) == 2
    assert run([*arguments, "--design", "mint"]) == 2
    assert "'mint' is published, a formula" in capsys.readouterr().err


def test_the_table_takes_checkpoints_and_files(
    stored: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    _, graph, _ = settled("sdt_tiny", 16, width=16, depth=1)
    qsd.export(graph, tmp_path / "file.qsd")
    random = np.random.default_rng(0)
    for place in itertools.product(("train", "val"), "abcde"):
        folder = tmp_path.joinpath(*place)
        folder.mkdir(parents=True)
        Image.fromarray(random.integers(0, 256, (16, 16, 3), np.uint8)).save(folder / "a.png")
    script = Path(__file__).parents[2] / "benchmarks" / "accelerator_tables.py"
    main = runpy.run_path(str(script))["main"]
    files = [str(stored / "spiking.ckpt"), str(tmp_path / "file.qsd")]
    table = tmp_path / "rows.csv"
    few = ["--images", "2", "--limit", "8"]
    for words in ([f"my own={files[0]}", files[1]], files[1:]):
        main([*words, "--data-root", str(tmp_path), *few, "--csv", str(table)])
    rows = [line.split(" | ") for line in capsys.readouterr().out.splitlines() if "%" in line]
    assert [len(row) for row in rows] == [11, 11, 11]
    assert rows[1] == rows[2]
    assert [row[0] for row in rows[:2]] == ["| my own", "| file"]
    assert all(row[1].endswith("%") and float(row[3]) > 0 for row in rows)
    with table.open(newline="", encoding="utf-8") as file:
        kept = list(csv.DictReader(file))
    assert [[f"| {row['network']}", *list(row.values())[1:7]] for row in kept] == [
        row[:7] for row in rows[:2]
    ]
    with pytest.raises(UserError, match="does not say where its images are: give --data-root"):
        main(files[1:])


def test_a_design_of_ones_own_is_begun_as_the_page_says(
    stored: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    page = (Path(__file__).parents[2] / "docs/accelerator.md").read_text(encoding="utf-8")
    (copy,) = re.findall(r"^python -c .*> mine.yaml$", page, re.MULTILINE)
    monkeypatch.chdir(tmp_path)
    pasted(copy, tmp_path)
    design = load_design("mine.yaml")
    assert dataclasses.replace(design, name="sdt-sparse") == load_design("sdt-sparse")
    named = "".join(line for line in page.splitlines() if line.startswith("| `"))
    assert {path.split(".")[-1] for path in design.sources} <= set(re.findall(r"`(\w+)`", named))
    words = ("--design", "mine.yaml", "--design", "dense-int", "--images", "1")
    assert simulate(stored / "spiking.ckpt", *words) == 0
    assert "Stages on mine" in capsys.readouterr().out
