"""`qsdformer.load` reads every kind of file of ours."""

from __future__ import annotations

import copy

import pytest
import torch
from PIL import Image
from timm.utils.model import freeze_batch_norm_2d

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


def test_a_model_with_frozen_norms_is_saved_and_one_without_a_part_is_not(model, tmp_path):
    images = torch.randn(2, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    frozen = freeze_batch_norm_2d(copy.deepcopy(model)).eval()
    qsd.save(frozen, tmp_path / "frozen.ckpt", INFO)
    with torch.no_grad():
        got, expected = qsd.load(tmp_path / "frozen.ckpt")(images), frozen(images)
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)
    model.prune_intermediate_layers([1])
    with pytest.raises(UserError, match="not as its configuration says: it lacks stages") as caught:
        qsd.save(model, tmp_path / "pruned.ckpt")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "pruned.ckpt").exists()


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
