from __future__ import annotations

import csv
import json
import re
from pathlib import Path

import pytest
import torch

from qsdformer.analysis.energy import COST_MODELS
from qsdformer.analysis.information import (
    qkv_histograms,
    spike_histograms,
    spike_information_distortion,
)
from qsdformer.analysis.subject import load_subject
from qsdformer.cli import run
from qsdformer.data import DataConfig, DataModule
from qsdformer.models.building import create_model
from qsdformer.models.checkpoint import save_checkpoint
from qsdformer.tasks.stored import BATCH


def analyze(*arguments: str | Path) -> int:
    return run(["analyze", *map(str, arguments), "--device", "cpu"])


def test_rates_operations_entropy_and_energy_are_shown(
    runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert analyze(runs / "spiking" / "best.ckpt", "--limit", "16") == 0
    shown = capsys.readouterr().out
    for text in ("firing rate", "papers' estimate", "entropy in bits: q", "KiB", "16 images"):
        assert text in shown
    for model in COST_MODELS.values():
        assert model.title in shown


@pytest.mark.parametrize("norm", [False, True])
def test_neurons_whose_counts_say_nothing_are_named(
    norm: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Sums after attention beyond the firing window, and neurons kept from firing by their norm.

    The neuron of q, which has its norm, always fires; that alone is no reason for advice.
    """
    data = DataModule(DataConfig(name="digits"), batch_size=32)
    torch.manual_seed(0)
    fields = {"in_channels": 1, "num_classes": 10, "count_units": False, "attention_norm": norm}
    model = create_model("e_spikeformer_tiny", **fields, attention_scale=9.0)
    for name, module in model.named_modules():
        if name.endswith("sepconv.norm1"):
            torch.nn.init.constant_(module.bias, -9.0)
        if name.endswith("attention.q.norm"):
            torch.nn.init.constant_(module.bias, 9.0)
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 1.0  # one batch makes the statistics
    images, _ = next(iter(data.val_dataloader()))
    with torch.no_grad():
        model.train()(images)
    recipe = {"data": {"name": "digits"}, "seed": 0}
    save_checkpoint(tmp_path / "model.ckpt", model, data.info, {"recipe": recipe})
    assert analyze(tmp_path / "model.ckpt", "--limit", "16") == 0
    out = " ".join(capsys.readouterr().out.split())  # lines are wrapped
    assert re.search(r"silent, firing rate below 0.01: (?:\S+ 0.00\d, ){4}and \d+ more ", out)
    assert "stages.0.blocks.0.sepconv.neuron2 0.000, " in out.partition("silent, ")[2]
    saturated = out.partition("saturated, firing rate 0.9 or more: ")[2].partition(" silent, ")[0]
    assert "stages.3.blocks.0.attention.q_neuron 1.000" in saturated
    assert ("stages.3.blocks.0.attention.attention_neuron " in saturated) == (not norm)
    assert ("--attention_norm true trains with a norm" in out) == (not norm)


def test_images_at_a_time_are_those_of_the_task_unless_said(runs: Path) -> None:
    checkpoint = str(runs / "spiking" / "best.ckpt")
    assert load_subject(checkpoint, {}).data.eval_batch_size == BATCH["classification"] == 256
    assert load_subject(checkpoint, {}, 7).data.eval_batch_size == 7
    assert BATCH["segmentation"] == BATCH["detection"] == 16


def test_csv_and_json_hold_every_row_and_the_ratios_to_the_first(
    runs: Path, tmp_path: Path
) -> None:
    first, second = runs / "spiking" / "best.ckpt", runs / "plain" / "best.ckpt"
    files = ("--csv", tmp_path / "rows.csv", "--json", tmp_path / "all.json")
    assert analyze(first, second, "--twins", "--limit", "40", *files) == 0
    values = json.loads((tmp_path / "all.json").read_text())
    assert [m["images"] for m in values["models"]] == [40, 40]
    assert values["constants"]["e_ac_pj"] == 0.9
    ledgers = values["ledgers"]
    assert len(ledgers) == 2 * 4
    for ledger in ledgers:
        for name, energy in ledger["energy_pj"].items():
            rows = sum(row["energy_pj"][name] for row in ledger["rows"])
            assert energy["total"] == pytest.approx(rows)
            ratio = ledgers[0]["energy_pj"][name]["total"] / energy["total"]
            assert ledger["ratio"][f"energy_{name}"] == pytest.approx(ratio)
    with (tmp_path / "rows.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == sum(len(ledger["rows"]) for ledger in ledgers)
    total = sum(float(line["bit-aware_pj"]) for line in lines if line["model"] == str(first))
    assert total == pytest.approx(ledgers[0]["energy_pj"]["bit-aware"]["total"])


def test_distortion_of_spikes_is_that_from_the_first_of_several(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = [runs / name / "best.ckpt" for name in ("spiking", "plain")]
    assert analyze(*paths, "--limit", "40", "--json", tmp_path / "all.json") == 0
    shown = capsys.readouterr().out
    of_qkv = []
    for path in paths:
        subject = load_subject(str(path), {}, batch_size=8)
        batches = (images for images, _ in subject.batches(40))
        of_qkv.append(qkv_histograms(spike_histograms(subject.model, batches)))
    expected = {
        name: spike_information_distortion(of_qkv[1][name], of_qkv[0][name]) for name in "qkv"
    }
    first, second = (
        m["distortion_bits"] for m in json.loads((tmp_path / "all.json").read_text())["models"]
    )
    assert first == dict.fromkeys("qkv", 0.0)
    assert second == pytest.approx(expected)
    assert max(expected.values()) > 0
    text = ", ".join(f"{name} {bits:.4f}" for name, bits in expected.items())
    line = f"distortion of {paths[1]} from {paths[0]}, bits: {text}"
    assert line in " ".join(shown.split())
    assert analyze(paths[0], "--limit", "8") == 0
    assert "distortion" not in capsys.readouterr().out


def test_one_cost_model_can_be_chosen(runs: Path, tmp_path: Path) -> None:
    checkpoint, out = runs / "spiking" / "best.ckpt", tmp_path / "all.json"
    assert analyze(checkpoint, "--limit", "8", "--cost-model", "papers", "--json", out) == 0
    assert list(json.loads(out.read_text())["cost_models"]) == ["papers"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["ann/best.ckpt"], "has no spiking neurons"),
        (["spiking/best.ckpt", "--cost-model", "watts"], "unknown cost model 'watts'"),
        (["other/best.ckpt"], "has 5 classes, but the dataset has 10"),
        (["missing.ckpt"], "no checkpoint"),
        (["spiking"], "is a folder"),
        (["spiking/best.ckpt", "--data.levels", "3"], "--data.levels"),
    ],
)
def test_bad_input_gives_one_line(
    runs: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert analyze(runs / arguments[0], *arguments[1:]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert message in error


def test_an_empty_data_set_gives_one_line(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for part in ("train", "val"):
        (tmp_path / part / "zero").mkdir(parents=True)
    keys = ["--data.name", "image_folder", "--data.root", str(tmp_path)]
    assert analyze(runs / "spiking" / "best.ckpt", *keys) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "holds no images" in error


def test_a_file_that_cannot_be_written_is_named(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    bad = tmp_path / "file" / "rows.csv"
    assert analyze(runs / "spiking" / "best.ckpt", "--limit", "4", "--csv", bad) == 2
    assert str(bad) in capsys.readouterr().err
