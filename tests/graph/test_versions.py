"""Artifacts of format version 1, written by the code of that time, and what version 2 adds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from graph import numpy_reader
from graph.test_artifact import joined, parts
from qsdformer.errors import UserError
from qsdformer.graph.artifact import from_bytes, load_artifact, to_bytes

FIRST = ("v1_published", "v1_lif_t4")


@pytest.mark.parametrize("name", FIRST)
def test_a_file_of_version_1_gives_the_integers_recorded_when_it_was_written(fixtures, name):
    graph = load_artifact(fixtures / f"{name}.qsd")
    recorded = np.load(fixtures / f"{name}.npz")
    images = recorded["images"].repeat(4, axis=2).repeat(4, axis=3)
    logits, counts = graph.run_with_counts(images)
    assert np.array_equal(logits, recorded["logits"])
    assert [int(c.astype(np.int64).sum()) for c in counts.values()] == recorded["totals"].tolist()


@pytest.mark.parametrize("name", FIRST)
def test_written_again_it_differs_by_the_version_alone(fixtures, name):
    old = (fixtures / f"{name}.qsd").read_bytes()
    new = to_bytes(from_bytes(old))
    (header, description, body), (header2, description2, body2) = parts(old), parts(new)
    assert (description.pop("format_version"), description2.pop("format_version")) == (1, 2)
    assert description == description2
    assert body == body2
    assert header.keys() == header2.keys()
    assert from_bytes(new) == from_bytes(old)


@pytest.mark.parametrize("name", FIRST)
def test_the_plain_reader_reads_version_1_too(fixtures, name):
    path: Path = fixtures / f"{name}.qsd"
    graph, content = load_artifact(path), numpy_reader.read(path)
    assert content["format_version"] == 1
    assert content["outputs"] == []
    assert [op["name"] for op in content["ops"]] == [op.name for op in graph.ops]


def test_a_newer_version_is_refused_in_one_line(small_graph):
    header, description, body = parts(to_bytes(small_graph))
    for version in (0, 3, 10**9):
        description["format_version"] = version
        with pytest.raises(UserError, match=rf"^model\.qsd: artifact format {version}, but") as e:
            from_bytes(joined(header, description, body), "model.qsd")
        assert "reads formats 1 to 2" in str(e.value)


def test_version_1_has_no_operation_of_version_2(fixtures):
    header, description, body = parts((fixtures / "v1_lif_t4.qsd").read_bytes())
    mean = next(op for op in description["ops"] if op.get("op") == "spatialmean")
    mean["op"] = "spatialsum"
    with pytest.raises(UserError, match="damaged"):
        from_bytes(joined(header, description, body))
    description["format_version"] = 2
    assert from_bytes(joined(header, description, body))
