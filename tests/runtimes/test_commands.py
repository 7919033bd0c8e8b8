from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from data.cifar_files import write_class_folders, write_tiny_cifar10
from variants import info_for, random_pixels

import qsdformer
from qsdformer.cli import run
from qsdformer.data import DataConfig, DataModule
from qsdformer.graph.artifact import is_artifact, load_artifact
from qsdformer.graph.lowering import lower
from qsdformer.models.checkpoint import save_checkpoint
from qsdformer.runtimes import native
from qsdformer.runtimes.executors import EXECUTORS, Executor
from qsdformer.tasks.stored import data_config, stored_data

DIGITS = ["--data.name", "digits", "--limit", "12", "--batch-size", "8"]
NEURON = "stages.0.blocks.0.neuron1"


@pytest.fixture(scope="module")
def checkpoint(lively, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small untrained model for the digits."""
    path = tmp_path_factory.mktemp("checkpoint") / "model.ckpt"
    info = DataModule(DataConfig(name="digits"), batch_size=8).info
    save_checkpoint(path, lively(in_channels=1, num_classes=10), info)
    return path


def test_verify_prints_a_row_for_each_execution_and_exits_with_0(checkpoint, capsys):
    only = ["--executor", "binary spikes", "--executor", "integer"]
    assert run(["verify", str(checkpoint), *DIGITS, *only]) == 0
    text = capsys.readouterr().out
    for word in ("multi-bit", "binary spikes", "integer", "12 images", "accuracy", "latency"):
        assert word in text
    assert "broken" not in text


@pytest.mark.parametrize(("bits", "least"), [(16, "98.0%"), (32, "99.9%")])
def test_verify_says_which_promise_it_applies(bits, least, checkpoint, capsys, monkeypatch):
    monkeypatch.setattr("qsdformer.runtimes.verify.ENOUGH_COMPARED", 12)
    run(["verify", str(checkpoint), *DIGITS, "--executor", "integer", "--membrane-bits", str(bits)])
    shown = " ".join(capsys.readouterr().out.split())
    assert f"promised with {bits}-bit membranes: {least} same class" in shown


def test_verify_exits_with_1_if_a_promise_is_broken(checkpoint, capsys, monkeypatch):
    def miscounting(model, graph):
        reference = EXECUTORS["multi-bit"].factory(model, graph)

        def execute(pixels, collect):
            logits, counts = reference(pixels, collect)
            return logits, counts and {**counts, NEURON: counts[NEURON] + 1}

        return execute

    executor = Executor(name="integer", factory=miscounting, equal_counts=True)
    monkeypatch.setitem(EXECUTORS, "integer", executor)
    assert run(["verify", str(checkpoint), *DIGITS, "--executor", "integer"]) == 1
    assert "spike counts" in capsys.readouterr().out


def test_verify_refuses_data_of_other_classes_and_missing_files(lively, tmp_path, capsys):
    assert run(["verify", str(tmp_path / "none.ckpt"), *DIGITS]) == 2
    assert "no checkpoint" in capsys.readouterr().err
    model = lively()
    save_checkpoint(tmp_path / "five.ckpt", model, info_for(model))
    assert run(["verify", str(tmp_path / "five.ckpt"), *DIGITS]) == 2
    assert "5 classes, but the dataset has 10" in capsys.readouterr().err


def test_export_writes_an_artifact_that_loads(checkpoint, tmp_path, capsys):
    out = tmp_path / "model.qsd"
    assert run(["export", str(checkpoint), str(out)]) == 0
    assert "times smaller" in capsys.readouterr().out
    model = qsdformer.load(checkpoint)
    assert is_artifact(out)
    assert not is_artifact(checkpoint)
    assert not is_artifact(tmp_path / "none")
    assert load_artifact(out) == lower(model)


def test_export_to_a_folder_that_cannot_be_made_says_so(checkpoint, tmp_path, capsys):
    (tmp_path / "file").write_text("in the way")
    assert run(["export", str(checkpoint), str(tmp_path / "file" / "model.qsd")]) == 2
    assert "cannot write" in capsys.readouterr().err


def test_the_public_names_work_as_documented(lively, tmp_path):
    model = lively()
    graph = qsdformer.lower(model, info_for(model))
    qsdformer.export(model, tmp_path / "model.qsd", info=info_for(model))
    assert load_artifact(tmp_path / "model.qsd") == graph
    report = qsdformer.verify(model, random_pixels(model), info_for(model), executors=["integer"])
    assert report.ok


def test_an_artifact_runs_without_torch(checkpoint, tmp_path):
    out = tmp_path / "model.qsd"
    run(["export", str(checkpoint), str(out)])
    pixels = np.random.default_rng(0).integers(0, 256, (2, 1, 32, 32), np.uint8)
    np.save(tmp_path / "pixels.npy", pixels)
    code = f"""
import sys, numpy
from qsdformer.graph.artifact import load_artifact
logits = load_artifact({str(out)!r}).run(numpy.load({str(tmp_path / "pixels.npy")!r}))
assert not {{"torch", "lightning", "timm"}} & set(sys.modules), "heavy imports"
print(logits.tolist())
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=600
    )
    assert done.stdout.strip() == str(load_artifact(out).run(pixels).tolist())


@pytest.fixture(scope="module")
def exported(checkpoint, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The files that `qsd export` makes of the checkpoint, by suffix."""
    pytest.importorskip("onnxruntime")
    folder = tmp_path_factory.mktemp("exported")
    files = {suffix: folder / f"model{suffix}" for suffix in (".qsd", ".onnx")}
    for file in files.values():
        assert run(["export", str(checkpoint), str(file)]) == 0
    return files


def figures(path: Path, capsys, *words: str) -> dict[str, float]:
    capsys.readouterr()
    assert run(["eval", str(path), "--data.name", "digits", "--json", *words]) == 0
    values = json.loads(capsys.readouterr().out)
    return {name: values[name] for name in ("top1", "top5", "images")}


def test_eval_of_exported_files_gives_the_figures_of_the_checkpoint(checkpoint, exported, capsys):
    expected = figures(checkpoint, capsys)
    assert expected["images"] == 360
    for file in exported.values():
        # A count may differ by rounding, and so may a class now and then.
        assert figures(file, capsys) == pytest.approx(expected, abs=0.006)
        assert figures(file, capsys, "--limit", "50")["images"] == 50


@pytest.mark.skipif(not native.available(), reason="the native engine was not built")
def test_eval_of_an_artifact_reads_the_activity_that_the_checkpoint_has(
    checkpoint, exported, capsys
):
    found = {}
    for file in (checkpoint, exported[".qsd"]):
        capsys.readouterr()
        assert run(["eval", str(file), *DIGITS, "--activity", "--json", "--threads", "1"]) == 0
        streams = capsys.readouterr()
        assert streams.err.count("\n") == (file != checkpoint)  # which runtime it was
        found[file] = json.loads(streams.out)["activity"]
    expected = found[checkpoint]
    assert set(found[exported[".qsd"]]) == set(expected)
    for name, shares in found[exported[".qsd"]].items():
        # A count may differ by rounding.
        assert shares == pytest.approx(expected[name], abs=2e-3), name


def test_activity_of_an_exported_file_needs_the_native_engine(exported, capsys, monkeypatch):
    monkeypatch.setenv("QSD_NATIVE_LIBRARY", "none")
    for suffix, message in ((".onnx", "or a .qsd file"), (".qsd", "QSD_NATIVE_LIBRARY=none")):
        capsys.readouterr()
        assert run(["eval", str(exported[suffix]), *DIGITS, "--activity"]) == 2
        error = capsys.readouterr().err
        assert error.startswith("qsd: error: activity is measured on a checkpoint")
        assert message in error
        assert error.count("\n") == 1


def test_a_checkpoint_is_known_by_its_content_whatever_its_name(checkpoint, tmp_path, capsys):
    expected = figures(checkpoint, capsys)
    for name in ("model.qsd", "model.onnx"):
        file = tmp_path / name
        file.write_bytes(checkpoint.read_bytes())
        assert figures(file, capsys) == expected


def test_verify_compares_the_runtimes_of_an_artifact(exported, capsys):
    assert run(["verify", str(exported[".qsd"]), *DIGITS, "--executor", "ONNX Runtime"]) == 0
    text = capsys.readouterr().out
    assert "ONNX Runtime" in text
    assert "multi-bit" not in text
    words = ["verify", str(exported[".qsd"]), *DIGITS, "--executor", "binary spikes"]
    assert run(words) == 2
    assert "'binary spikes' needs a checkpoint" in capsys.readouterr().err


def test_bench_times_exported_files(exported, capsys):
    words = ["--batch-size", "1", "--runs", "1", "--threads", "1"]
    assert run(["bench", str(exported[".qsd"]), *words]) == 0
    assert "spiking, integer" in capsys.readouterr().out
    assert run(["bench", str(exported[".onnx"]), *words]) == 0
    assert "as exported" in capsys.readouterr().out


@pytest.mark.parametrize("suffix", [".qsd", ".onnx"])
@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("eval {file}", "give --data.name"),
        ("eval {file} --data.name digits --device cuda", "run on the CPU"),
        ("eval {file} --data.name digits --image_size 16", "takes images of 32 pixels, not 16"),
        ("predict {file} x.png --device cuda", "run on the CPU"),
        ("eval {file} --data.root {file}", "image folder {file} does not exist"),
        ("bench {file} --image-size 16", "takes images of 32 pixels"),
        ("analyze {file}", "a checkpoint is needed here"),
        ("report {file}", "a checkpoint is needed here"),
        ("export {file} {file}.x", "a checkpoint is needed here"),
        ("train digits --resume {file} --output {file}.run", "a checkpoint is needed here"),
    ],
)
def test_what_cannot_use_an_exported_file_says_what_it_is(suffix, words, message, exported, capsys):
    file = exported[suffix]
    capsys.readouterr()
    assert run(words.format(file=file).split()) == 2
    error = capsys.readouterr().err
    assert message.format(file=file) in error
    assert error.count("\n") == 1
    assert "damaged" not in error


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("verify {file} --data.name digits --membrane-bits 16", "exported and has its membranes"),
        ("verify {file} --data.name digits --device cuda", "run on the CPU"),
        ("simulate {file} --data.name digits --membrane-bits 16", "exported and has its membranes"),
        ("export {checkpoint} x.onnx --membrane-bits 16", "the membranes of ONNX are float32"),
        ("export {checkpoint} x.qsd --runtime openvino", "--runtime is for ONNX files"),
    ],
)
def test_an_option_without_use_is_refused(words, message, exported, checkpoint, capsys):
    capsys.readouterr()
    assert run(words.format(file=exported[".qsd"], checkpoint=checkpoint).split()) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_an_exported_file_under_the_other_suffix_is_named_for_what_it_is(exported, capsys):
    from qsdformer.errors import UserError
    from qsdformer.runtimes.onnx_predict import load_onnx

    with pytest.raises(UserError, match="an ONNX file of qsd export, not an artifact"):
        load_artifact(exported[".onnx"])
    with pytest.raises(UserError, match="not ONNX"):
        load_onnx(exported[".qsd"])
    assert run(["verify", str(exported[".onnx"]), *DIGITS]) == 2
    assert "one way of execution" in capsys.readouterr().err


@pytest.fixture
def imported(lively, tmp_path: Path) -> Path:
    """A checkpoint as `qsd import-reference` makes them: it says nothing of its images."""
    path = tmp_path / "imported.ckpt"
    save_checkpoint(path, lively(num_classes=2))
    return path


def accuracy(capsys, path: Path, root: Path, *words: str) -> tuple[float, int]:
    capsys.readouterr()
    code = run(["eval", str(path), "--data.root", str(root), "--json", *words])
    streams = capsys.readouterr()
    assert code == 0, streams.err
    values = json.loads(streams.out)
    return values["top1"], values["images"]


def test_an_imported_checkpoint_is_exported_by_size_and_evaluated_in_any_folder(
    imported, image_root, tmp_path, capsys
):
    pytest.importorskip("onnxruntime")
    size = ["--data.image_size", "32"]
    expected = accuracy(capsys, imported, image_root, *size)
    for suffix in (".qsd", ".onnx"):
        file = tmp_path / f"model{suffix}"
        assert run(["export", str(imported), str(file), *size]) == 0
        assert accuracy(capsys, file, image_root) == expected
        assert accuracy(capsys, file, image_root, "--data.split", "train")[1] == 12
    words = [str(tmp_path / "model.qsd"), "--data.root", str(image_root)]
    assert run(["verify", *words, "--executor", "integer"]) == 0


def test_training_images_are_not_needed_where_nothing_is_trained(
    imported, image_root, tmp_path, capsys
):
    size = ["--data.image_size", "32"]
    expected = accuracy(capsys, imported, image_root, *size)
    shutil.copytree(image_root / "val", tmp_path / "val")
    assert accuracy(capsys, imported, tmp_path, *size) == expected
    assert (
        run(["export", str(imported), str(tmp_path / "it.qsd"), "--data.root", str(tmp_path)]) == 0
    )


def test_keys_of_training_do_not_keep_a_network_from_other_images(image_root):
    recipe = {"data": {"name": "cifar10", "crop_padding": 4, "hflip": True, "mixup": 0.2}}
    keys = {"data.name": "image_folder", "data.root": str(image_root)}
    config = data_config("it", recipe, keys, None)
    assert (config.name, config.crop_padding, config.mixup) == ("image_folder", 0, 0.0)


def test_a_classifier_of_images_that_are_not_square_is_exported_and_measured(
    imported, image_root, tmp_path, capsys
):
    file, size = tmp_path / "model.qsd", "32,48"
    assert run(["export", str(imported), str(file), "--image-size", size]) == 0
    assert load_artifact(file).preprocessing.sides == (32, 48)
    keys = ["--data.image_size", f"[{size}]"]
    assert accuracy(capsys, file, image_root) == accuracy(capsys, imported, image_root, *keys)
    words = [str(file), "--data.root", str(image_root)]
    assert run(["verify", *words, "--executor", "integer"]) == 0


def test_what_an_imported_checkpoint_lacks_is_told_by_options(
    imported, image_root, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr("qsdformer.runtimes.bench.peak_memory", lambda *words: 0.0)
    out = tmp_path / "model.qsd"
    named = ["--data.root", str(image_root), "--image-size", "32"]
    assert run(["export", str(imported), str(out), *named]) == 0
    assert load_artifact(out).class_names == ("cat", "dog")
    words = ["--batch-size", "1", "--runs", "1", "--threads", "1", "--no-ann"]
    capsys.readouterr()
    assert run(["bench", str(imported), *words]) == 2
    assert "--image-size N" in capsys.readouterr().err
    assert run(["bench", str(imported), *words, "--image-size", "32"]) == 0


def test_an_image_size_that_is_given_is_not_ignored(image_root):
    data = DataConfig(name="image_folder", root=str(image_root), image_size=32)
    info = DataModule(data, batch_size=1).info
    for size, keys in ((32, {}), (48, {"data.image_size": "48"})):
        module = stored_data("it", {"data": dataclasses.asdict(data)}, keys, info, 2)
        images, _ = next(iter(module.val_dataloader()))
        assert images.shape == (2, 3, size, size)
        assert module.info.image_size == size


def test_an_artifact_becomes_an_onnx_file(exported, tmp_path, capsys):
    out = tmp_path / "again.onnx"
    assert run(["export", str(exported[".qsd"]), str(out)]) == 0
    assert "made of" in capsys.readouterr().out
    assert out.read_bytes() == exported[".onnx"].read_bytes()
    assert run(["export", str(exported[".qsd"]), str(out), "--image-size", "16"]) == 2
    assert "leave out options on them" in capsys.readouterr().err
    assert run(["export", str(exported[".qsd"]), str(tmp_path / "again.qsd")]) == 2
    assert "a .qsd file of qsd export" in capsys.readouterr().err


def test_python_loads_an_onnx_file_too(exported):
    pixels = np.random.default_rng(0).integers(0, 256, (2, 1, 8, 8), np.uint8)
    graph, model = (qsdformer.load(exported[suffix]) for suffix in (".qsd", ".onnx"))
    size = graph.preprocessing.sides
    pixels = np.random.default_rng(0).integers(0, 256, (2, 1, *size), np.uint8)
    assert np.array_equal(model.logits(pixels).argmax(1), graph.logits(pixels).argmax(1))


@pytest.mark.parametrize("count", ["257", "99999999999"])
def test_absurdly_many_threads_are_one_line(exported, count, capsys):
    for suffix in (".qsd", ".onnx"):
        assert run(["eval", str(exported[suffix]), *DIGITS, "--threads", count]) == 2
        assert "must be at most 256" in capsys.readouterr().err


@pytest.mark.parametrize("layout", ["archive", "folders"])
def test_a_network_of_cifars_classes_finds_the_published_archive_and_class_folders(
    lively, layout, tmp_path, capsys
):
    root = tmp_path / "root"
    made = {"archive": write_tiny_cifar10, "folders": write_class_folders}[layout](root)
    config = DataConfig(name="cifar10", root=str(made))
    info = DataModule(config, batch_size=8).info
    save_checkpoint(tmp_path / "model.ckpt", lively(in_channels=3, num_classes=10), info)
    assert run(["export", str(tmp_path / "model.ckpt"), str(tmp_path / "model.qsd")]) == 0
    found = [accuracy(capsys, tmp_path / f"model{s}", made) for s in (".ckpt", ".qsd")]
    assert found[0] == found[1]
    assert found[0][1] == {"archive": 8, "folders": 10}[layout]
