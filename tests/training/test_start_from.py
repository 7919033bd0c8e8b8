"""Fine-tuning through the command: `--start_from` takes a checkpoint of ours or an imported one."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from qsdformer.cli import run
from qsdformer.graph.artifact import load_artifact
from qsdformer.models.checkpoint import load, load_checkpoint
from qsdformer.recipes.recipe import load_recipe

TINY = [
    "--data.train_limit=32",
    "--train.batch_size=16",
    "--epochs=1",
    "--accelerator=cpu",
    "--warmup=0",
]
SHAPE = ["--dims=[4,6,8,8]", "--depth=2", "--heads=2", "--stem_kernel=3"]


@pytest.fixture(scope="module")
def imported(fixtures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The published mini network as a checkpoint of ours: no data info, 3 channels."""
    out = tmp_path_factory.mktemp("imported") / "mini.ckpt"
    source = fixtures / "reference_mini.pth"
    assert run(["import-reference", str(source), str(out), "--heads", "2"]) == 0
    return out


def test_an_imported_network_of_a_known_size_predicts_and_exports(
    imported: Path, fixtures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image = tmp_path / "image.png"
    Image.fromarray(np.full((40, 40, 3), 90, np.uint8)).save(image)
    assert run(["predict", str(imported), str(image)]) == 2
    assert "--image-size N to qsd import-reference" in capsys.readouterr().err
    words = [str(fixtures / "reference_mini.pth"), str(tmp_path / "mini.ckpt"), "--heads", "2"]
    assert run(["import-reference", *words, "--image-size", "32"]) == 0
    capsys.readouterr()
    assert run(["predict", words[1], str(image), "--json"]) == 0
    first = capsys.readouterr().out
    info = load_checkpoint(words[1]).info
    assert info is not None
    assert (info.image_size, info.interpolation, info.crop_pct) == (32, "bicubic", 0.875)
    assert run(["export", words[1], str(tmp_path / "with.onnx")]) == 0
    by_size = [str(imported), str(tmp_path / "by_size.onnx"), "--image-size", "32"]
    assert run(["export", *by_size]) == 0
    capsys.readouterr()
    answers = []
    for name in ("with", "by_size"):
        assert run(["predict", str(tmp_path / f"{name}.onnx"), str(image), "--json"]) == 0
        answers.append(capsys.readouterr().out)
    assert answers[0] == answers[1]
    likeliest = [json.loads(text)[0]["classes"][0]["class"] for text in (first, answers[0])]
    assert likeliest[0] == likeliest[1]
    assert run(["import-reference", *words, "--image-size", "9000"]) == 2
    assert "1 to 8192" in capsys.readouterr().err


@pytest.fixture(scope="module")
def folder_of_images(imported: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An image folder with as many classes as the imported network."""
    root, random = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    for part in ("train", "val"):
        for number in range(load(imported).num_classes):
            folder = root / part / f"class{number:03}"
            folder.mkdir(parents=True)
            pixels = random.integers(0, 256, (40, 40, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / "0.png")
    return root


def train(output: Path, *words: str) -> int:
    return run(["train", "digits", *TINY, "--output", str(output), *words])


def test_an_imported_network_is_fine_tuned_on_grey_digits_at_another_size(
    imported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, words = tmp_path / "run", ["--start_from", str(imported), "--image_size", "24"]
    words += ["--evaluate_on", "holdout"]
    # With a learning rate near 0 the weights stay as they were.
    assert train(out, *words, "--lr", "1e-9") == 0
    text = capsys.readouterr().out
    assert f"weights from {imported}: " in text
    assert "adapted to 1 channels: stages.0.downsample.conv.weight" in text
    assert f"head taken too: 10 classes in both, whose names {imported} does not say" in text
    assert "fine-tuned model (4-bit weights" in text
    tuned, start = load(out / "last.ckpt"), load(imported)
    assert tuned.config.dims == start.config.dims
    assert tuned.config.heads == start.config.heads == 2
    assert tuned.config.attention_gain == 2.0
    assert (tuned.config.in_channels, tuned.config.num_classes) == (1, 10)
    weight = "stages.1.blocks.0.conv1.weight"
    torch.testing.assert_close(
        tuned.state_dict()[weight], start.state_dict()[weight], atol=1e-6, rtol=1e-6
    )
    # All is in the stored recipe, which no longer needs the file's shape.
    stored = load_recipe(str(out / "recipe.yaml"))
    assert stored.model.config(in_channels=1, num_classes=10) == tuned.config
    # The advice of export and predict comes true.
    assert run(["export", str(out / "last.ckpt"), str(tmp_path / "model.qsd")]) == 0


def test_full_precision_first_then_fewer_bits(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    none = ["--weight_bits=none", "--stem_bits=none", "--head_bits=none"]
    assert train(tmp_path / "full", *SHAPE, *none) == 0
    first = str(tmp_path / "full" / "last.ckpt")
    words = ["--start_from", first, "--weight_bits", "2", "--levels", "2", "--ema", "0.9"]
    assert train(tmp_path / "low", *words, "--lr", "1e-9") == 0
    assert (
        "step sizes started from the weights: stages.0.downsample.conv" in capsys.readouterr().out
    )
    config = load(tmp_path / "low" / "last.ckpt").config
    assert (config.weight_bits, config.stem_bits, config.levels, config.dims[0]) == (2, 8, 2, 4)
    # The averaged weights, too, began at the loaded ones.
    states = [load_checkpoint(p).model.state_dict() for p in (first, tmp_path / "low/last.ckpt")]
    torch.testing.assert_close(
        states[0]["head.weight"], states[1]["head.weight"], atol=1e-6, rtol=1e-6
    )


def test_resuming_a_fine_tuned_run_goes_on_from_its_own_weights(
    imported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--start_from", str(imported), "--image_size=16", "--evaluate_on=holdout"]
    assert train(tmp_path / "run", *words) == 0
    capsys.readouterr()
    assert train(tmp_path / "run", *words, "--epochs=2", "--resume") == 0
    text = capsys.readouterr().out
    assert "weights from" not in text
    assert "epoch   2/2" in text


def test_a_student_begins_with_the_weights_of_its_teacher(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # The counterpart ANN is trained first; the student's rate near 0 leaves its weights alone.
    words = [*SHAPE, "--start_from=teacher", "--fgd_weight=1", "--lr=1e-9"]
    words.append("--teacher_keys={train.lr: 0.01}")
    assert train(tmp_path / "run", *words) == 0
    text = " ".join(capsys.readouterr().out.split())
    teacher = tmp_path / "run" / "teacher" / "last.ckpt"
    assert f"weights from {teacher}: " in text
    assert "fine-tuned model" not in text
    own, there = load(tmp_path / "run" / "last.ckpt"), load(teacher)
    assert (own.config.is_spiking, there.config.is_spiking) == (True, False)
    weight = "stages.1.blocks.0.conv1.weight"
    torch.testing.assert_close(
        own.state_dict()[weight], there.state_dict()[weight], atol=1e-6, rtol=1e-6
    )
    assert load_recipe(str(tmp_path / "run" / "recipe.yaml")).starts_from_teacher
    assert train(tmp_path / "run", *words, "--epochs=2", "--resume") == 0
    assert "weights from" not in capsys.readouterr().out


def test_a_start_that_cannot_be_is_one_line(
    imported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for words, message in (
        (["--start_from=teacher"], "nothing teaches"),
        (
            ["--start_from=teacher", "--teacher=timm:vit_tiny_patch16_224"],
            "timm:vit_tiny_patch16_224 is no network of ours",
        ),
        (
            [*SHAPE, "--start_from=teacher", "--teacher_keys={dims: [32, 64, 64, 64]}"],
            "of this model's weights would be in its teacher",
        ),
        (["--start_from", str(tmp_path / "none.ckpt")], "no checkpoint"),
        (["--start_from", str(imported), "--dims=[32,64,64,64]"], "of this model's weights"),
    ):
        assert train(tmp_path / "run", *words) == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("key", ["model.start_from", "distill.teacher"])
def test_what_a_run_begins_with_is_not_removed_by_it(
    key: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, last = tmp_path / "run", tmp_path / "run" / "last.ckpt"
    assert train(out, *SHAPE) == 0
    before = last.read_bytes()
    assert train(out, *SHAPE, "--overwrite", f"--{key}={last}") == 2
    error = capsys.readouterr().err
    assert f"{key}: {last} is of the run folder {out}, which --overwrite would empty" in error
    assert last.read_bytes() == before
    assert train(tmp_path / "other", *SHAPE, f"--{key}={last}") == 0


def test_a_run_goes_on_where_what_it_began_with_is_gone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, out = tmp_path / "first", tmp_path / "run"
    assert train(first, *SHAPE) == 0
    assert train(out, "--start_from", str(first / "last.ckpt")) == 0
    shutil.rmtree(first)
    words = ["train", str(out / "recipe.yaml"), "--epochs=2"]
    assert run([*words, "--resume"]) == 0
    assert "epoch   2/2" in capsys.readouterr().out
    assert run([*words, "--overwrite"]) == 2
    assert f"no checkpoint {first / 'last.ckpt'}: check the path" in capsys.readouterr().err
    assert (out / "last.ckpt").is_file()


def test_an_imported_network_is_exported_with_a_size_or_with_a_data_set(
    imported: Path, folder_of_images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "mini.qsd"
    assert run(["export", str(imported), str(out)]) == 2
    assert f"qsd train RECIPE --start_from {imported}" in capsys.readouterr().err
    for words in (["--data.image_size", "32"], ["--image-size", "32"]):
        assert run(["export", str(imported), str(out), *words]) == 0
        graph = load_artifact(out)
        assert graph.preprocessing.image_size == 32
        assert graph.preprocessing.mean == pytest.approx((0.485, 0.456, 0.406))
        assert graph.class_names[:2] == ("0", "1")
    words = ["--data.name", "image_folder", "--data.root", str(folder_of_images)]
    assert run(["export", str(imported), str(out), *words, "--image_size", "48"]) == 0
    graph = load_artifact(out)
    assert graph.class_names[:2] == ("class000", "class001")
    assert graph.preprocessing.image_size == 48
    assert run(["export", str(imported), str(out), "--data.name", "digits"]) == 2
    assert "images have 1 channels, but the model takes 3" in capsys.readouterr().err


def test_an_imported_network_is_verified_on_a_data_set(
    imported: Path, folder_of_images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--data.name", "image_folder", "--data.root", str(folder_of_images)]
    words += ["--image_size", "32", "--limit", "4", "--executor", "integer"]
    assert run(["verify", str(imported), *words]) == 0
    assert "4 images" in capsys.readouterr().out
