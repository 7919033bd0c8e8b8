from __future__ import annotations

import csv
import functools
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from variants import info_for

from qsdformer.cli import run
from qsdformer.graph.artifact import export
from qsdformer.models.checkpoint import save_checkpoint

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from qsdformer.graph.lowering import lower  # noqa: E402
from qsdformer.runtimes import bench, native  # noqa: E402
from qsdformer.runtimes.ann_onnx import ann_model, quantised_ann  # noqa: E402
from qsdformer.runtimes.bench import Subject, measure, peak_memory, timed  # noqa: E402
from qsdformer.runtimes.sessions import onnxruntime_kernels, onnxruntime_session  # noqa: E402


@pytest.fixture
def checkpoint(lively, tmp_path):
    model = lively(fully_spiking=True)
    save_checkpoint(tmp_path / "model.ckpt", model, info_for(model))
    return tmp_path / "model.ckpt"


def test_timings_are_in_milliseconds_and_leave_warm_up_out():
    calls = []

    def sleep(pixels):
        calls.append(len(pixels))
        time.sleep(0.02)

    def spin(pixels):
        end = time.process_time() + 0.02
        while time.process_time() < end:
            pass

    subjects = [
        Subject(network=f.__name__, runtime="none", time=functools.partial(timed, f))
        for f in (sleep, spin)
    ]
    sleeping, spinning = measure(subjects, np.zeros((4, 1, 2, 2), np.uint8), 5, 1)
    assert calls == [4] * 7
    assert 20 <= sleeping.lower_ms <= sleeping.median_ms <= sleeping.upper_ms
    assert sleeping.cpu_ms < 10 < 20 <= spinning.cpu_ms
    assert sleeping.images_per_second == pytest.approx(4e3 / sleeping.median_ms)
    assert (sleeping.batch, sleeping.runs, sleeping.threads) == (4, 5, 1)


@pytest.mark.slow
def test_the_command_prints_every_network_and_writes_them_to_a_file(checkpoint, tmp_path, capsys):
    out = tmp_path / "bench.csv"
    words = ["--batch-size", "1", "2", "--runs", "2", "--threads", "1", "2", "--csv", str(out)]
    assert run(["bench", str(checkpoint), *words]) == 0
    text = capsys.readouterr().out
    for word in (
        "fake-quantised",
        "integer",
        "fp32",
        "ANN, int8",
        "1 thread,",
        "2 threads",
        "reference",
    ):
        assert word in text
    with out.open() as file:
        rows = list(csv.DictReader(file))
    assert {row["batch"] for row in rows} == {"1", "2"}
    assert {row["threads"] for row in rows} == {"1", "2"}
    keys = {(r["network"], r["runtime"], r["batch"], r["threads"]) for r in rows}
    assert len(rows) == len(keys)
    assert ("native" in {row["runtime"] for row in rows}) == native.available()
    assert ("native engine" in text) == native.available()
    ours = {r["network"] for r in rows if r["runtime"] == "ONNX Runtime"}
    assert ours == {"spiking, integer", "spiking, fp32", "ANN, fp32", "ANN, int8"}


def test_bench_refuses_an_ann(make_model, tmp_path, capsys):
    model = make_model(neuron="relu").eval()
    save_checkpoint(tmp_path / "ann.ckpt", model, info_for(model))
    assert run(["bench", str(tmp_path / "ann.ckpt")]) == 2
    assert "is an ANN" in capsys.readouterr().err


@pytest.mark.slow
def test_the_quantised_ann_runs_on_integer_kernels(make_model):
    data = ann_model(make_model(), (3, 32, 32))
    assert onnxruntime_session(data, 1).get_inputs()[0].type == "tensor(float)"
    image = np.zeros((1, 3, 32, 32), np.float32)
    before, after = (
        onnxruntime_kernels(d, image) for d in (data, quantised_ann(data, (3, 32, 32)))
    )
    assert not before.integer
    assert after.integer["QLinearConv"] > 20


@pytest.mark.slow
def test_an_artifact_needs_less_than_half_the_memory_of_pytorch(checkpoint, lively, tmp_path):
    model = lively(fully_spiking=True)
    export(model, tmp_path / "model.qsd", info=info_for(model))
    artifact = peak_memory("artifact", tmp_path / "model.qsd", (3, 32, 32))
    assert 10 < artifact < peak_memory("checkpoint", checkpoint, (3, 32, 32)) / 2


def test_every_subject_runs_its_own_model_on_the_threads_asked_for(lively, monkeypatch):
    started = []

    def start(data, threads):
        started.append((data, threads))
        return lambda pixels, names: {}

    monkeypatch.setattr(bench, "_installed", lambda: ["ONNX Runtime"])
    arrangement, _ = bench.RUNTIMES["ONNX Runtime"]
    monkeypatch.setitem(bench.RUNTIMES, "ONNX Runtime", (arrangement, start))
    model = lively(fully_spiking=True)
    found = bench.make_subjects(None, lower(model, info_for(model)), 3)
    labels = [subject.network for subject in found if subject.runtime == "ONNX Runtime"]
    assert labels == [bench.INTEGER, bench.FLOAT]
    for label, (data, threads) in zip(labels, started, strict=True):
        graph = onnx.load_from_string(data).graph
        small = any(t.data_type == onnx.TensorProto.INT8 for t in graph.initializer)
        assert small == (label == bench.INTEGER)
        assert threads == 3
    for subject in found:
        if subject.runtime == "native":
            assert subject.time.args[0].info.threads == 3


def test_the_twins_are_told_apart(lively, monkeypatch):
    started = []

    def start(data, threads):
        started.append({node.op_type for node in onnx.load_from_string(data).graph.node})
        return lambda pixels: {}

    monkeypatch.setattr(bench, "_installed", lambda: ["ONNX Runtime"])
    monkeypatch.setattr(bench, "_eager", lambda *_: None)
    arrangement, _ = bench.RUNTIMES["ONNX Runtime"]
    monkeypatch.setitem(bench.RUNTIMES, "ONNX Runtime", (arrangement, start))
    model = lively(fully_spiking=True)
    found = bench.make_subjects(model, lower(model, info_for(model)), 1)
    labels = [subject.network for subject in found if subject.runtime == "ONNX Runtime"]
    quantised = ["QuantizeLinear" in kinds for kinds in started]
    assert dict(zip(labels, quantised, strict=True))["ANN, fp32"] is False
    assert dict(zip(labels, quantised, strict=True))["ANN, int8"] is True


def test_pytorch_has_the_threads_that_the_table_says(monkeypatch):
    seen = []
    monkeypatch.setattr(torch, "set_num_threads", seen.append)

    class Ended:
        def recv_bytes(self):
            raise EOFError

    bench._serve(Ended(), 2)
    assert seen == [2]


UNGUARDED = """
import torch
from qsdformer.data.preprocessing import Preprocessing
from qsdformer.errors import UserError
from qsdformer.runtimes.bench import _eager

pre = Preprocessing(channels=1, image_size=(1, 1), mean=(0.5,), std=(0.5,))
try:
    _eager(torch.nn.Linear(1000, 1000), pre, 1)
except UserError as error:
    print(error)
"""


def test_a_program_that_its_process_of_pytorch_runs_again_is_told_so(tmp_path):
    (tmp_path / "unguarded.py").write_text(UNGUARDED)
    command = [sys.executable, str(tmp_path / "unguarded.py")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("which that process runs again?\n")


def test_the_table_has_each_time_in_its_column():
    timing = bench.Timing(
        network="n",
        runtime="r",
        batch=4,
        threads=1,
        runs=5,
        median_ms=2.0,
        lower_ms=1.0,
        upper_ms=3.0,
        cpu_ms=7.0,
        images_per_second=2000.0,
    )
    cells = [next(iter(column.cells)) for column in bench.table([timing]).columns]
    assert cells == ["n", "r", "4", "2.0 ms", "1.0 - 3.0", "7.0 ms", "2000"]
