"""`qsdformer.load` reads every kind of file of ours."""

from __future__ import annotations

import pytest

import qsdformer as qsd
from qsdformer.data import DataInfo
from qsdformer.errors import UserError
from qsdformer.graph.integer import IntegerGraph
from qsdformer.models.checkpoint import save_checkpoint

INFO = DataInfo(image_size=16, channels=1, class_names=("a", "b"), mean=(0.5,), std=(0.5,))


@pytest.fixture
def model():
    return qsd.create_model(
        dims=(4, 6, 8, 8), depth=2, heads=2, in_channels=1, num_classes=2
    ).eval()


def test_checkpoint_gives_the_model_in_evaluation_mode(model, tmp_path):
    save_checkpoint(tmp_path / "model.ckpt", model, INFO)
    loaded = qsd.load(tmp_path / "model.ckpt")
    assert loaded.config == model.config
    assert not loaded.training


def test_artifact_gives_the_integer_graph(model, tmp_path):
    save_checkpoint(tmp_path / "model.ckpt", model, INFO)
    model = qsd.load(tmp_path / "model.ckpt")
    qsd.export(model, tmp_path / "model.qsd")
    graph = qsd.load(tmp_path / "model.qsd")
    assert isinstance(graph, IntegerGraph)
    assert graph == qsd.lower(model)


def test_any_other_file_is_refused_in_one_line(tmp_path):
    (tmp_path / "note.txt").write_text("not a model")
    with pytest.raises(UserError, match=r"note\.txt") as caught:
        qsd.load(tmp_path / "note.txt")
    assert "\n" not in str(caught.value)
