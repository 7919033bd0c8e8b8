"""`benchmarks/information_distortion.py` and `attention_rates.py`, on two small trained cells."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path

from shell import benchmark

from qsdformer.analysis.information import histogram_entropy, spike_histograms
from qsdformer.experiments import ablation
from qsdformer.experiments.ablation_measure import evaluation_images
from qsdformer.experiments.grid import Cell, cell_recipe, load_grid
from qsdformer.models.checkpoint import load_checkpoint
from qsdformer.tasks.activity import measure_activity

SCRIPT = "information_distortion.py"
RATES = "attention_rates.py"
GRID = """
recipe: digits
reference: ielif-fp32
measure_images: 8
overrides: {train.epochs: 1, train.batch_size: 16, data.train_limit: 16,
  model.dims: [4, 6, 8, 8], model.depth: 2, model.heads: 2}
variants:
  - {name: ielif-fp32, overrides: {model.weight_bits: none}}
  - {name: plain, overrides: {model.rectify: none, model.weight_bits: 2}}
"""


def test_entropy_and_divergence_by_block(tmp_path: Path) -> None:
    (tmp_path / "grid.yaml").write_text(GRID + f"output: {tmp_path / 'out'}\n")
    grid = load_grid(str(tmp_path / "grid.yaml"))
    for name in grid.names:
        ablation.run_cell(grid, Cell(name, 0))
    cells = tmp_path / "out/cells"
    shutil.copytree(cells / "ielif-fp32-s0", cells / "rectified-s0")  # the same network as its twin
    measured = ["--ablation", tmp_path / "out", "--images", 40]
    written = ["--blocks", tmp_path / "blocks.png", "--csv", tmp_path / "blocks.csv"]
    assert benchmark(SCRIPT, *measured, *written).code == 0
    assert (tmp_path / "blocks.png").stat().st_size > 10_000
    with (tmp_path / "blocks.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [r["variant"] for r in rows] == ["rectified"] * 6 + ["plain"] * 6  # 2 blocks of q, k, v
    assert {float(r["distortion"]) for r in rows[:6]} == {0.0}
    assert all(float(r["distortion"]) > 0 for r in rows[6:])
    model = load_checkpoint(cells / "plain-s0/last.ckpt").model.eval()
    images = list(evaluation_images(cell_recipe(grid, Cell("plain", 0)), 40))
    histograms = spike_histograms(model, images)
    names = [n for n in histograms if n.endswith(("q_neuron", "k_neuron", "v_neuron"))]
    expected = {f"{histogram_entropy(histograms[name]):.5g}" for name in names}
    assert {row["entropy"] for row in rows[6:]} == expected
    again = ["--kept", tmp_path / "blocks.csv", "--blocks", tmp_path / "again.png"]
    assert benchmark(SCRIPT, *again).code == 0
    assert (tmp_path / "again.png").read_bytes() == (tmp_path / "blocks.png").read_bytes()
    assert not (tmp_path / "again.csv").exists()
    command = [RATES, *measured, "--csv", tmp_path / "rates.csv"]
    for variants in (["ielif-fp32", "plain"], ["ielif-fp32"]):  # once more: in place of its rows
        assert benchmark(*command, *variants).code == 0
    with (tmp_path / "rates.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(r["variant"], r["block"]) for r in rows] == [
        *(("plain", block) for block in "12"),
        *(("ielif-fp32", block) for block in "12"),
    ]
    activity = measure_activity(model, images)
    blocks = dict.fromkeys(name.rpartition(".")[0] for name in names)
    for row, block in zip(rows[:2], blocks, strict=True):
        for kind in ("q", "k", "v", "attention"):
            rate = activity[f"{block}.{kind}_neuron"]["firing_rate"]
            assert float(row[f"rate_{kind}"]) == round(rate, 4)
    missing = benchmark(*command, "fgd")
    assert missing.code == 2
    assert missing.stderr.count("\n") == 1


def test_a_folder_without_finished_pairs_is_one_line(tmp_path: Path) -> None:
    done = benchmark(SCRIPT, "--ablation", tmp_path, "--blocks", tmp_path / "x.png")
    assert done.code == 2
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "x.png").exists()
