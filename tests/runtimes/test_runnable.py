"""What runs a .qsd file: the native engine, and what there is without it."""

from __future__ import annotations

import copy
import dataclasses
import importlib.util
import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from variants import info_for

import qsdformer as qsd
from qsdformer.cli import run
from qsdformer.errors import UserError
from qsdformer.graph.artifact import export, load_artifact
from qsdformer.graph.integer import IntegerGraph
from qsdformer.graph.lowering import lower
from qsdformer.runtimes import native, runnable
from qsdformer.runtimes.runnable import RunnableGraph

OPTIONS = native._Options
needs_native = pytest.mark.skipif(not native.available(), reason="the native engine was not built")


@pytest.fixture
def pixels(small_graph: IntegerGraph) -> np.ndarray:
    """A few random images for the small graph."""
    size = small_graph.preprocessing.image_size
    return np.random.default_rng(0).integers(0, 256, (6, 3, size, size), np.uint8)


@pytest.fixture
def path(small_graph: IntegerGraph, tmp_path: Path) -> Path:
    """The small graph as an artifact."""
    export(small_graph, tmp_path / "model.qsd")
    return tmp_path / "model.qsd"


@pytest.fixture
def without_native(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if the engine had not been built."""
    monkeypatch.setenv("QSD_NATIVE_LIBRARY", "none")


def without(monkeypatch: pytest.MonkeyPatch, *packages: str) -> None:
    """As if these packages were not installed."""
    find = importlib.util.find_spec

    def find_other(name: str, package: str | None = None):
        return None if name in packages else find(name, package)

    monkeypatch.setattr(importlib.util, "find_spec", find_other)


@needs_native
def test_a_loaded_artifact_runs_in_the_native_engine(path: Path, pixels: np.ndarray):
    graph, expected = qsd.load(path, threads=2), load_artifact(path)
    assert isinstance(graph, RunnableGraph)
    assert isinstance(graph.engine, native.NativeModel)
    assert graph.runtime == f"the native engine ({graph.engine.isa}, 2 threads)"
    logits = graph.run(pixels)
    assert logits.dtype == np.int32
    assert np.array_equal(logits, expected.run(pixels))
    assert np.array_equal(graph.logits(pixels), expected.logits(pixels))
    assert graph.predict(pixels) == expected.predict(pixels)
    for found, value in zip(
        graph.run_with_counts(pixels)[1].items(),
        expected.run_with_counts(pixels)[1].items(),
        strict=True,
    ):
        assert found[0] == value[0]
        assert np.array_equal(found[1], value[1])
    assert np.array_equal(
        graph.run_outputs(pixels)["logits"], expected.run_outputs(pixels)["logits"]
    )


def test_a_loaded_artifact_is_the_graph_that_was_exported(
    path: Path, small_graph: IntegerGraph, pixels: np.ndarray, monkeypatch: pytest.MonkeyPatch
):
    graph = qsd.load(path)
    assert graph == small_graph
    assert small_graph == graph
    graph.run(pixels)
    other = dataclasses.replace(graph, class_names=tuple("vwxyz"))
    assert other != graph
    assert other.predict(pixels)[0][0][0] in "vwxyz"
    assert type(graph.reference) is IntegerGraph
    for again in (pickle.loads(pickle.dumps(graph)), copy.deepcopy(graph)):
        assert again == graph
        assert np.array_equal(again.run(pixels), small_graph.run(pixels))
    monkeypatch.setattr(RunnableGraph, "run_results", None)  # or an error: only the reference runs
    report = qsd.verify(graph, torch.from_numpy(pixels), executors=["integer"])
    assert report.rows[0].logit_difference == 0


def limit_memory(monkeypatch: pytest.MonkeyPatch, most: int) -> None:
    """Models in the native engine may take `most` bytes from now on."""
    monkeypatch.setattr(native, "_Options", lambda threads, isa, _: OPTIONS(threads, isa, most))


@pytest.fixture
def memory_for_two_threads(small_graph: IntegerGraph, monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory that suffices for the small graph on two threads and on no more, and 16 cores."""
    too_little, enough = 0, 2**30
    while enough - too_little > 1:
        middle = (too_little + enough) // 2
        limit_memory(monkeypatch, middle)
        try:
            native.of_graph(small_graph, 2)
            enough = middle
        except UserError:
            too_little = middle
    limit_memory(monkeypatch, enough)
    monkeypatch.setattr(runnable, "_cores", lambda: 16)


@needs_native
def test_threads_that_were_not_asked_for_are_halved_until_memory_suffices(
    small_graph: IntegerGraph, pixels: np.ndarray, memory_for_two_threads: None, monkeypatch
):
    graph = runnable.runnable(small_graph)
    assert graph.runtime.endswith(", 2 threads)")
    assert np.array_equal(graph.run(pixels), small_graph.run(pixels))
    monkeypatch.setattr("torch.get_num_threads", lambda: 16)
    assert qsd.verify(small_graph, torch.from_numpy(pixels), executors=["native"]).ok


@needs_native
def test_threads_that_were_asked_for_and_need_too_much_memory_are_named(
    path: Path, pixels: np.ndarray, memory_for_two_threads: None
):
    assert qsd.load(path, threads=2).run(pixels).shape == (6, 5)
    for load in (lambda: qsd.load(path, threads=16).engine, lambda: native.load(path, 16)):
        with pytest.raises(UserError, match=r"memory.* on 16 threads: try fewer \(--threads\)"):
            load()


@needs_native
def test_a_network_that_one_thread_has_no_memory_for_is_refused(
    small_graph: IntegerGraph, monkeypatch: pytest.MonkeyPatch
):
    limit_memory(monkeypatch, 1000)
    with pytest.raises(UserError, match=r"more memory than allowed or there is$"):
        _ = runnable.runnable(small_graph).engine


def test_without_the_engine_a_loaded_artifact_runs_in_the_reference(
    path: Path, pixels: np.ndarray, without_native: None
):
    graph = qsd.load(path)
    assert type(graph.engine) is IntegerGraph
    assert graph.runtime.startswith("the reference, in NumPy: the native engine is not wanted")
    assert np.array_equal(graph.run(pixels), load_artifact(path).run(pixels))


@pytest.mark.parametrize("runtime", ["OpenVINO", "ONNX Runtime"])
def test_without_the_engine_commands_take_another_runtime_to_the_same_integers(
    runtime: str,
    small_graph: IntegerGraph,
    pixels: np.ndarray,
    without_native: None,
    monkeypatch: pytest.MonkeyPatch,
):
    pytest.importorskip("onnxruntime" if runtime == "ONNX Runtime" else "openvino")
    if runtime == "ONNX Runtime":
        without(monkeypatch, "openvino")
    graph = runnable.runnable(small_graph, 1, exact=False)
    assert graph.runtime.startswith(f"{runtime} (1 thread): the native engine is not wanted")
    assert np.array_equal(graph.run(pixels), small_graph.run(pixels))
    assert graph.predict(pixels) == small_graph.predict(pixels)
    assert list(graph.run_with_counts(pixels)[1]) == list(small_graph.run_with_counts(pixels)[1])
    with pytest.raises(UserError, match="shape"):
        graph.run(pixels[:, :, 1:])


def test_frames_are_run_without_the_engine_too(lively, without_native: None):
    pytest.importorskip("openvino")
    model = lively(time_steps=4)
    graph = lower(model, info_for(model))
    pixels = np.random.default_rng(0).integers(0, 256, (4, 2, 3, 32, 32), np.uint8)
    found = runnable.runnable(graph, 1, exact=False)
    assert np.array_equal(found.run(pixels), graph.run(pixels))
    assert np.array_equal(found.run(pixels[0]), graph.run(pixels[0]))


def test_without_any_runtime_the_reference_runs_and_says_what_is_missing(
    small_graph: IntegerGraph, without_native: None, monkeypatch: pytest.MonkeyPatch
):
    without(monkeypatch, "openvino", "onnxruntime")
    graph = runnable.runnable(small_graph, exact=False)
    assert type(graph.engine) is IntegerGraph
    assert "OpenVINO needs the package openvino" in graph.runtime
    assert "ONNX Runtime needs the package onnxruntime" in graph.runtime
    assert "\n" not in graph.runtime


def test_a_runtime_that_does_not_start_is_passed_over(
    small_graph: IntegerGraph, without_native: None, monkeypatch: pytest.MonkeyPatch
):
    def broken(model: object, threads: int):
        raise UserError("it is broken")

    monkeypatch.setitem(runnable.RUNTIMES, "OpenVINO", ("openvino", broken))
    monkeypatch.setitem(runnable.RUNTIMES, "ONNX Runtime", ("onnxruntime", broken))
    graph = runnable.runnable(small_graph, exact=False)
    assert type(graph.engine) is IntegerGraph
    assert "it is broken" in graph.runtime


def test_a_library_that_was_named_and_is_not_there_is_an_error(
    small_graph: IntegerGraph, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    monkeypatch.setenv("QSD_NATIVE_LIBRARY", str(tmp_path / "none.so"))
    with pytest.raises(UserError, match="no such file"):
        runnable.runnable(small_graph).run(np.zeros((1, 3, 32, 32), np.uint8))
    (tmp_path / "none.so").write_text("not a library")
    with pytest.raises(UserError, match="cannot use the native engine"):
        native.available()


def test_commands_say_once_what_runs_a_file(
    path: Path, small_graph: IntegerGraph, tmp_path: Path, capsys, monkeypatch
):
    image = tmp_path / "image.png"
    Image.fromarray(np.zeros((32, 32, 3), np.uint8)).save(image)
    words = ["predict", str(path), str(image), str(image), "--threads", "1", "--json"]
    shown = []
    for library in (None, "none"):
        if library:
            monkeypatch.setenv("QSD_NATIVE_LIBRARY", library)
        capsys.readouterr()
        assert run(words) == 0
        streams = capsys.readouterr()
        [line] = streams.err.splitlines()
        assert line.startswith("note: runs in ")
        assert ("the native engine (" in line) == native.available()
        shown.append(json.loads(streams.out))
    assert shown[0] == shown[1]
