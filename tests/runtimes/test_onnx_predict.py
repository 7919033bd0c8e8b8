from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest
from graph.random_graphs import random_frames, random_graph
from graph.test_artifact_fuzz import damaged
from PIL import Image
from variants import info_for

import qsdformer
from qsdformer.cli import run
from qsdformer.data import DataConfig, DataModule
from qsdformer.data.decoding import open_image
from qsdformer.data.preprocessing import pixels
from qsdformer.errors import UserError
from qsdformer.graph.artifact import export
from qsdformer.graph.lowering import lower
from qsdformer.models.checkpoint import save_checkpoint

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from qsdformer.runtimes import sessions  # noqa: E402
from qsdformer.runtimes.onnx_export import export_onnx  # noqa: E402
from qsdformer.runtimes.onnx_metadata import check  # noqa: E402
from qsdformer.runtimes.onnx_predict import load_onnx  # noqa: E402


@pytest.fixture(scope="module")
def graph(lively):
    model = lively()
    return lower(model, info_for(model))


@pytest.fixture
def model_file(graph, tmp_path: Path) -> Path:
    export_onnx(graph, tmp_path / "model.onnx")
    return tmp_path / "model.onnx"


@pytest.fixture
def png(tmp_path: Path) -> Path:
    values = np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8)
    Image.fromarray(values).save(tmp_path / "image.png")
    return tmp_path / "image.png"


def test_predictions_are_those_of_the_integer_graph(graph, model_file, png):
    images = [open_image(png)]
    model = load_onnx(model_file)
    found, expected = model.predict(images, 3)[0], graph.predict(images, 3)[0]
    assert [name for name, _ in found] == [name for name, _ in expected]
    assert np.allclose([p for _, p in found], [p for _, p in expected], atol=1e-4)
    assert model.logits(pixels(images, graph.preprocessing)).shape == (1, 5)


def test_the_command_exports_and_predicts(lively, png, tmp_path, capsys):
    model = lively()
    save_checkpoint(tmp_path / "model.ckpt", model, info_for(model))
    for out in ("model.onnx", "model.qsd"):
        assert run(["export", str(tmp_path / "model.ckpt"), str(tmp_path / out)]) == 0
    capsys.readouterr()
    answers = []
    for name in ("model.ckpt", "model.onnx", "model.qsd"):
        assert run(["predict", str(tmp_path / name), str(png), "--json"]) == 0
        shown = json.loads(capsys.readouterr().out)[0]["classes"]
        answers.append({c["class"]: c["probability"] for c in shown})
    assert answers[1] == pytest.approx(answers[0], abs=1e-4)
    assert answers[2] == pytest.approx(answers[0], abs=1e-4)


def test_another_image_size_can_be_exported(lively, png, tmp_path, capsys):
    model = lively()
    save_checkpoint(tmp_path / "model.ckpt", model, info_for(model))
    out = tmp_path / "out"
    words = ["export", str(tmp_path / "model.ckpt"), str(out), "--format", "onnx"]
    assert run([*words, "--image-size", "48", "--runtime", "openvino"]) == 0
    assert load_onnx(out).preprocessing.image_size == 48


def test_predicting_with_an_onnx_file_needs_neither_torch_nor_lightning(model_file, png):
    code = f"""
import sys
from qsdformer.cli import run
assert run(["predict", {str(model_file)!r}, {str(png)!r}]) == 0
heavy = {{"torch", "lightning", "timm", "sklearn", "rich", "pydantic", "onnx"}} & set(sys.modules)
assert not heavy, heavy
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=600
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"{png}: class")


def test_the_runtime_distribution_holds_all_that_predicting_loads(model_file, graph, png):
    root = Path(__file__).parents[2]
    runtime, whole = (
        tomllib.loads((root / folder / "pyproject.toml").read_text()) for folder in ("runtime", ".")
    )
    project = runtime["project"]
    assert project["version"] == whole["project"]["version"]
    assert project["dependencies"] == whole["project"]["optional-dependencies"]["runtime"]
    artifact = model_file.with_suffix(".qsd")
    export(graph, artifact)
    code = f"""
import importlib.util, sys
find = importlib.util.find_spec
importlib.util.find_spec = lambda name: None if name == "onnx" else find(name)  # not a dependency
before = set(sys.modules)
from qsdformer.cli import run
for model in ({str(model_file)!r}, {str(artifact)!r}):
    assert run(["predict", model, {str(png)!r}]) == 0
loaded = [m for m in sys.modules.values() if m.__name__.startswith("qsdformer")]
packages = {{m.__name__ if hasattr(m, "__path__") else m.__package__ for m in loaded}}
print(*sorted(packages))
allowed = {{"numpy", "PIL", "onnxruntime", "qsdformer", "flatbuffers", "google", "packaging"}}
tops = {{name.partition(".")[0] for name in set(sys.modules) - before}}
foreign = tops - allowed - sys.stdlib_module_names
print(*sorted(n for n in foreign if hasattr(sys.modules.get(n), "__path__")))
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=600
    )
    assert done.returncode == 0, done.stderr
    packages, foreign = done.stdout.splitlines()[-2:]
    left_out = {
        f"qsdformer.{p.strip('*/')}" for p in runtime["tool"]["scikit-build"]["wheel"]["exclude"]
    }
    assert left_out
    assert not left_out & set(packages.split())
    assert foreign == ""


def test_the_runtime_distribution_loads_artifacts_beside_timm_and_refuses_checkpoints(
    graph, tmp_path
):
    root = Path(__file__).parents[2]
    left_out = tomllib.loads((root / "runtime/pyproject.toml").read_text())
    names = [p.strip("*/") for p in left_out["tool"]["scikit-build"]["wheel"]["exclude"]]
    whole = root / "src/qsdformer"

    def excluded(folder, entries):
        return [e for e in entries if e in names and (Path(folder) / e).is_dir()]

    shutil.copytree(whole, tmp_path / "qsdformer", ignore=excluded)
    export(graph, tmp_path / "it.qsd")
    (tmp_path / "it.ckpt").write_text("no artifact")
    code = f"""
import sys
before = {{"timm": "import timm", "qsdformer": "import qsdformer"}}
exec(before[sys.argv[1]]); exec(before[sys.argv[2]])
import qsdformer
assert qsdformer.__file__.startswith({str(tmp_path)!r})
from qsdformer.errors import UserError
assert qsdformer.load({str(tmp_path / "it.qsd")!r}).reference.ops
try:
    qsdformer.load({str(tmp_path / "it.ckpt")!r})
except UserError as error:
    print(error)
"""
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    for order in (("timm", "qsdformer"), ("qsdformer", "timm")):
        done = subprocess.run(
            [sys.executable, "-c", code, *order],
            capture_output=True,
            text=True,
            check=False,
            timeout=600,
            env=environment,
        )
        assert done.returncode == 0, done.stderr
        assert "this needs qsdformer.models for a checkpoint, which is not inst" in done.stdout


def test_what_needs_torch_says_so_in_one_line_where_there_is_none(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "qsdformer.commands.evaluate", None)  # importing it fails
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert run(["eval", "model.ckpt"]) == 2
    message = capsys.readouterr().err
    assert message.startswith("qsd: error: this needs ")
    assert message.count("\n") == 1


@pytest.mark.parametrize("content", [b"", b"not a model", b"PK\x03\x04"])
def test_a_file_that_is_no_model_is_refused_in_one_line(tmp_path, content):
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    with pytest.raises(UserError) as caught:
        load_onnx(path)
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="no ONNX file"):
        load_onnx(tmp_path / "none.onnx")


def test_a_foreign_model_is_refused(model_file):
    model = onnx.load(model_file)
    del model.metadata_props[:]
    onnx.save(model, model_file)
    with pytest.raises(UserError, match="was not exported by qsd"):
        load_onnx(model_file)


def test_the_checksum_covers_every_byte(model_file):
    whole = model_file.read_bytes()
    rng = random.Random(0)
    places = [rng.randrange(len(whole)) for _ in range(100)]
    places += range(whole.index(b"qsdformer_sha256") - 4, len(whole))  # the entry itself
    for at in places:
        changed = whole[:at] + bytes([whole[at] ^ (1 << rng.randrange(8))]) + whole[at + 1 :]
        with pytest.raises(UserError, match=r"checksum is wrong|was not exported by qsd") as caught:
            check(changed, "model.onnx")
        assert "\n" not in str(caught.value)
    check(whole, "model.onnx")


def test_accidents_to_a_file_are_refused_in_one_line(model_file):
    """Cuts, holes, repetitions, junk: none may run with changed weights."""
    whole = model_file.read_bytes()
    rng = random.Random(1)
    for number in range(300):
        mutant = damaged(whole, rng)
        if mutant == whole:
            continue
        model_file.write_bytes(mutant)
        with pytest.raises(UserError) as caught:
            load_onnx(model_file)
        assert str(model_file) in str(caught.value), number
        assert "\n" not in str(caught.value), number


def test_other_runtimes_ignore_the_checksum(graph, model_file):
    onnx.checker.check_model(onnx.load(model_file))
    pixels = np.zeros((1, 3, 32, 32), np.uint8)
    found = sessions.onnxruntime_infer(str(model_file))(pixels, None)["logits"]
    assert np.array_equal(found, load_onnx(model_file).logits(pixels))


def test_a_network_of_frames_and_feature_maps_runs_from_its_file(tmp_path):
    chosen = [g for g in map(random_graph, range(60)) if g.takes_frames and g.outputs]
    for graph in (
        next(g for g in chosen if not g.class_names),
        next(g for g in chosen if g.class_names),
    ):
        export_onnx(graph, tmp_path / "model.onnx")
        model, frames = load_onnx(tmp_path / "model.onnx"), random_frames(graph)
        found, expected = model.outputs(frames), graph.real_outputs(frames)
        assert found.keys() == expected.keys()
        for output in graph.outputs:
            assert np.array_equal(found[output.name], expected[output.name])
        if graph.class_names:
            assert np.array_equal(model.logits(frames), expected["logits"][:, :, 0, 0])
        else:
            with pytest.raises(UserError, match="no logits; its outputs are map0"):
                model.logits(frames)


@pytest.fixture(scope="module")
def frame_files(lively, tmp_path_factory) -> list[Path]:
    """A network of frames as .onnx and .qsd."""
    folder, model = tmp_path_factory.mktemp("frames"), lively(in_channels=1, num_classes=10)
    files = [folder / f"frames{suffix}" for suffix in (".onnx", ".qsd")]
    info = DataModule(DataConfig(name="digits"), batch_size=1).info
    for file in files:
        qsdformer.export(model, file, info, frames=True)
    return files


@pytest.mark.parametrize("command", ["predict", "eval", "bench"])
def test_commands_give_a_network_of_frames_one_line(command, frame_files, png, capsys):
    words = {
        "predict": [str(png), "--threads", "1"],
        "eval": ["--data.name", "digits", "--limit", "2", "--threads", "1"],
        "bench": ["--batch-size", "1", "--runs", "1", "--threads", "1"],
    }
    for file in frame_files:
        capsys.readouterr()
        assert run([command, str(file), *words[command]]) == 2
        shown = capsys.readouterr().err
        error = shown[shown.index("qsd: error: ") :]  # an artifact says before what runs it
        assert error.count("\n") == 1
        assert ("takes a frame" if command == "bench" else "1 time steps, B, 1, 32, 32") in error


@pytest.mark.parametrize("steps", [None, 4])
def test_wrong_images_are_refused_in_the_words_of_the_artifact(steps, lively, tmp_path):
    model = lively() if steps is None else lively(time_steps=steps)
    frames = steps is not None
    file = tmp_path / "model.onnx"
    graph = qsdformer.export(model, file, info_for(model), frames=frames)
    right = (4, 1, 3, 32, 32) if frames else (1, 3, 32, 32)
    wrong = [
        np.zeros(right, np.float32),
        np.zeros((*right[:-1], 31), np.uint8),
        np.zeros(right[1:], np.uint8),
        np.zeros((3, *right[-4:]), np.uint8),
    ]
    loaded = load_onnx(file)
    assert loaded.takes_frames == frames
    assert loaded.logits(np.zeros(right, np.uint8)).shape == (1, 5)
    for images in wrong:
        with pytest.raises(UserError) as expected:
            graph.run(images)
        for execute in (loaded.logits, loaded.outputs):
            with pytest.raises(UserError) as found:
                execute(images)
            assert str(found.value) == str(expected.value)


def test_a_damaged_image_is_named(tmp_path):
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    with pytest.raises(UserError, match=r"broken\.png"):
        open_image(tmp_path / "broken.png")


@pytest.mark.parametrize(("package", "extra"), [("onnxruntime", "runtime"), ("openvino", "export")])
def test_a_missing_runtime_names_the_extra_that_installs_it(monkeypatch, package, extra):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UserError, match=rf"pip install 'qsdformer\[{extra}\]'"):
        sessions.require(package)
