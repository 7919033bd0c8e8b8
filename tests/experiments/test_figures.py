from __future__ import annotations

import sys
from pathlib import Path

import pytest
from lightning.pytorch.loggers import TensorBoardLogger

from qsdformer.experiments.figures import new_figure
from qsdformer.training import run


def test_without_matplotlib_one_line_says_how_to_get_the_picture(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert new_figure(Path("x.png"), (2, 2)) is not None
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)  # import raises ImportError
    assert new_figure(Path("x.png"), (2, 2)) is None
    error = capsys.readouterr().err
    assert error == "no x.png: pip install 'qsdformer[plots]' to get the picture\n"


def test_training_does_without_tensorboard(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert isinstance(run._tensorboard(tmp_path), TensorBoardLogger)
    monkeypatch.setattr(run.importlib.util, "find_spec", lambda name: None)
    assert run._tensorboard(tmp_path) is False
