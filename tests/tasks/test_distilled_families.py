"""A student of every family is taught by its counterpart ANN, and its recipes fit it."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest

from qsdformer.errors import UserError
from qsdformer.models.checkpoint import load_checkpoint
from qsdformer.recipes.recipe import load_recipe, parse_recipe
from qsdformer.training import train
from qsdformer.training.teaching import counterpart

SHAPES: dict[str, dict[str, Any]] = {
    "sdt_tiny": {"width": 16, "depth": 2, "heads": 2},
    "spikformer_tiny": {"width": 16, "depth": 2, "heads": 2},
    "e_spikeformer_tiny": {"dims": [4, 6, 8, 8], "depth": 2, "heads": 2},
}
LIF = {"neuron": "lif", "levels": 1, "time_steps": 2, "rectify": "all"}


def values(name: str, output: Path, **model: Any) -> dict[str, Any]:
    return {
        "model": {"name": name, **SHAPES[name], **model},
        "data": {"name": "digits", "train_limit": 64},
        "train": {"epochs": 1, "batch_size": 32, "log_every": 1},
        "distill": {"fgd_weight": 0.5, "logit_weight": 0.5, "source": "membrane"},
        "output": str(output),
    }


@pytest.mark.parametrize("neuron", [{}, LIF], ids=["ielif", "lif"])
@pytest.mark.parametrize("name", SHAPES)
def test_an_ann_of_the_same_class_teaches_a_student(name, neuron, tmp_path):
    train(parse_recipe(values(name, tmp_path / "run", **neuron)))
    student = load_checkpoint(tmp_path / "run" / "last.ckpt").model
    teacher = load_checkpoint(tmp_path / "run" / "teacher" / "last.ckpt").model
    assert type(teacher) is type(student)
    assert (teacher.config.neuron, teacher.config.weight_bits) == ("relu", None)
    assert teacher.config.depth == student.config.depth == 2
    with (tmp_path / "run" / "metrics.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["val_accuracy"]]
    assert all(float(row["train_fgd_loss"]) > 0 for row in rows)
    assert all(float(row["train_logit_loss"]) > 0 for row in rows)


def test_the_counterpart_shares_the_shape_and_nothing_about_spikes(tmp_path):
    shape = {"pooling": "0011", "stem_widths": [2, 4, 8]}
    fields = {**shape, "attention_norm": True, "levels": 8}
    recipe = parse_recipe(values("sdt_tiny", tmp_path, **fields))
    assert counterpart(recipe).model.fields == {**SHAPES["sdt_tiny"], **shape, "neuron": "relu"}


@pytest.mark.parametrize(
    ("name", "key", "owners"),
    [
        ("sdt_tiny", "dims", "metaspikeformer and e_spikeformer"),
        ("spikformer_tiny", "dvs_mode", "sdt"),
        ("e_spikeformer_tiny", "pooling", "sdt and spikformer"),
    ],
)
def test_a_field_of_another_family_is_refused_with_its_owner(name, key, owners, tmp_path):
    with pytest.raises(UserError, match=f"model.{key} is for {owners}, not for {name}: leave it"):
        parse_recipe(values(name, tmp_path, **{key: 1}))


def test_flags_given_on_the_command_line_stay_text():
    recipe = load_recipe("digits-sdt", {"pooling": "0011"})
    assert recipe.model.config(in_channels=1, num_classes=10).pooling == "0011"
