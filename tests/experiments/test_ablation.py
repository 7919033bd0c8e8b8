"""Ablations: the grid as declared, cells run once, interrupted ones go on, results as written."""

from __future__ import annotations

import csv
import dataclasses
import json
import math
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
from rich.console import Console

from qsdformer.analysis.energy import cost_model
from qsdformer.analysis.information import packed_bytes
from qsdformer.analysis.measure import measure
from qsdformer.analysis.subject import analyze, load_subject
from qsdformer.analysis.twins import twins
from qsdformer.cli import run as qsd
from qsdformer.errors import UserError
from qsdformer.experiments import ablation, ablation_measure
from qsdformer.experiments.ablation_report import (
    markdown,
    paired_difference,
    read_rows,
    with_gaps,
    write_rows,
)
from qsdformer.experiments.grid import (
    Cell,
    Grid,
    Variant,
    cell_folder,
    cell_recipe,
    digest,
    load_grid,
    wanted_cells,
    with_output,
)
from qsdformer.files import write_json
from qsdformer.recipes import packaged_grids
from qsdformer.tasks.activity import measure_activity, overall_activity

GRID = """
recipe: digits
seeds: [0, 1]
reference: ann
baseline: plain
measure_images: 8
overrides: {train.epochs: 2, train.batch_size: 16, data.train_limit: 16,
  model.dims: [4, 6, 8, 8], model.depth: 2, model.heads: 2}
distill: {fgd_weight: 0.5}
compare: [[plain, fgd]]
variants:
  - {name: ann, label: ANN fp32, overrides: {model.ann: true}}
  - {name: plain, overrides: {model.rectify: none}}
  - {name: fgd, label: with FGD, distill: {logit_weight: 0.5}}
"""


@pytest.fixture
def grid(tmp_path: Path) -> Grid:
    (tmp_path / "grid.yaml").write_text(GRID)
    return dataclasses.replace(load_grid(str(tmp_path / "grid.yaml")), output=str(tmp_path / "out"))


def row(grid: Grid, variant: str, seed: int, accuracy: float, **more: Any) -> dict[str, Any]:
    label = grid.variant(variant).label or variant
    code = digest(grid, variant)
    base = {"variant": variant, "label": label, "seed": seed, "accuracy": accuracy, "digest": code}
    return {**base, "seconds": 1.0, **more}


@pytest.mark.parametrize("name", packaged_grids())
def test_every_cell_of_a_packaged_grid_is_a_recipe(name: str) -> None:
    grid = load_grid(name)
    for cell in wanted_cells(grid):
        recipe = cell_recipe(grid, cell)
        recipe.model.config(in_channels=1, num_classes=10)


def test_the_shipped_grid_has_the_variants_and_each_makes_a_model() -> None:
    grid = load_grid("ablation-fashion-mnist")
    cells = wanted_cells(grid)
    assert len(grid.variants) == 20
    assert len(cells) == 60
    for name in grid.names:
        recipe = cell_recipe(grid, Cell(name, 0))
        config = recipe.model.config(in_channels=1, num_classes=10)
        assert (config.residual_gain, config.attention_norm) == (0.02, True)
        if name != "ann-long":  # the teacher
            assert recipe.train == cell_recipe(grid, Cell("ann", 0)).train
            assert recipe.data == cell_recipe(grid, Cell("ann", 0)).data
    direct = cell_recipe(grid, Cell("lif-4bit", 0)).model.config(in_channels=1, num_classes=10)
    assert (direct.neuron, direct.weight_bits, direct.time_steps) == ("lif", 4, 4)
    assert direct.rectify == "none"


def test_a_distilled_cell_learns_from_the_reference_of_its_seed(grid: Grid) -> None:
    recipe = cell_recipe(grid, Cell("fgd", 1))
    assert recipe.distill is not None
    assert recipe.distill.teacher == str(cell_folder(grid.output, Cell("ann", 1)) / "last.ckpt")
    assert (recipe.distill.fgd_weight, recipe.distill.logit_weight) == (0.5, 0.5)
    assert recipe.seed == 1
    assert cell_recipe(grid, Cell("plain", 1)).distill is None


def test_data_and_budget_of_the_command_hold_for_every_cell_also_where_a_variant_says_otherwise(
    grid: Grid,
) -> None:
    long = dataclasses.replace(
        grid.variants[0], overrides={"ann": True, "epochs": 9, "data.train_limit": None}
    )
    grid = dataclasses.replace(grid, variants=(long, *grid.variants[1:]))
    keys = {"epochs": "1", "train_limit": "8", "rectify": "all", "lr": "0.001"}
    changed = with_output(grid, None, keys)
    for cell in wanted_cells(changed):
        recipe = cell_recipe(changed, cell)
        assert (recipe.train.epochs, recipe.data.train_limit) == (1, 8)
        assert recipe.train.lr == 0.001
    assert cell_recipe(changed, Cell("ann", 0)).model.ann
    rectify = [cell_recipe(changed, Cell(n, 0)).model.fields["rectify"] for n in ("fgd", "plain")]
    assert rectify == ["all", "none"]


def test_a_cell_taught_by_a_recipe_hands_on_data_and_budget(grid: Grid) -> None:
    changed = with_output(grid, None, {"distill.teacher": "digits-ann", "epochs": "1"})
    distill = cell_recipe(changed, Cell("fgd", 0)).distill
    assert distill is not None
    keys = {"train.epochs": 1, "train.batch_size": 16, "data.train_limit": 16}
    assert distill.teacher_keys == keys


def test_a_chosen_variant_brings_its_teacher_along(grid: Grid) -> None:
    cells = wanted_cells(grid, ["fgd"], [1])
    assert cells == [Cell("ann", 1), Cell("fgd", 1)]


def progressive(grid: Grid) -> Grid:
    """The grid with a variant more: full precision first, then 4 bits, taught as well."""
    full = Variant(name="full", overrides={"model.weight_bits": None, "model.levels": 8})
    low = Variant(name="low", start_from="full", distill={})
    return dataclasses.replace(grid, variants=(low, *grid.variants, full))


def test_a_variant_starts_from_the_weights_of_another(grid: Grid) -> None:
    grid = progressive(grid)
    cells = wanted_cells(grid, ["low"], [1])
    assert cells == [Cell("full", 1), Cell("ann", 1), Cell("low", 1)]
    recipe = cell_recipe(grid, Cell("low", 1))
    assert recipe.model.start_from == str(cell_folder(grid.output, Cell("full", 1)) / "last.ckpt")
    assert recipe.model.fields["levels"] == 4  # of its own, not those it starts from
    assert cell_recipe(grid, Cell("full", 1)).model.start_from is None
    longer = dataclasses.replace(grid.variant("full"), overrides={"train.epochs": 9})
    other = dataclasses.replace(grid, variants=(*grid.variants[:-1], longer))
    assert digest(other, "low") != digest(grid, "low")
    assert digest(other, "plain") == digest(grid, "plain")


def test_low_bits_go_on_from_full_precision(grid: Grid) -> None:
    grid = with_output(progressive(grid), None, {"train.epochs": "1"})
    (low,) = (dataclasses.replace(v, distill=None) for v in grid.variants if v.name == "low")
    grid = dataclasses.replace(grid, variants=(low, *grid.variants[1:]))
    ablation.run_cell(grid, Cell("full", 0))
    console = Console(record=True, width=400)
    ablation.run_cell(grid, Cell("low", 0), console)
    said = console.export_text()
    assert f"weights from {cell_folder(grid.output, Cell('full', 0))}" in said
    assert "step sizes started from the weights" in said  # 4 bits had none in full precision


def test_what_another_cell_needs_is_run_again_where_its_files_are_gone(grid: Grid) -> None:
    cells = wanted_cells(grid, ["plain", "fgd"], [0])
    finished = [Cell("ann", 0), Cell("plain", 0)]
    assert ablation.cells_to_run(grid, cells, finished) == [Cell("ann", 0), Cell("fgd", 0)]
    assert ablation.cells_to_run(grid, cells, [*finished, Cell("fgd", 0)]) == []
    write_json(cell_folder(grid.output, Cell("ann", 0)) / "row.json", {})
    assert ablation.cells_to_run(grid, cells, finished) == [Cell("ann", 0), Cell("fgd", 0)]
    (cell_folder(grid.output, Cell("ann", 0)) / "last.ckpt").touch()
    assert ablation.cells_to_run(grid, cells, finished) == [Cell("fgd", 0)]


def test_a_cell_whose_checkpoints_were_removed_is_trained_again(grid: Grid) -> None:
    cell = Cell("plain", 0)
    grid = with_output(grid, None, {"train.epochs": "1"})
    first = ablation.run_cell(grid, cell)
    for name in ("last.ckpt", "best.ckpt"):
        (cell_folder(grid.output, cell) / name).unlink(missing_ok=True)
    again = ablation.run_cell(grid, cell)
    assert first is not None
    assert again is not None
    assert (again["accuracy"], again["entropy_q"]) == (first["accuracy"], first["entropy_q"])
    assert (cell_folder(grid.output, cell) / "last.ckpt").exists()


@pytest.mark.slow
def test_a_cell_trained_by_two_processes_is_measured_on_all_images(grid: Grid) -> None:
    file = Path(grid.output).parent / "grid.yaml"
    words = f"ablate {file} --output={grid.output} --epochs=1 --devices=2 --batch_size=8"
    words += " --accelerator=cpu --cell plain 0"
    command = [sys.executable, "-m", "qsdformer", *words.split()]
    subprocess.run(command, check=True, timeout=600, capture_output=True)
    folder = cell_folder(grid.output, Cell("plain", 0))
    made = json.loads((folder / "row.json").read_text())
    subject = load_subject(str(folder / "last.ckpt"), {}, 8)
    measured = analyze(subject, limit=grid.measure_images)
    assert made["entropy_q"] == measured.entropies["q"]
    assert made["additions"] == measured.ledger.synaptic_operations


def test_a_table_with_text_among_its_numbers_is_refused_before_any_work(grid: Grid) -> None:
    write_rows(grid, [row(grid, "ann", 0, 0.75, measured_images=8)])
    path = Path(grid.output) / "results.csv"
    path.write_text(path.read_text().replace(",8,", ",8.0,"))
    assert ablation.finished_rows(grid)
    write_rows(grid, [row(grid, "ann", 0, 0.75, entropy_q="n/a")])
    with pytest.raises(UserError, match=r"row 1: could not convert string to float: 'n/a'"):
        ablation.finished_rows(grid)


def test_a_cell_that_is_trained_again_to_teach_keeps_its_row(grid: Grid) -> None:
    write_rows(grid, [row(grid, "ann", 0, 0.75, label="another name")])
    for seed, accuracy in ((0, 0.7), (1, 0.8)):
        again = row(grid, "ann", seed, accuracy)
        write_json(cell_folder(grid.output, Cell("ann", seed)) / "row.json", again)
    rows = ablation.finished_rows(grid)
    assert [float(rows[Cell("ann", seed)]["accuracy"]) for seed in (0, 1)] == [0.75, 0.8]
    assert rows[Cell("ann", 0)]["label"] == "ANN fp32"


def test_what_a_grid_would_leave_unused_is_one_line(grid: Grid) -> None:
    without = dataclasses.replace(grid, variants=grid.variants[:2], compare=())
    with pytest.raises(UserError, match=r"--distill.fgd_weight: no variant of this grid has a"):
        with_output(without, None, {"distill.fgd_weight": "3"})
    for key in ("seed", "output"):
        own = dataclasses.replace(grid, overrides={**grid.overrides, key: "1"})
        with pytest.raises(UserError, match=f"{key} is the cell's own: leave it out") as error:
            ablation.cell_recipe(own, Cell("plain", 0))
        assert str(error.value).count("variant plain: ") == 1


def test_a_grid_over_a_recipe_without_a_model_starts_from_another_cell(tmp_path: Path) -> None:
    (tmp_path / "bare.yaml").write_text("data: {name: digits}\n")
    (tmp_path / "grid.yaml").write_text(
        f"recipe: {tmp_path / 'bare.yaml'}\nreference: one\noutput: ~/out\nreuse: [~/other]\n"
        "variants: [{name: one}, {name: two, start_from: one}]\n"
    )
    grid = load_grid(str(tmp_path / "grid.yaml"))
    assert (grid.output, grid.reuse) == (str(Path.home() / "out"), (str(Path.home() / "other"),))
    start = ablation.cell_recipe(grid, Cell("two", 3)).model.start_from
    assert start == str(Path.home() / "out/cells/one-s3/last.ckpt")


def test_variants_that_need_each_other_are_one_line(grid: Grid) -> None:
    loop = dataclasses.replace(grid.variant("ann"), start_from="fgd")
    with pytest.raises(ValueError, match="ann needs fgd needs ann: none could come first"):
        dataclasses.replace(grid, variants=(loop, *grid.variants[1:]))
    with pytest.raises(ValueError, match=r"x starts from 'fdg', .*did you mean fgd"):
        dataclasses.replace(grid, variants=(*grid.variants, Variant(name="x", start_from="fdg")))
    with pytest.raises(UserError, match="ablation: variants: fgd needs fgd: none could come first"):
        with_output(grid, None, {"distill.teacher": "fgd"})


def test_rates_and_entropies_are_each_features_own(lively: Any) -> None:
    model = lively()
    with torch.no_grad():
        for name, bias in model.named_parameters():
            for feature, shift in (("q", 0.3), ("k", -0.3)):
                if name.endswith(f".attention.{feature}.norm.bias"):
                    bias.add_(shift)
    images = torch.rand(4, 3, 32, 32)
    measured = measure(model, [(images, torch.zeros(4, dtype=torch.int64))])
    columns = ablation_measure.spike_columns(model, [images], measured)
    activity = measure_activity(model, [images])
    for name in "qkv":
        own = {k: v for k, v in activity.items() if k.endswith(f".{name}_neuron")}
        assert columns[f"rate_{name}"] == overall_activity(own)["firing_rate"]
        assert columns[f"entropy_{name}"] == pytest.approx(measured.entropies[name])
    assert len({columns[f"rate_{name}"] for name in "qkv"}) == 3
    assert columns["firing_rate"] == overall_activity(activity)["firing_rate"]


def test_the_share_recovered_is_of_the_seeds_that_a_variant_has(grid: Grid) -> None:
    values = {"ann": (0.9, 0.9), "plain": (0.8, 0.7), "fgd": (0.88,)}
    rows = [row(grid, n, seed, a) for n, own in values.items() for seed, a in enumerate(own)]
    assert "| 80 |" in markdown(grid, with_gaps(grid, rows)).splitlines()[4]


def test_the_table_has_entropies_rates_and_sizes_in_their_columns(grid: Grid) -> None:
    entropies = {"entropy_q": 1.0, "entropy_k": 2.0, "entropy_v": 0.5}
    more = {**entropies, "firing_rate": 0.125, "active_groups": 0.25, "packed_bytes": 2048}
    rows = with_gaps(grid, [row(grid, "plain", 0, 0.8, **more)])
    line = markdown(grid, rows).splitlines()[2]
    assert line.endswith("| 1.00 / 2.00 / 0.50 | 0.125 | 0.250 | 2 | – |")


def test_no_more_cells_are_started_than_jobs(grid: Grid) -> None:
    pending = [Cell("ann", 0), Cell("plain", 0)]
    assert ablation._ready(grid, pending, {}, [], 1) == [Cell("ann", 0)]
    assert pending == [Cell("plain", 0)]
    running: Any = {Cell("ann", 0): None}
    assert ablation._ready(grid, pending, running, [], 1) == []


def test_training_speed_is_that_of_all_images_without_what_passes_between_epochs(
    tmp_path: Path,
) -> None:
    file = tmp_path / "metrics.csv"
    file.write_text("epoch,step,images_per_second\n1,10,100\n1,20,\n2,30,50\n")
    found = ablation_measure.training_speed(file, 8)
    seconds = 10 * 8 / 100 + 20 * 8 / 50
    assert found == pytest.approx({"seconds": seconds, "images_per_second": 30 * 8 / seconds})


def test_a_cell_is_trained_measured_and_then_never_run_again(
    grid: Grid, monkeypatch: pytest.MonkeyPatch
) -> None:
    cell = Cell("plain", 0)
    made = ablation.run_cell(grid, cell)
    assert 0 <= made["accuracy"] <= 1
    assert 0 <= made["firing_rate"] <= made["active_groups"] <= 1
    assert made["packed_bytes"] > 0
    assert made["images_per_second"] > 0
    assert made["evaluation_images"] == 360  # of the digits
    subject = load_subject(str(cell_folder(grid.output, cell) / "last.ckpt"), {}, batch_size=8)
    ledger = analyze(subject, limit=grid.measure_images).ledger
    assert (made["additions"], made["macs"]) == (ledger.synaptic_operations, ledger.macs)
    for name in ("papers", "bit-aware", "memory"):
        assert made[f"uj_{name.replace('-', '_')}"] == ledger.total(cost_model(name)) / 1e6
    assert made["uj_twin"] > made["uj_twin_skip"] > 0
    analysed = analyze(subject, limit=grid.measure_images)
    _, quantised, skipping = twins("", subject.model, analysed.measured)
    for key, twin in (("uj_twin", quantised), ("uj_twin_skip", skipping)):
        assert made[key] == twin.total(cost_model("bit-aware")) / 1e6
    assert made["parameters"] == sum(p.numel() for p in subject.model.parameters())
    assert made["packed_bytes"] == packed_bytes(subject.model)

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("a finished cell was run again")

    monkeypatch.setattr(ablation, "_start", refuse)
    ablation.run_grid(grid, [cell], ["qsd"])
    rows = read_rows(Path(grid.output) / "results.csv")
    assert [(r["variant"], r["seed"]) for r in rows] == [("plain", "0")]
    (cell_folder(grid.output, cell) / "row.json").unlink()  # the row in results.csv is enough
    ablation.run_grid(grid, [cell], ["qsd"])


def test_a_cell_of_another_family_is_measured_by_its_own_q_k_and_v(grid: Grid) -> None:
    keys = {"model.name": "sdt_tiny", "model.width": 16, "model.rectify": "all"}
    sdt = Variant(name="sdt", overrides=keys)
    grid = dataclasses.replace(grid, variants=(*grid.variants, sdt))
    made = ablation.run_cell(with_output(grid, None, {"train.epochs": "1"}), Cell("sdt", 0))
    assert made["entropy_v"] > 0
    subject = load_subject(
        str(cell_folder(grid.output, Cell("sdt", 0)) / "last.ckpt"), {}, batch_size=8
    )
    expected = analyze(subject, limit=grid.measure_images).entropies
    assert {name: made[f"entropy_{name}"] for name in "qkv"} == expected


def test_the_row_of_an_ann_has_its_work_and_energy(grid: Grid) -> None:
    grid = with_output(grid, None, {"train.epochs": "1"})
    made = ablation.run_cell(grid, Cell("ann", 0))
    assert made["additions"] == 0
    charged = made["uj_papers"] / 4.6e-6  # 4.6 pJ a MAC, those on the zeros of borders too
    assert made["macs"] < charged < 1.5 * made["macs"]
    assert "uj_twin" not in made


def test_an_interrupted_cell_goes_on_from_its_last_checkpoint(
    grid: Grid, monkeypatch: pytest.MonkeyPatch
) -> None:
    from qsdformer.training import once

    cell = Cell("plain", 0)
    epochs: list[int] = []

    class Watch(lightning.pytorch.Callback):
        def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
            epochs.append(trainer.current_epoch)
            if len(epochs) == 2:
                raise KeyboardInterrupt

    original = once.train
    monkeypatch.setattr(once, "train", lambda *a, **k: original(*a, callbacks=[Watch()], **k))
    with pytest.raises(KeyboardInterrupt):
        ablation.run_cell(grid, cell)
    assert not (cell_folder(grid.output, cell) / "row.json").exists()
    ablation.run_cell(grid, cell)
    assert epochs == [0, 1, 1]


@pytest.mark.slow
def test_cells_run_as_processes_side_by_side_after_their_teacher(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "grid.yaml").write_text(GRID)
    out = tmp_path / "a-folder" / "whose-name" / "is-longer-than-a-line-of-a-terminal" / ("x" * 80)
    arguments = ["ablate", str(tmp_path / "grid.yaml"), "--output", str(out)]
    arguments += ["--jobs", "2", "--seeds", "0", "--epochs", "1"]
    assert qsd([*arguments, "--only", "fgd"]) == 0
    rows = read_rows(out / "results.csv")
    assert [r["variant"] for r in rows] == ["ann", "fgd"]
    assert rows[0]["gap"] == "0.0"
    assert float(rows[1]["entropy_q"]) >= 0
    assert {r["threads"] for r in rows} == {"1"}
    assert (out / "results.png").stat().st_size > 1000
    said = capsys.readouterr().out.splitlines()[-1]
    assert said == f"results: {out}/results.csv, results.md, results.png"
    assert "with FGD" in (out / "results.md").read_text()
    capsys.readouterr()
    assert qsd([*arguments, "--only", "ann"]) == 0
    assert "1 cells, 1 finished already" in capsys.readouterr().out


def test_a_failed_cell_is_named_and_what_learns_from_it_is_left_out(grid: Grid) -> None:
    cells = [Cell("ann", 0), Cell("fgd", 0)]
    said = r"2 cells failed, first ann-s0: no output; see .*ann-s0.log"
    with pytest.raises(UserError, match=said) as error:
        ablation.run_grid(grid, cells, ["false"])
    assert "\n" not in str(error.value)
    assert not (Path(grid.output) / "results.md").exists()


def test_why_the_first_cell_failed_is_in_the_last_line(grid: Grid) -> None:
    command = [sys.executable, "-c", "import sys; sys.exit('qsd: error: no such folder: x')"]
    with pytest.raises(UserError, match=r"first ann-s0: no such folder: x; see .*ann-s0.log"):
        ablation.run_grid(grid, [Cell("ann", 0)], command)


def test_sigterm_ends_the_cells_too_which_save(grid: Grid, tmp_path: Path) -> None:
    ready, saved = tmp_path / "ready", tmp_path / "saved"
    cell = (
        "import pathlib, signal, sys, time\n"
        f"def save(*_): pathlib.Path({str(saved)!r}).touch(); sys.exit(0)\n"
        "signal.signal(signal.SIGTERM, save)\n"
        f"pathlib.Path({str(ready)!r}).touch()\n"
        "time.sleep(60)\n"
    )

    def terminate() -> None:
        while not ready.exists():
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=terminate)
    thread.start()
    command = [sys.executable, "-c", cell]
    with pytest.raises(SystemExit, match="143"):
        ablation.run_grid(grid, [Cell("ann", 0)], command, console=Console(quiet=True))
    thread.join()
    assert saved.exists()
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b"model,seed,accuracy\nANN,0,0.5\n", "results.csv, row 1: there is no variant"),
        (b"variant,seed,accuracy\nann,0,0.5\n", "has a result of ann-s0 by another recipe"),
        (b"variant,seed,accuracy,digest\nann,,0.5,x\n", "results.csv, row 1: there is no seed"),
        (b"variant,seed,accuracy,digest\nann,a,0.5,x\n", "results.csv, row 1: invalid literal"),
        (b"\xff\xfe\x00", "results.csv, the results of a grid: "),
    ],
)
def test_a_table_of_another_kind_is_one_line(grid: Grid, text: bytes, said: str) -> None:
    path = Path(grid.output) / "results.csv"
    path.parent.mkdir(parents=True)
    path.write_bytes(text)
    with pytest.raises(UserError, match=said):
        ablation.finished_rows(grid)
    path.write_bytes(b"\xef\xbb\xbfvariant,seed,accuracy,digest\n")  # as Excel begins it
    assert ablation.finished_rows(grid) == {}
    row = cell_folder(grid.output, Cell("ann", 0)) / "row.json"
    row.parent.mkdir(parents=True)
    row.write_text('{"variant": "an')
    with pytest.raises(
        UserError, match=r"row\.json is damaged: remove it, and its cell is measured"
    ):
        ablation.finished_rows(grid)


def test_results_of_another_recipe_are_refused(grid: Grid) -> None:
    write_json(cell_folder(grid.output, Cell("plain", 0)) / "row.json", row(grid, "plain", 0, 0.5))
    assert list(ablation.finished_rows(grid)) == [Cell("plain", 0)]
    longer = with_output(grid, None, {"train.epochs": "3"})
    with pytest.raises(UserError, match="plain-s0 by another recipe"):
        ablation.finished_rows(longer)


def test_rows_measured_on_more_or_fewer_images_are_not_gone_on_with(grid: Grid) -> None:
    write_rows(grid, [row(grid, "ann", 0, 0.75, measured_images=8), row(grid, "plain", 0, 0.5)])
    assert len(ablation.finished_rows(grid)) == 2
    with pytest.raises(UserError, match=r"ann-s0 measured on 8 images: set measure_images to that"):
        ablation.finished_rows(dataclasses.replace(grid, measure_images=16))


def test_rows_measured_on_other_images_are_not_gone_on_with(
    grid: Grid, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ablation, "_start", None)
    write_rows(grid, [row(grid, "ann", 0, 0.75, evaluation_images=5000)])
    with pytest.raises(UserError, match="results on 5,000 evaluation images, but the data has"):
        ablation.run_grid(grid, [Cell("plain", 0)], ["qsd"])


def test_variants_may_be_measured_on_different_images(grid: Grid) -> None:
    held = Variant(name="held", overrides={"data.evaluate_on": "holdout"})
    grid = dataclasses.replace(grid, variants=(*grid.variants, held))
    rows = [row(grid, "plain", 0, 0.5, evaluation_images=360)]  # of the digits
    write_rows(grid, [*rows, row(grid, "held", 0, 0.5, evaluation_images=143)])
    cells = [Cell(name, 1) for name in ("plain", "held")]
    with pytest.raises(UserError, match="2 cells failed"):  # they were begun
        ablation.run_grid(grid, cells, ["false"])
    write_rows(grid, [*rows, row(grid, "held", 0, 0.5, evaluation_images=360)])
    with pytest.raises(UserError, match="results on 360 evaluation images, but the data has 143"):
        ablation.run_grid(grid, cells, ["false"])
    with pytest.raises(UserError, match="1 cells failed"):  # images that nothing waits for
        ablation.run_grid(grid, cells[:1], ["false"])


def test_rows_of_variants_that_the_grid_no_longer_has_are_kept_but_not_reported(
    grid: Grid, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ("plain", "fgd", "ann")
    write_rows(grid, [row(grid, name, 0, 0.5 + 0.1 * i) for i, name in enumerate(names)])
    results = Path(grid.output) / "results.csv"
    before = {r["variant"]: r for r in read_rows(results)}
    monkeypatch.setattr(ablation, "_start", None)
    smaller = dataclasses.replace(grid, baseline=None, compare=(), variants=grid.variants[::2])
    for _ in range(2):
        ablation.run_grid(smaller, [Cell("ann", 0)], ["qsd"])
        assert [r["variant"] for r in read_rows(results)] == ["ann", "fgd", "plain"]
        assert {r["variant"]: r for r in read_rows(results)} == before
    report = (Path(grid.output) / "results.md").read_text()
    assert "with FGD" in report
    assert "plain" not in report
    assert Cell("plain", 0) in ablation.finished_rows(grid)


def test_what_another_grid_has_trained_is_taken_over_under_the_own_name(grid: Grid) -> None:
    write_rows(grid, [row(grid, "plain", 0, 0.5), row(grid, "ann", 0, 0.75)])
    same = dataclasses.replace(grid.variant("plain"), name="unrectified", label="not rectified")
    other = dataclasses.replace(
        grid,
        output=grid.output + "-other",
        reference="unrectified",
        baseline=None,
        compare=(),
        variants=(same,),
        reuse=(grid.output, grid.output + "-missing"),
    )
    rows = ablation.finished_rows(other)
    assert list(rows) == [Cell("unrectified", 0)]
    taken = rows[Cell("unrectified", 0)]
    assert (taken["label"], float(taken["accuracy"])) == ("not rectified", 0.5)
    write_rows(grid, [row(grid, "plain", 0, 0.5, measured_images=9)])
    assert not ablation.finished_rows(other)
    changed = with_output(other, None, {"train.epochs": "3"})
    assert not ablation.finished_rows(changed)


def test_the_digest_follows_the_teacher_but_not_the_folders(grid: Grid) -> None:
    moved = with_output(grid, "elsewhere", {"data.root": "on/another/machine"})
    assert digest(grid, "fgd") == digest(moved, "fgd")
    here, there = (
        with_output(grid, None, {"data.name": "image_folder", "data.root": root}) for root in "ab"
    )
    assert digest(here, "plain") != digest(there, "plain")  # other images, not a moved set
    other_way = {"data.workers": "2", "train.eval_batch_size": "7", "train.accelerator": "cpu"}
    assert digest(grid, "plain") == digest(with_output(grid, None, other_way), "plain")
    fgd = dataclasses.replace(grid.variants[2], distill={"teacher": "digits-ann"})
    taught = dataclasses.replace(grid, variants=(*grid.variants[:2], fgd))
    moved = {"data.name": "cifar10", "data.root": "here", "data.workers": "2"}
    codes = {digest(with_output(taught, None, {**moved, "data.root": r}), "fgd") for r in "ab"}
    assert len(codes) == 1
    ann = dataclasses.replace(grid.variants[0], overrides={"model.ann": True, "train.epochs": 9})
    other = dataclasses.replace(grid, variants=(ann, *grid.variants[1:]))
    assert digest(grid, "fgd") != digest(other, "fgd")
    assert digest(grid, "plain") == digest(other, "plain")


@pytest.mark.parametrize("own", [{}, {"teacher_keys": None}, {"teacher_keys": {}}])
def test_what_decides_nothing_is_no_part_of_the_digest_where_a_recipe_teaches(
    grid: Grid, own: dict[str, Any]
) -> None:
    def taught_by(**distill: Any) -> Grid:
        fgd = dataclasses.replace(grid.variant("fgd"), distill=distill)
        return dataclasses.replace(grid, overrides={}, variants=(*grid.variants[:2], fgd))

    code = digest(taught_by(teacher="digits-ann"), "fgd")
    taught = taught_by(teacher="digits-ann", **own)
    assert digest(taught, "fgd") == code
    for keys in ({"data.workers": "2"}, {"data.root": "elsewhere"}):
        assert digest(with_output(taught, None, keys), "fgd") == code
    assert digest(with_output(taught, None, {"train.epochs": "1"}), "fgd") != code


def test_the_table_has_means_deviations_gaps_and_the_share_recovered(grid: Grid) -> None:
    accuracies = {"ann": (0.9, 0.92), "plain": (0.8, 0.82), "fgd": (0.88, 0.89)}
    rows = [row(grid, name, s, values[s]) for name, values in accuracies.items() for s in (0, 1)]
    text = markdown(grid, with_gaps(grid, rows))
    lines = text.splitlines()
    assert lines[2].startswith("| ANN fp32 | 2 | 91.00 ± 1.41 | 0.00 ± 0.00 | – |")
    assert lines[4].startswith("| with FGD | 2 | 88.50 ± 0.71 | 2.50 ± 0.71 | 75 |")
    # Differences 8 and 7: mean 7.5, standard error 0.5, t = 12.706 with one degree of freedom.
    assert "- with FGD − plain: +7.50 points, 95 % interval +1.15 to +13.85 (n = 2" in text


def test_a_paused_cell_does_not_count_in_the_speed(grid: Grid) -> None:
    rows = [row(grid, "plain", s, 0.8, images_per_second=v) for s, v in enumerate((1020, 990, 70))]
    assert markdown(grid, with_gaps(grid, rows)).splitlines()[2].endswith("| 990 |")


def test_one_seed_has_no_interval() -> None:
    mean, half, n = paired_difference({0: 1.0}, {0: 3.0, 1: 5.0})
    assert (mean, n) == (2.0, 1)
    assert math.isnan(half)


def test_results_are_ordered_and_whole(grid: Grid) -> None:
    rows = [row(grid, "fgd", 1, 0.5), row(grid, "ann", 1, 0.75), row(grid, "ann", 0, 1.0)]
    write_rows(grid, rows)
    with (Path(grid.output) / "results.csv").open(newline="") as file:
        written = list(csv.DictReader(file))
    assert [(r["variant"], r["seed"]) for r in written] == [
        ("ann", "0"),
        ("ann", "1"),
        ("fgd", "1"),
    ]
    assert [r["gap"] for r in written] == ["0.0", "0.0", "25.0"]
    assert not list(Path(grid.output).glob(".results*"))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("reference: ann", "reference: amn", "there is no 'amn'"),
        ("baseline: plain", "baseline: plan", "there is no 'plan'"),
        (
            "compare: [[plain, fgd]]",
            "compare: [[plain, fdg]]",
            "there is no 'fdg'.*did you mean fgd",
        ),
        ("{name: plain,", "{name: ann,", "'ann' is there twice"),
        ("seeds: [0, 1]", "seeds: [0, 0]", "all different"),
        ("label: with FGD", "lable: with FGD", "did you mean"),
        ("measure_images: 8", "measure_images: 0", "at least 1"),
        ("variants:", "variants: 3\nother:", "must be a mapping"),
        ("recipe: digits", "", "recipe is missing"),
        ("{name: plain,", "{name: 4/8-bit,", r"variants\[1\].name='4/8-bit': must be a folder's"),
        ("{name: plain,", "{name: -plain,", r"variants\[1\].name='-plain': must be"),
        ("{name: plain,", "{name: ..,", r"variants\[1\].name='..': must be"),
        ("{name: plain,", "{name: '',", r"variants\[1\].name='': must be"),
    ],
)
def test_a_mistake_in_a_grid_is_one_line(tmp_path: Path, old: str, new: str, message: str) -> None:
    assert old in GRID
    (tmp_path / "grid.yaml").write_text(GRID.replace(old, new))
    with pytest.raises(UserError, match=message) as error:
        load_grid(str(tmp_path / "grid.yaml"))
    assert "\n" not in str(error.value)


def test_a_variant_that_makes_no_model_is_named_before_anything_runs(grid: Grid) -> None:
    bad = dataclasses.replace(grid.variants[1], overrides={"model.levels": 0})
    broken = dataclasses.replace(grid, variants=(grid.variants[0], bad, grid.variants[2]))
    with pytest.raises(UserError, match=r"variant plain: model\.levels=0"):
        ablation.run_grid(broken, [Cell("ann", 0), Cell("plain", 0)], ["false"])


@pytest.mark.parametrize("recipe", ["camvid", "fashion-scenes"])
def test_a_grid_of_another_task_is_refused_before_anything_runs(
    recipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ablation, "_start", None)
    (tmp_path / "grid.yaml").write_text(
        f"recipe: {recipe}\nreference: plain\nvariants: [{{name: plain}}]"
    )
    grid = dataclasses.replace(load_grid(str(tmp_path / "grid.yaml")), output=str(tmp_path / "out"))
    with pytest.raises(UserError, match=r"variant plain: task=.*: must be classification") as error:
        ablation.run_grid(grid, wanted_cells(grid), ["false"])
    assert "\n" not in str(error.value)


def test_an_unknown_grid_or_variant_is_one_line(grid: Grid) -> None:
    with pytest.raises(UserError, match="no ablation 'nothing'"):
        load_grid("nothing")
    with pytest.raises(UserError, match=r"no variant 'fdg': must be .*did you mean fgd"):
        wanted_cells(grid, ["fdg"])


@pytest.mark.slow
def test_a_packaged_grid_runs_on_class_folders_as_the_page_says(
    image_root: Path, tmp_path: Path
) -> None:
    page = (Path(__file__).parents[2] / "docs/distillation.md").read_text(encoding="utf-8")
    (line,) = re.findall(r"^qsd (ablate .* image_folder .*)$", page, re.MULTILINE)
    words = [{"FOLDER": str(image_root)}.get(word, word) for word in line.split()]
    words[words.index("--output") + 1] = str(tmp_path / "out")
    few = ["--epochs", "1", "--batch_size", "4", "--only", "rectified", "--seeds", "0"]
    assert qsd([*words, *few, "--accelerator", "cpu"]) == 0
    (row,) = read_rows(tmp_path / "out" / "results.csv")
    assert (row["variant"], row["evaluation_images"]) == ("rectified", "6")
