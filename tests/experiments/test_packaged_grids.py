"""Cells of the packaged grids, trained for a step on images of the kind that they are written for.

One of each sort; that every cell of every grid is a recipe is tested beside the grids themselves.
Rows kept in docs/results are those of the grids as they are, so that they go on from there.
"""

from __future__ import annotations

import csv
import math
import shutil
from pathlib import Path
from statistics import fmean

import pytest
from data.cifar_files import write_class_folders

from qsdformer.experiments.ablation import finished_rows, run_cell
from qsdformer.experiments.ablation_report import (
    accuracies,
    markdown,
    paired_difference,
    read_rows,
    with_gaps,
)
from qsdformer.experiments.grid import digest, load_grid, wanted_cells, with_output

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


def test_the_table_of_the_remedies_is_that_of_its_rows() -> None:
    grid = load_grid("ablation-cifar10-spikformer")
    elsewhere = ("fgd-counts", "fgd-3")  # one seed, another machine; three stand in the next table
    kept = read_rows(RESULTS / "ablation-cifar10-spikformer.csv")
    rows = [row for row in kept if row["variant"] not in elsewhere]
    page = (RESULTS.parent / "cifar10.md").read_text(encoding="utf-8").splitlines()
    lines = [line for line in markdown(grid, with_gaps(grid, rows)).splitlines() if line]
    assert len(lines) == 2 + 7 + 4
    assert set(lines) <= set(page)


def test_the_table_of_teaching_is_that_of_its_rows(tmp_path: Path) -> None:
    grid = load_grid("ablation-cifar10-spikformer")
    rows = read_rows(RESULTS / "cifar10-spikformer-teaching.csv")
    assert {row["digest"] for row in rows} == {digest(grid, row["variant"]) for row in rows}
    shutil.copy(RESULTS / "cifar10-spikformer-teaching.csv", tmp_path / "results.csv")
    going_on = with_output(grid, str(tmp_path), {"data.root": "elsewhere"})
    assert len(finished_rows(going_on)) == len(rows)
    page = (RESULTS.parent / "cifar10.md").read_text(encoding="utf-8").splitlines()
    lines = [line for line in markdown(grid, with_gaps(grid, rows)).splitlines() if line]
    assert len(lines) == 2 + 15 + 12
    for line in lines:  # speeds are left out there
        assert (line.rsplit("|", 2)[0] + "|" if line.startswith("|") else line) in page


def test_the_rates_in_attention_are_those_of_their_rows() -> None:
    with (RESULTS / "cifar10-spikformer-attention-rates.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    page = (RESULTS.parent / "cifar10.md").read_text(encoding="utf-8")
    shown = {
        "not rectified": "plain",
        "rectified": "rectified",
        "published start, not rectified": "plain-published",
        "published start, rectified": "rectified-published",
        "published start, rectified + FGD, weight 10": "fgd-10-published",
        "published start, rectified + logits": "logits-published",
    }
    sums = {}
    for label, variant in shown.items():
        own = [row for row in rows if row["variant"] == variant]
        seeds = {row["seed"] for row in own}
        assert len(own) == 3 * len(seeds)  # blocks
        kinds = ("rate_q", "rate_k", "rate_v")
        cells = [f"{fmean(float(r[k]) for r in own):.2f}" for k in (*kinds, "rate_attention")]
        assert f"\n| {label} | {len(seeds)} | {' | '.join(cells)} |\n" in page
        products = (math.prod(float(row[kind]) for kind in kinds) for row in own)
        sums[variant] = f"{48 * fmean(products):.1f}"  # of attention, by the rates alone
    published = sums["plain-published"], sums["rectified-published"]
    assert "{} without rectification and {} with it".format(*published) in page
    (scaled,) = read_rows(RESULTS / "cifar10-spikformer-scale.csv")
    smaller = {"data.root": "elsewhere", "model.attention_scale": "0.0078125"}  # as the page says
    grid = with_output(load_grid("ablation-cifar10-spikformer"), "out", smaller)
    assert scaled["digest"] == digest(grid, scaled["variant"])
    teaching = read_rows(RESULTS / "cifar10-spikformer-teaching.csv")
    eighth, normed = (accuracies(teaching, n)[0] for n in ("rectified-published", "rectified"))
    one_seed = f"**{float(scaled['accuracy']):.1%}** ({eighth:.1f} with 1/8, {normed:.1f} with the"
    assert one_seed.replace("%**", " %**") in page


def test_the_networks_of_two_million_parameters_are_those_of_their_rows() -> None:
    with (RESULTS / "cifar10-small.csv").open(newline="", encoding="utf-8") as file:
        ann, *spiking = list(csv.DictReader(file))[:4]
    page = (RESULTS.parent / "cifar10.md").read_text(encoding="utf-8")
    cells = [f"{float(ann['accuracy']):.2%}"[:-1], ann["minutes"], "–", f"{ann['macs_m']} (MACs)"]
    assert f"| ANN fp32 | {' | '.join(cells)} | {ann['bit_aware_uj']} |" in page
    for row in spiking:
        cells = [f"{float(row['accuracy']):.2%}"[:-1], row["minutes"]]
        cells += [f"{int(row['packed_kib']):,}", row["additions_m"], row["bit_aware_uj"]]
        assert f" | {' | '.join(cells)} |" in page, row["network"]


def test_what_bfloat16_costs_is_as_the_page_says() -> None:
    with_it, without = (
        accuracies(read_rows(RESULTS / f"cifar10-spikformer-{name}.csv"), "rectified")
        for name in ("bf16", "teaching")
    )
    mean, half, n = paired_difference(without, with_it)
    page = " ".join((RESULTS.parent / "cifar10.md").read_text(encoding="utf-8").split())
    low, high = (f"{value:+.1f}".replace("-", "−") for value in (mean - half, mean + half))
    assert n == 3
    assert f"95 % interval of the difference {low} to {high} points" in page
    for found in (with_it, without):
        values = [f"{found[seed]:.2f}" for seed in range(3)]
        assert f"{values[0]}, {values[1]} and {values[2]} %" in page


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
