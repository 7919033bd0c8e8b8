from __future__ import annotations

import dataclasses
import io
import time

import numpy as np
import pytest
import torch
from variants import info_for, random_pixels

from qsdformer.data import DataInfo
from qsdformer.errors import UserError
from qsdformer.graph.lowering import lower
from qsdformer.graph.spikes import trace_quantised
from qsdformer.nn import IELIF, QuantConv2d
from qsdformer.runtimes import executors
from qsdformer.runtimes.executors import EXECUTORS, Executor, normalised, register, to_pixels
from qsdformer.runtimes.exporting import export
from qsdformer.runtimes.verify import Report, Row, _latency, verify


def test_all_executions_of_a_model_agree(lively):
    model = lively()
    batches = [(random_pixels(model, 4, seed), torch.arange(4) % 5) for seed in range(2)]
    seen = []
    report = verify(model, batches, info_for(model), on_images=seen.append)
    rows = {row.name: row for row in report.rows}
    assert list(rows)[:3] == ["multi-bit", "binary spikes", "integer"]
    assert report.ok
    assert report.images == sum(seen) == 8
    assert rows["multi-bit"].logit_difference == rows["binary spikes"].logit_difference == 0
    assert rows["binary spikes"].differing == 0
    assert rows["binary spikes"].counts == rows["integer"].counts > 10_000
    assert 0 < rows["integer"].logit_difference < 1e-2
    assert all(0 <= row.accuracy <= 1 and row.latency_ms > 0 for row in report.rows)


def test_normalised_images_are_verified_on_the_pixels_they_came_from(lively):
    model = lively()
    pixels = random_pixels(model)
    pre = lower(model, info_for(model)).preprocessing
    assert np.array_equal(to_pixels(normalised(pixels.numpy(), pre), pre), pixels.numpy())
    report = verify(model, normalised(pixels.numpy(), pre), info_for(model), executors=["integer"])
    assert [row.name for row in report.rows] == ["multi-bit", "integer"]
    assert all(row.accuracy is None for row in report.rows)


def test_all_executors_of_a_model_share_one_trace_of_each_shape(lively, monkeypatch):
    traced = []

    def counted(model, shape):
        traced.append(shape[0])
        return trace_quantised(model, shape)

    monkeypatch.setattr("qsdformer.runtimes.executors.trace_quantised", counted)
    model = lively()
    batches = [(random_pixels(model, 4, seed), torch.zeros(4).long()) for seed in range(2)]
    verify(model, batches, info_for(model))
    assert sorted(traced) == [1, 4]


def _broken(model, graph):
    reference = executors._multi_bit(model, graph)

    def run(pixels, collect):
        logits, counts = reference(pixels, collect)
        if counts is None:
            return logits, None
        counts["neuron"] = counts["neuron"] + 1
        return -logits, counts

    return run


def test_a_broken_promise_is_named_and_fails_the_report(lively, monkeypatch):
    monkeypatch.setattr("qsdformer.runtimes.verify.ENOUGH_COMPARED", 4)
    monkeypatch.setattr("qsdformer.runtimes.executors.EXECUTORS", EXECUTORS)
    model = lively()
    chosen = {
        "counts": Executor(name="counts", factory=_broken, equal_counts=True),
        "classes": Executor(name="classes", factory=_broken, agreement=0.999),
        "none": Executor(name="none", factory=_broken),
    }
    for name, executor in chosen.items():
        monkeypatch.setitem(EXECUTORS, name, executor)
    report = verify(model, random_pixels(model, 4), info_for(model), executors=list(chosen))
    broken = {row.name: row.broken for row in report.rows}
    assert broken["counts"] == "broken: spike counts differ"
    assert broken["classes"] == "broken: below 99.9% same class"
    assert broken["none"] is None
    assert broken["multi-bit"] is None
    assert not report.ok


def _wrong_on_first(count):
    """An executor that gives the first images of a batch another class."""

    def factory(model, graph):
        reference = executors._multi_bit(model, graph)

        def run(pixels, collect):
            logits, counts = reference(pixels, collect)
            return np.concatenate([-logits[:count], logits[count:]]), counts

        return run

    return Executor(name="wrong", factory=factory, agreement=0.999)


@pytest.mark.parametrize(
    ("bits", "wrong", "broken"),
    [
        (32, 0, None),
        (32, 1, "broken: below 99.9% same class"),
        (16, 1, None),
        (16, 2, "broken: below 98.0% same class"),
    ],
)
def test_16_bit_membranes_are_held_to_a_promise_of_their_own(
    bits, wrong, broken, lively, monkeypatch
):
    monkeypatch.setattr("qsdformer.runtimes.verify.ENOUGH_COMPARED", 50)
    monkeypatch.setitem(EXECUTORS, "wrong", _wrong_on_first(wrong))
    model = lively()
    pixels = random_pixels(model, 50)
    report = verify(model, pixels, info_for(model), executors=["wrong"], membrane_bits=bits)
    assert report.rows[1].agreement == 1 - wrong / 50
    assert report.rows[1].broken == broken
    assert report.ok == (broken is None)
    least = {32: "99.9%", 16: "98.0%"}[bits]
    shown = f"promised with {bits}-bit membranes: {least} same class"
    assert report.table().caption == shown


def test_few_images_do_not_break_the_promise_of_equal_classes(lively, monkeypatch):
    model = lively()
    executor = Executor(name="classes", factory=_broken, agreement=0.999)
    monkeypatch.setitem(EXECUTORS, "classes", executor)
    assert verify(model, random_pixels(model, 4), info_for(model), executors=["classes"]).ok


def test_the_table_has_a_line_for_each_execution(lively):
    from rich.console import Console

    model = lively()
    report = verify(model, random_pixels(model), info_for(model))
    console = Console(width=110, record=True, file=io.StringIO())
    console.print(report.table())
    text = console.export_text()
    for row in report.rows:
        assert row.name in text
    assert dataclasses.replace(report, rows=()).ok


def test_an_executor_that_was_named_and_is_not_installed_is_refused(lively, monkeypatch):
    model = lively()
    absent = Executor(name="absent", factory=lambda model, graph: None)
    monkeypatch.setitem(EXECUTORS, "absent", absent)
    assert verify(model, random_pixels(model), info_for(model)).missing == ("absent",)
    with pytest.raises(UserError, match="executor 'absent' is not installed: leave it out"):
        verify(model, random_pixels(model), info_for(model), executors=["integer", "absent"])


def test_executors_have_one_name_each_and_unknown_ones_are_refused(lively):
    model = lively()
    with pytest.raises(ValueError, match="registered already"):
        register(EXECUTORS["integer"])
    with pytest.raises(UserError, match="unknown executor 'fast'"):
        verify(model, random_pixels(model), info_for(model), executors=["fast"])
    with pytest.raises(UserError, match="no images"):
        verify(model, [], info_for(model))


def _changed(change):
    """An executor whose first result is changed."""

    def factory(model, graph):
        reference = executors._multi_bit(model, graph)

        def run(pixels, collect):
            results, counts = reference(pixels, collect)
            return change(results), counts

        return run

    return Executor(name="wrong", factory=factory, agreement=0.99)


def test_results_that_are_no_numbers_are_broken(lively, monkeypatch):
    def lost(logits):
        return np.where(np.arange(len(logits))[:, None] == 1, np.nan, logits)

    monkeypatch.setitem(EXECUTORS, "wrong", _changed(lost))
    model = lively()
    report = verify(model, random_pixels(model, 4), info_for(model), executors=["wrong"])
    assert report.rows[1].broken == "broken: results are not finite"
    assert not report.ok


def test_a_promise_of_equal_classes_waits_for_enough_images(lively, monkeypatch):
    monkeypatch.setitem(EXECUTORS, "wrong", _wrong_on_first(1))
    model = lively()
    names = ["binary spikes", "integer", "native", "wrong"]
    report = verify(model, random_pixels(model, 4), info_for(model), executors=names)
    assert {row.name: row.verdict for row in report.rows} == {
        "multi-bit": "kept",
        "binary spikes": "kept",
        "integer": "too few images",
        "native": "kept",
        "wrong": "too few images",
    }
    assert report.ok


def test_results_that_are_no_numbers_stay_so_whatever_follows(lively, monkeypatch):
    calls = iter(range(100))

    def lost(logits):
        return np.full_like(logits, np.nan) if next(calls) == 0 else logits

    monkeypatch.setitem(EXECUTORS, "wrong", _changed(lost))
    model = lively()
    batches = random_pixels(model, 4).split(2)
    report = verify(model, batches, info_for(model), executors=["wrong"])
    assert report.rows[1].broken == "broken: results are not finite"


def test_an_integer_graph_takes_no_options_of_lowering(lively, tmp_path):
    model = lively()
    graph = lower(model, info_for(model))
    with pytest.raises(UserError, match="membrane_bits: an integer graph is lowered already"):
        verify(graph, random_pixels(model, 2), membrane_bits=16)
    with pytest.raises(UserError, match="info, membrane_bits: an integer graph is lowered"):
        export(graph, tmp_path / "m.qsd", info_for(model), membrane_bits=16)
    assert not list(tmp_path.iterdir())


def test_the_native_engine_gets_no_more_threads_than_it_takes(lively, monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 300)
    model = lively()
    graph = lower(model, info_for(model))
    assert verify(graph, random_pixels(model, 2), executors=["native"]).ok


def test_a_map_of_one_channel_is_compared_by_its_values(monkeypatch):
    monkeypatch.setattr("qsdformer.runtimes.verify.ENOUGH_COMPARED", 4)

    class Depth(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.neuron = QuantConv2d(3, 4, 3, padding=1, bits=4), IELIF(4)
            self.depth = QuantConv2d(4, 1, 1, bits=4)

        def forward(self, x):
            return {"depth": self.depth(self.neuron(self.stem(x)))}

    torch.manual_seed(0)
    model = Depth().eval()
    pixels = torch.randint(0, 256, (2, 3, 8, 8), dtype=torch.uint8)
    info = DataInfo(image_size=8, channels=3, class_names=("a",), mean=(0.5,) * 3, std=(0.25,) * 3)
    wrong = _changed(lambda maps: {name: -value for name, value in maps.items()})
    monkeypatch.setitem(EXECUTORS, "wrong", wrong)
    report = verify(model, pixels, info, executors=["integer", "wrong"])
    assert [row.broken is None for row in report.rows] == [True, True, False]
    assert report.rows[1].agreement == 1


def test_accuracy_is_the_share_of_labels_that_each_execution_finds(lively, monkeypatch):
    monkeypatch.setitem(EXECUTORS, "wrong", _wrong_on_first(1))
    model = lively()
    pixels = random_pixels(model, 4)
    found = torch.from_numpy(lower(model, info_for(model)).logits(pixels.numpy()).argmax(1))
    found[3] = (found[3] + 1) % 5
    report = verify(model, [(pixels, found)], info_for(model), executors=["wrong"])
    assert [row.accuracy for row in report.rows] == [0.75, 0.5]
    assert [row.agreement for row in report.rows] == [1.0, 0.75]


def test_the_table_has_each_figure_in_its_column():
    row = Row(
        name="x",
        accuracy=0.25,
        agreement=0.875,
        differing=3,
        counts=200,
        logit_difference=0.5,
        latency_ms=12.5,
        broken=None,
        promise=0.8,
    )
    columns = Report(rows=(row,), images=1, missing=()).table().columns
    cells = [next(iter(column.cells)) for column in columns]
    assert cells == ["x", "25.00%", "87.500%", "1.5 %", "0.5", "12.5 ms", "kept"]


def test_latency_is_in_milliseconds():
    assert 20 <= _latency(lambda pixels, collect: time.sleep(0.02), np.zeros(1)) < 2000
