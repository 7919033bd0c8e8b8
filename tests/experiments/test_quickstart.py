"""The quickstart: what it leaves behind, and what it says."""

from __future__ import annotations

import io
import json
import math

import pytest
from PIL import Image
from rich.console import Console

from qsdformer import load
from qsdformer.errors import UserError
from qsdformer.experiments import quickstart
from qsdformer.recipes.recipe import load_recipe

pytestmark = pytest.mark.slow  # two short trainings


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    output = tmp_path_factory.mktemp("quickstart")
    console = Console(file=io.StringIO(), width=120)
    results = quickstart.run(output, epochs=2, console=console)
    return output, results, console.file.getvalue()


def test_results_file_holds_what_was_returned(ran):
    output, results, _ = ran
    assert json.loads((output / "results.json").read_text()) == results


def test_both_models_learn_something_in_two_epochs(ran):
    _, results, _ = ran
    assert all(row["accuracy"] > 0.5 for row in results["models"].values())
    assert all(row["images"] == 360 for row in results["models"].values())


def test_student_is_smaller_and_spikes_within_bounds(ran):
    _, results, _ = ran
    ann, student = results["models"]["ann"], results["models"]["student"]
    assert (ann["weight_bits"], student["weight_bits"]) == (32, 4)
    assert student["packed_bytes"] < ann["packed_bytes"] / 5
    assert 0 < student["firing_rate"] < 1
    assert all(0 < bits <= math.log2(5) for bits in student["entropy_bits"].values())
    assert "firing_rate" not in ann


def test_table_names_both_models_and_their_accuracies(ran):
    _, results, text = ran
    for name, row in results["models"].items():
        assert quickstart.TITLES[name] in text
        assert f"{row['accuracy']:.1%}" in text


def test_only_its_own_runs_are_replaced(ran, tmp_path):
    output, _, _ = ran
    own = load_recipe("digits", {"output": str(output / "student")})
    quickstart._check_own(own)
    assert own.seed == load_recipe(str(output / "student" / "recipe.yaml")).seed == 0
    with pytest.raises(UserError, match="is not from an earlier quickstart"):
        quickstart._check_own(load_recipe("digits", {"output": own.output, "lr": "0.1"}))
    (tmp_path / "file").mkdir()
    (tmp_path / "file" / "ann").write_text("mine")
    with pytest.raises(UserError, match="is not from an earlier quickstart"):
        quickstart.run(tmp_path / "file", epochs=1, console=Console(quiet=True))
    with pytest.raises(UserError, match="seed=-1: must be between 0 and"):
        quickstart.run(tmp_path / "seed", seed=-1, console=Console(quiet=True))
    for name, files in {"foreign": ["notes.txt"], "another": ["recipe.yaml", "last.ckpt"]}.items():
        folder = tmp_path / name / "student"
        folder.mkdir(parents=True)
        for file in files:
            (folder / file).write_text("recipe: digits-lif\n")
        with pytest.raises(UserError, match="is not from an earlier quickstart"):
            quickstart.run(tmp_path / name, epochs=1, console=Console(quiet=True))
        assert sorted(path.name for path in folder.iterdir()) == sorted(files)
        assert not (tmp_path / name / "ann").exists()  # nothing was trained before


def test_picture_opens_and_checkpoints_load(ran):
    output, _, _ = ran
    with Image.open(output / "quickstart.png") as picture:
        assert picture.width > 600
    assert load(output / "student" / "best.ckpt").config.weight_bits == 4
    assert not load(output / "ann" / "best.ckpt").config.is_spiking
