"""Weights that several maps share are stored once in an artifact, and every reader finds them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from graph import numpy_reader
from graph.test_artifact import joined, parts

from models.dense.small import INFO, detection, pixels, segmentation, settled
from qsdformer.errors import UserError
from qsdformer.graph.artifact import from_bytes, to_bytes
from qsdformer.graph.integer import IntegerGraph
from qsdformer.graph.lowering import lower
from qsdformer.models.dense.maps import convolutional_part
from qsdformer.nn.quantizers import quantized_layers
from qsdformer.runtimes import native


@pytest.fixture(scope="module")
def retinanet() -> Any:
    return settled(detection(detector="retinanet"))


@pytest.fixture(scope="module")
def graph(retinanet: Any) -> IntegerGraph:
    return lower(convolutional_part(retinanet), INFO)


def test_each_layer_is_stored_once_and_read_for_every_map(
    retinanet: Any, graph: IntegerGraph, tmp_path: Path
) -> None:
    data = to_bytes(graph)
    header, description, _ = parts(data)
    coded = [i for i, op in enumerate(description["ops"]) if "codes" in op]
    assert len(coded) > len(quantized_layers(retinanet))
    assert len([i for i in coded if str(i) in header]) == len(quantized_layers(retinanet))
    assert from_bytes(data) == graph
    (tmp_path / "model.qsd").write_bytes(data)
    content = numpy_reader.read(tmp_path / "model.qsd")
    for op, read in zip(graph.ops, content["ops"], strict=True):
        if "codes" in read:
            assert np.array_equal(op.codes, read["codes"])  # type: ignore[attr-defined]


def test_a_network_that_shares_nothing_is_written_as_before() -> None:
    graph = lower(settled(segmentation()), INFO)
    _, description, _ = parts(to_bytes(graph))
    assert description["format_version"] == 2
    assert not any("same" in op for op in description["ops"])


def test_codes_in_the_file_are_as_many_bytes_as_the_layers_have(
    retinanet: Any, graph: IntegerGraph
) -> None:
    header, description, _ = parts(to_bytes(graph))
    coded = (str(i) for i, op in enumerate(description["ops"]) if "codes" in op)
    stored = sum(header[key]["shape"][0] for key in coded if key in header)
    layers = quantized_layers(retinanet).values()
    assert stored == sum(-(-m.weight.numel() * m.bits // 8) for m in layers if m.bits)


@pytest.mark.skipif(not native.available(), reason="the native engine is not built")
def test_the_native_engine_reads_them_too(graph: IntegerGraph) -> None:
    images = pixels(seed=2).numpy()
    expected = graph.run_outputs(images)
    found = native.NativeModel(to_bytes(graph)).run_outputs(images)
    assert set(found) == set(expected)
    assert all(np.array_equal(found[name], value) for name, value in expected.items())


def first_sharing(description: dict[str, Any]) -> tuple[int, dict[str, Any]]:
    return next((i, op) for i, op in enumerate(description["ops"]) if "same" in op)


@pytest.mark.parametrize("same", [-1, "itself", "another that shares", 0, 10**9, "1", 1.5, None])
def test_codes_that_are_not_there_are_refused_in_one_line(graph: IntegerGraph, same: Any) -> None:
    header, description, body = parts(to_bytes(graph))
    number, entry = first_sharing(description)
    if same == "itself":
        same = number
    if same == "another that shares":
        last = [op for op in description["ops"] if "same" in op][-1]
        entry, same = last, number
    entry["same"] = same
    data = joined(header, description, body)
    with pytest.raises(UserError, match="damaged") as error:
        from_bytes(data, "model.qsd")
    assert "\n" not in str(error.value)
    if native.available():
        with pytest.raises(UserError, match="damaged"):
            native.NativeModel(data)


def test_version_2_shares_nothing(graph: IntegerGraph) -> None:
    header, description, body = parts(to_bytes(graph))
    description["format_version"] = 2
    data = joined(header, description, body)
    with pytest.raises(UserError, match="damaged"):
        from_bytes(data)
    if native.available():
        with pytest.raises(UserError, match="damaged"):
            native.NativeModel(data)
