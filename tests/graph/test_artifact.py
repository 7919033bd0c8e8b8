from __future__ import annotations

import io
import json
import os
import pickle
import re
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save
from variants import VARIANTS, info_for, random_pixels

from graph import numpy_reader
from qsdformer.errors import UserError
from qsdformer.graph import container
from qsdformer.graph.artifact import export, from_bytes, load_artifact, to_bytes
from qsdformer.graph.container import sign
from qsdformer.graph.integer import IntegerGraph
from qsdformer.graph.lowering import lower
from qsdformer.graph.ops import Conv
from qsdformer.models.metaspikeformer import create_model


def parts(data: bytes) -> tuple[dict[str, Any], dict[str, Any], bytes]:
    """Header, description and body of an artifact."""
    start = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:start])
    return header, json.loads(header["__metadata__"]["qsdformer"]), data[start:]


def joined(header: dict[str, Any], description: dict[str, Any], body: bytes) -> bytes:
    """The inverse of `parts`, with a right checksum: a file made on purpose, not by accident."""
    header["__metadata__"]["qsdformer"] = json.dumps(description)
    text = json.dumps(header, separators=(",", ":")).encode()
    return sign(len(text).to_bytes(8, "little") + text + body)


@pytest.mark.parametrize("variant", VARIANTS)
def test_an_artifact_gives_back_its_graph(lively, tmp_path: Path, variant):
    model = lively(**VARIANTS[variant])
    graph = lower(model, info_for(model))
    export(graph, tmp_path / "model.qsd")
    loaded = load_artifact(tmp_path / "model.qsd")
    assert loaded == graph
    pixels = random_pixels(model).numpy()
    assert np.array_equal(loaded.run(pixels), graph.run(pixels))


def misnamed(graph: IntegerGraph, place: str, name: str) -> bytes:
    """The artifact of `graph` with `name` for an operation, an output or a class."""
    header, description, body = parts(to_bytes(graph))
    if place == "class":
        description["class_names"][0] = name
    elif place == "output":
        description["outputs"] = [{"name": name, "op": 1, "scale": [1.0]}]
    else:
        description["ops"][1]["name"] = name
    return joined(header, description, body)


PLACES = ("operation", "output", "class")
NO_NAMES = ("a\0b", "\ud83d", "a\udc00b", "\udc00\ud83d")


@pytest.mark.parametrize("place", PLACES)
def test_a_name_that_c_or_utf_8_cannot_hold_is_refused(small_graph: IntegerGraph, place: str):
    for name in NO_NAMES:
        with pytest.raises(
            UserError, match=f"an? {place} has a zero byte or half a char"
        ) as caught:
            from_bytes(misnamed(small_graph, place, name))
        assert "\n" not in str(caught.value)
        str(caught.value).encode()  # can be printed
    for name in ("caf\xe9", "\U0001f408", "a b"):
        from_bytes(misnamed(small_graph, place, name))


def test_exporting_a_model_lowers_it_with_the_options_given(lively, tmp_path: Path):
    model = lively()
    export(model, tmp_path / "a.qsd", info=info_for(model), membrane_bits=16)
    assert load_artifact(tmp_path / "a.qsd") == lower(model, info_for(model), membrane_bits=16)
    assert to_bytes(lower(model, info_for(model))) == to_bytes(lower(model, info_for(model)))


def test_weights_take_their_real_bits_in_the_file(small_graph: IntegerGraph, tmp_path: Path):
    export(small_graph, tmp_path / "model.qsd")
    tensors = load_file(tmp_path / "model.qsd")  # the file is a valid safetensors file
    for number, op in enumerate(small_graph.ops):
        if isinstance(op, Conv):
            assert len(tensors[str(number)]) == -(-op.codes.size * op.bits // 8)
    assert {op.bits for op in small_graph.ops if isinstance(op, Conv)} == {3, 8}


def test_a_reader_in_plain_numpy_reads_every_value(lively, tmp_path: Path):
    for variant in ("published-D4-T4", "3-bit", "lif-T4"):
        model = lively(**VARIANTS[variant])
        graph = export(model, tmp_path / "model.qsd", info=info_for(model))
        content = numpy_reader.read(tmp_path / "model.qsd")
        index = {op.name: i for i, op in enumerate(graph.ops)}
        assert content["class_names"] == list(graph.class_names)
        assert len(content["ops"]) == len(graph.ops)
        for op, read in zip(graph.ops, content["ops"], strict=True):
            assert read["op"] == type(op).__name__.lower()
            assert read["name"] == op.name
            assert read["inputs"] == [index[name] for name in op.inputs]
            for name, value in vars(op).items():
                if isinstance(value, np.ndarray):
                    assert np.array_equal(read[name], value)
                elif name not in ("name", "inputs"):
                    found = numpy_reader.field(content, read, name)
                    assert found == (list(value) if isinstance(value, tuple) else value)


def test_the_plain_reader_is_short_and_imports_nothing_of_ours():
    text = Path(numpy_reader.__file__).read_text()
    assert len(text.splitlines()) <= 60
    imported = re.findall(r"^\s*(?:from|import) (\w+)", text, re.MULTILINE)
    assert {"json", "numpy"} <= set(imported) <= {"hashlib", "json", "math", "numpy"}


@pytest.mark.parametrize(("fully_spiking", "ratio"), [(False, 7.6), (True, 7.5)])
def test_a_15_m_model_shrinks_as_much_as_promised(fully_spiking, ratio):
    model = create_model("metaspikeformer_15m", fully_spiking=fully_spiking).eval()
    torch.manual_seed(0)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, torch.nn.BatchNorm2d):  # statistics as of a trained model
                module.running_mean.normal_()
                module.running_var.uniform_(0.1, 4)
                module.bias.normal_()
                module.weight.uniform_(0.1, 2)
    size = len(to_bytes(lower(model, info_for(model, size=224))))
    weights = sum(v.numel() * v.element_size() for v in model.state_dict().values())
    assert weights / size >= ratio


def truncated(graph: IntegerGraph) -> list[bytes]:
    data = to_bytes(graph)
    cuts = {*range(200), *range(0, len(data), 997), *range(len(data) - 50, len(data))}
    return [data[:cut] for cut in sorted(cuts)]


def test_a_truncated_artifact_is_refused_in_one_line(small_graph: IntegerGraph):
    for data in truncated(small_graph):
        with pytest.raises(UserError) as caught:
            from_bytes(data, "model.qsd")
        assert str(caught.value).startswith("model.qsd: ")
        assert "\n" not in str(caught.value)


Change = Callable[[dict[str, Any], dict[str, Any]], None]


def _set(*path: Any, value: Any) -> Change:
    """A change of one value, below "header" or "description"."""

    def change(header: dict[str, Any], description: dict[str, Any]) -> None:
        place: Any = {"header": header, "description": description}
        for key in path[:-1]:
            place = place[key]
        place[path[-1]] = value

    return change


FORGERIES: dict[str, tuple[Change, str]] = {
    "another version": (_set("description", "format_version", value=4), "artifact format 4, but"),
    "a version that is no number": (_set("description", "format_version", value="1"), "damaged"),
    "big-endian tensors": (_set("header", "0", "dtype", value=">U8"), "not U8"),
    "wide tensors": (_set("header", "0", "dtype", value="I64"), "not U8"),
    "an offset past the end": (_set("header", "0", "data_offsets", value=[0, 10**12]), "inside"),
    "a negative offset": (_set("header", "0", "data_offsets", value=[-8, 10]), "inside"),
    "10^12 elements": (_set("description", "ops", 1, "codes", value=[8, 10**12]), "needs"),
    "10^24 elements": (
        _set("description", "ops", 1, "codes", value=[8, 10**6, 10**6, 10**6, 10**6]),
        "needs",
    ),
    "no elements": (_set("description", "ops", 1, "codes", value=[8, 0, 3, 3, 3]), "shape"),
    "a negative side": (_set("description", "ops", 1, "codes", value=[8, -2, -3, 3, 3]), "shape"),
    "a width of 0": (_set("description", "ops", 1, "codes", value=[0, 2, 3, 3, 3]), "width 0"),
    "a fifth dimension": (_set("description", "ops", 1, "codes", value=[8, 1, 2, 3, 3, 3]), "shap"),
    "an input ahead": (_set("description", "ops", 1, "inputs", value=[5]), "not before it"),
    "an unknown operation": (_set("description", "ops", 1, "op", value="exec"), "damaged"),
    "an unknown field": (_set("description", "ops", 1, "x", value=1), "unknown fields"),
    "a huge stride": (_set("description", "ops", 1, "stride", value=10**9), "stride"),
    "huge padding": (_set("description", "ops", 1, "padding", value=10**9), "padding"),
    "a stride that is true": (_set("description", "ops", 1, "stride", value=True), "expected"),
    "huge images": (_set("description", "preprocessing", "image_size", value=10**9), "image_size"),
    "a crop of nothing": (_set("description", "preprocessing", "crop_pct", value=1e-9), "crop_pct"),
    "a deviation of zero": (_set("description", "preprocessing", "std", 0, value=0), "std"),
    "an unknown filter": (
        _set("description", "preprocessing", "interpolation", value="foo"),
        "interp",
    ),
    "membranes of 8 bits": (_set("description", "membrane_bits", value=8), "membranes of 8 bits"),
    "a huge fraction": (_set("description", "membrane_fraction", value=10**400), "fractional bits"),
    "two sides in version 2": (
        _set("description", "preprocessing", "image_size", value=[16, 32]),
        "expected",
    ),
    "a fit in version 2": (_set("description", "preprocessing", "fit", value="pad"), "fields"),
    "time steps without end": (_set("description", "defaults", "steps", value=10**9), "steps"),
    "a class too many": (_set("description", "class_names", value=["a"] * 6), "6 class names"),
    "no operations": (_set("description", "ops", value=[]), "belong to no operation"),
    "a list for the configuration": (_set("description", "config", value=[]), "expected"),
    "a list for an object": (_set("description", "defaults", value=[]), "expected"),
}


@pytest.mark.parametrize("name", FORGERIES)
def test_a_forged_artifact_is_refused_and_says_why(small_graph: IntegerGraph, name):
    change, message = FORGERIES[name]
    header, description, body = parts(to_bytes(small_graph))
    change(header, description)
    data = joined(header, description, body)
    tracemalloc.start()
    with pytest.raises(UserError, match=message) as caught:
        from_bytes(data, "model.qsd")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert "\n" not in str(caught.value)
    assert peak < 100 * len(data)


def test_a_configuration_that_this_version_does_not_know_is_kept_as_information(small_graph):
    header, description, body = parts(to_bytes(small_graph))
    description["config"] |= {"a_field_of_the_future": 1, "levels": 0}
    loaded = from_bytes(joined(header, description, body))
    assert loaded.config == description["config"]
    assert loaded.ops == small_graph.ops


def test_unchanged_parts_put_together_again_load(small_graph: IntegerGraph):
    assert from_bytes(joined(*parts(to_bytes(small_graph)))) == small_graph


def test_a_wrong_number_of_tensors_is_refused(small_graph: IntegerGraph):
    header, description, body = parts(to_bytes(small_graph))
    size = len(body)
    more = {**header, "9999": {"dtype": "U8", "shape": [4], "data_offsets": [size, size + 4]}}
    with pytest.raises(UserError, match="1 tensors belong to no operation"):
        from_bytes(joined(more, description, body + b"1234"))
    last = [key for key in header if key != "__metadata__"][-1]
    start = header.pop(last)["data_offsets"][0]
    with pytest.raises(UserError, match="needs"):
        from_bytes(joined(header, description, body[:start]))
    with pytest.raises(UserError, match="bytes after the last tensor"):
        from_bytes(joined(header, description, body))


def test_deeply_nested_and_nonsense_headers_are_refused(small_graph: IntegerGraph):
    header, _, body = parts(to_bytes(small_graph))
    for text in ("[" * 100_000, '{"format_version":' + "9" * 5000 + "}", "NaN", "{}", '"x"'):
        header["__metadata__"]["qsdformer"] = text
        raw = json.dumps(header, separators=(",", ":")).encode()
        with pytest.raises(UserError, match="damaged"):
            from_bytes(sign(len(raw).to_bytes(8, "little") + raw + body))
    start = container.PREFIX + b"0" * 64 + b'"'
    for raw in (start + b"[" * 100_000, start + b"\xff\xfe", start, start + b"}}"):
        with pytest.raises(UserError, match="damaged"):
            from_bytes(sign(len(raw).to_bytes(8, "little") + raw))


class _Bomb:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


def test_other_kinds_of_files_are_refused_and_not_run(tmp_path: Path):
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("data.pkl", "x" * 1000)
    checkpoint = io.BytesIO()
    torch.save({"model": torch.zeros(3)}, checkpoint)
    others = {
        "a zip archive": archive.getvalue(),
        "a zip archive, not": checkpoint.getvalue(),
        "a pickle": pickle.dumps(_Bomb(tmp_path / "ran")),
        "not an artifact": save({"x": np.zeros(3)}),
        "not an artifact of qsdformer, or cut short": b"",
        "not an artifact of": b"hello, world" * 100,
    }
    for message, data in others.items():
        path = tmp_path / "other.qsd"
        path.write_bytes(data)
        with pytest.raises(UserError, match=message):
            load_artifact(path)
    assert not (tmp_path / "ran").exists()


def test_missing_files_and_folders_are_named(tmp_path: Path):
    with pytest.raises(UserError, match=r"no artifact .*nothing\.qsd"):
        load_artifact(tmp_path / "nothing.qsd")
    with pytest.raises(UserError, match="is a folder"):
        load_artifact(tmp_path)


def test_a_failed_export_leaves_the_old_file_whole(
    small_graph: IntegerGraph, tmp_path: Path, monkeypatch
):
    path = tmp_path / "model.qsd"
    path.write_bytes(b"old")

    def full(self: Path, data: bytes) -> int:
        with self.open("wb") as file:
            file.write(data[:10])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(UserError, match="No space left"):
        export(small_graph, path)
    monkeypatch.undo()
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_predict_takes_pillow_images_and_pixels(lively):
    from PIL import Image

    model = lively(in_channels=1)
    graph = lower(model, info_for(model))
    picture = Image.fromarray(random_pixels(model)[0, 0].numpy())
    (best, *others) = graph.predict([picture], top=5)[0]
    assert best[1] >= max(share for _, share in others)
    assert sum(share for _, share in (best, *others)) == pytest.approx(1)
    assert graph.predict(random_pixels(model)[:1].numpy(), top=1) == [[best]]
