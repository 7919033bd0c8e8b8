"""`qsdformer.load` reads every kind of file of ours."""

from __future__ import annotations

import pytest
from PIL import Image

import qsdformer as qsd
from qsdformer.cli import run
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


def test_a_model_saved_by_hand_can_be_evaluated_predicted_exported_and_verified(
    lively, tmp_path, capsys
):
    path, png = tmp_path / "own.ckpt", tmp_path / "image.png"
    model = lively(in_channels=1, num_classes=10).train()
    info = qsd.DataInfo(
        image_size=32, channels=1, class_names=tuple("0123456789"), mean=(0.3,), std=(0.4,)
    )
    qsd.save(model, path, info)
    assert model.training
    Image.new("L", (20, 20), 128).save(png)
    data = ["--data.name", "digits"]
    few = ["--limit", "8", "--executor", "integer"]
    for arguments in (
        ["predict", str(path), str(png)],
        ["export", str(path), str(tmp_path / "own.qsd")],
        ["verify", str(path), *data, *few],
        ["eval", str(path), *data],
    ):
        assert run(arguments) == 0, capsys.readouterr().err
