"""Artifacts of format version 1, written by the code of that time, and what version 2 adds."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from graph import numpy_reader
from graph.test_artifact import _set, joined, parts
from qsdformer.data.preprocessing import Preprocessing
from qsdformer.errors import UserError
from qsdformer.graph.artifact import from_bytes, load_artifact, to_bytes
from qsdformer.graph.integer import IntegerGraph, Output
from qsdformer.graph.ops import Concat, ConvTranspose, Frames, MaxPool, Normalise, Reshape, Upsample
from qsdformer.models.registry import config_from_dict

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
def test_a_configuration_is_stored_as_in_version_1_byte_by_byte(fixtures, name):
    stored = load_artifact(fixtures / f"{name}.qsd").config
    again = config_from_dict(stored).to_dict()
    assert json.dumps(again) == json.dumps(stored)


@pytest.mark.parametrize("name", FIRST)
def test_the_plain_reader_reads_version_1_too(fixtures, name):
    path: Path = fixtures / f"{name}.qsd"
    graph, content = load_artifact(path), numpy_reader.read(path)
    assert content["format_version"] == 1
    assert content["outputs"] == []
    assert [op["name"] for op in content["ops"]] == [op.name for op in graph.ops]


def test_a_newer_version_is_refused_in_one_line(small_graph):
    header, description, body = parts(to_bytes(small_graph))
    for version in (0, 4, 10**9):
        description["format_version"] = version
        with pytest.raises(UserError, match=rf"^model\.qsd: artifact format {version}, but") as e:
            from_bytes(joined(header, description, body), "model.qsd")
        assert "reads formats 1 to 3" in str(e.value)


def test_version_1_has_no_operation_of_version_2(fixtures):
    header, description, body = parts((fixtures / "v1_lif_t4.qsd").read_bytes())
    mean = next(op for op in description["ops"] if op.get("op") == "spatialmean")
    mean["op"] = "spatialsum"
    with pytest.raises(UserError, match="damaged"):
        from_bytes(joined(header, description, body))
    description["format_version"] = 2
    assert from_bytes(joined(header, description, body))


@pytest.fixture
def second() -> IntegerGraph:
    """A graph of what version 2 brought, two outputs and no logits."""
    one, same = (1.0,), {"kernel": 3, "stride": 1, "padding": 1}
    return IntegerGraph(
        ops=(
            Normalise(name="table", inputs=(), table=np.zeros((2, 256), np.int32) + 3, fraction=0),
            Frames(name="frames", inputs=("table",), steps=2),
            MaxPool(name="pool", inputs=("frames",), **same),
            Concat(name="both", inputs=("frames", "pool")),
            Reshape(name="shape", inputs=("both",), channels=1, height=16, width=4),
            Upsample(name="up", inputs=("shape",), mode="bilinear"),
            ConvTranspose(
                name="grow", inputs=("up",), codes=np.ones((1, 3, 2, 2), np.int8), bits=2
            ),
        ),
        preprocessing=Preprocessing(image_size=4, channels=2, mean=(0.0,) * 2, std=(1.0,) * 2),
        class_names=(),
        config={},
        membrane_bits=32,
        membrane_fraction=0,
        outputs=(
            Output(name="p1", op="grow", scale=(0.5, 1.0, 2.0)),
            Output(name="p2", op="both", scale=one),
        ),
    )


OPS = ("description", "ops")
FORGERIES = {
    "a pool with padding to the moon": (_set(*OPS, 2, "padding", value=10**9), "padding must be"),
    "a pool without a kernel": (_set(*OPS, 2, "kernel", value=0), "kernel must be"),
    "a pool without end": (_set(*OPS, 2, "kernel", value=10**9), "kernel must be"),
    "a mode that is none": (_set(*OPS, 5, "mode", value="cubic"), "mode must be"),
    "a mode that is a number": (_set(*OPS, 5, "mode", value=1), "where str was expected"),
    "10^12 channels": (_set(*OPS, 4, "channels", value=10**12), "number of elements"),
    "no channels": (_set(*OPS, 4, "channels", value=-1), "at least 1"),
    "one value joined": (_set(*OPS, 3, "inputs", value=[2]), "1 inputs"),
    "10^5 values joined": (_set(*OPS, 3, "inputs", value=[2] * 10**5), "65536 channels"),
    "codes of another kernel": (_set(*OPS, 6, "codes", value=[2, 1, 3, 4, 1]), "2, 2"),
    "frames without end": (_set(*OPS, 1, "steps", value=10**9), "steps must be"),
    "an output of nothing": (_set("description", "outputs", 0, "op", value=7), "does not exist"),
    "an output ahead": (_set("description", "outputs", 0, "op", value=-1), "does not exist"),
    "an output without a name": (_set("description", "outputs", 0, "name", value=""), "name of"),
    "two outputs of one name": (_set("description", "outputs", 0, "name", value="p2"), "name of"),
    "a scale of words": (_set("description", "outputs", 0, "scale", value=["a"]), "number was"),
    "a scale of nothing": (_set("description", "outputs", 0, "scale", value=[]), "0 scales"),
    "a huge scale": (_set("description", "outputs", 0, "scale", value=[10**400]), "damaged"),
    "an object of outputs": (_set("description", "outputs", value={"p1": 3}), "expected"),
    "no outputs": (_set("description", "outputs", value=[]), "neither logits nor"),
    "logits that are none": (_set("description", "class_names", value=["a"] * 3), "logits"),
}


@pytest.mark.parametrize("name", FORGERIES)
def test_a_forged_file_of_version_2_is_refused_and_says_why(second, name):
    change, message = FORGERIES[name]
    header, description, body = parts(to_bytes(second))
    for number, op in enumerate(description["ops"]):  # every field in its place
        kind = type(second.ops[number]).__name__.lower()
        assert op.setdefault("op", description["defaults"]["op"]) == kind
    change(header, description)
    data = joined(header, description, body)
    tracemalloc.start()
    with pytest.raises(UserError, match=message) as caught:
        from_bytes(data, "model.qsd")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert "\n" not in str(caught.value)
    assert peak < 100 * len(data)


def test_channels_cannot_be_doubled_without_end(second):
    header, description, body = parts(to_bytes(second))
    description["ops"] += [{"op": "concat", "inputs": [n, n]} for n in range(6, 60)]
    with pytest.raises(UserError, match="at most 65536"):
        from_bytes(joined(header, description, body))
    description["ops"] = description["ops"][:7]
    description["ops"] += [{"op": "concat", "inputs": [n, n]} for n in range(6, 20)]
    description["ops"] += [{"op": "countadd", "inputs": [20, n]} for n in range(20, 300)]
    with pytest.raises(UserError, match="channels in all"):
        from_bytes(joined(header, description, body))


def test_a_file_of_version_2_gives_back_its_graph(second):
    assert from_bytes(to_bytes(second)) == second
    frames = np.random.default_rng(0).integers(0, 256, (2, 3, 2, 4, 4)).astype(np.uint8)
    found = from_bytes(to_bytes(second)).run_outputs(frames)
    assert {name: value.shape for name, value in found.items()} == {
        "p1": (6, 3, 64, 16),
        "p2": (6, 4, 4, 4),
    }
