"""Every family through every command, as a user would: trained, distilled, verified, measured."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from qsdformer.cli import run
from qsdformer.runtimes import bench

# The recipes on digits, one of each family.
RECIPES = ("digits", "digits-sdt", "digits-spikformer", "digits-e-spikeformer")
SHORT = ["--train.epochs", "1", "--data.train_limit", "64", "--train.batch_size", "32"]
# IE-LIF taught by the counterpart ANN, and LIF over time, which is silent after so few steps in
# some of the families.
VARIANTS = {
    "distilled": ["--distill.teacher", "ann", "--distill.fgd_weight", "3"],
    "lif": ["--model.neuron", "lif", "--model.time_steps", "2", "--model.rectify", "all"],
}


@pytest.mark.slow
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("recipe", RECIPES)
def test_a_trained_network_goes_through_every_command(recipe, variant, capsys, monkeypatch):
    # Measured in processes that import PyTorch, and of file kinds, not of families: see test_bench.
    monkeypatch.setattr(bench, "peak_memory", lambda *_: 1.0)

    def qsd(*arguments: str) -> str:
        assert run(arguments) == 0, arguments
        return capsys.readouterr().out

    qsd("train", recipe, "--output", "run", *SHORT, *VARIANTS[variant])
    verified = qsd("verify", "run/last.ckpt", "--limit", "32")
    assert "broken" not in verified
    qsd("export", "run/last.ckpt", "model.qsd")
    qsd("export", "run/last.ckpt", "model.onnx")
    _the_files_say_the_same(qsd)
    qsd("analyze", "run/last.ckpt", "--twins", "--limit", "32", "--json", "ledger.json")
    assert json.loads(Path("ledger.json").read_text())
    qsd("simulate", "run/last.ckpt", "--images", "1", "--ledger")
    qsd("report", "run", "--limit", "32", "--output", "report.html")
    assert Path("report.html").read_text().endswith("</html>\n")
    qsd("bench", "run/last.ckpt", "--batch-size", "1", "--runs", "2", "--csv", "bench.csv")
    assert len(Path("bench.csv").read_text().splitlines()) > 3


def _the_files_say_the_same(qsd: Callable[..., str]) -> None:
    """Checkpoint, artifact and ONNX file classify one image alike."""
    Image.new("L", (32, 32), 90).save("grey.png")
    files = ("run/last.ckpt", "model.qsd", "model.onnx")
    answers = [json.loads(qsd("predict", file, "grey.png", "--json")) for file in files]
    best = [answer[0]["classes"][0]["class"] for answer in answers]
    assert best[0] == best[1] == best[2]
