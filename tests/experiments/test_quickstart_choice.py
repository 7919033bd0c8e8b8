"""What the quickstart compares, without training anything."""

from __future__ import annotations

import io
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from qsdformer.experiments import quickstart
from qsdformer.recipes.recipe import Recipe


def test_the_models_of_the_last_epoch_are_compared(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    seen = []

    def train(recipe: Recipe, **_: Any) -> SimpleNamespace:
        folder = Path(recipe.output)
        return SimpleNamespace(last_path=folder / "last", best_path=folder / "best", seconds=1.0)

    def measure(path: Path, recipe: Recipe) -> tuple[dict[str, Any], dict[str, Any]]:
        seen.append(path.name)
        return {"accuracy": 0.5, "weight_bits": 4, "packed_bytes": 2048}, {}

    for name, value in (("train", train), ("measure", measure), ("draw", lambda *_: None)):
        monkeypatch.setattr(quickstart, name, value)
    console = Console(record=True, width=120, file=io.StringIO())
    quickstart.run(tmp_path / "q", console=console)
    assert seen == ["last", "last"]
    assert "2 KiB" in console.export_text()
