from __future__ import annotations

import json

import numpy as np
import pytest
from variants import VARIANTS, info_for, random_pixels

from qsdformer.errors import UserError
from qsdformer.graph.lowering import lower

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from onnx import TensorProto, numpy_helper  # noqa: E402

from qsdformer.runtimes.onnx_export import export_onnx, onnx_model  # noqa: E402
from qsdformer.runtimes.sessions import (  # noqa: E402
    onnxruntime_infer,
    onnxruntime_kernels,
    openvino_infer,
    openvino_kernels,
)

STARTS = {"onnxruntime": onnxruntime_infer, "openvino": openvino_infer}


def start(runtime: str, model) -> object:
    pytest.importorskip(runtime)
    return STARTS[runtime](model.SerializeToString(), 1)


@pytest.fixture(scope="module")
def graph(lively):
    """The published arrangement, 4 bits."""
    model = lively()
    return lower(model, info_for(model))


@pytest.mark.parametrize("variant", VARIANTS)
def test_counts_and_logits_are_those_of_the_integer_graph(lively, variant):
    model = lively(**VARIANTS[variant])
    graph = lower(model, info_for(model))
    pixels = random_pixels(model, 3).numpy()
    logits, counts = graph.run_with_counts(pixels)
    found = start("onnxruntime", onnx_model(graph, counts=True))(pixels, None)
    for name, expected in counts.items():
        assert found[name].dtype == np.uint8
        assert np.array_equal(found[name], expected), name
    # One unit of fixed point in a logit of order 1.
    assert np.abs(found["logits"] - logits * graph.logit_scale).max() < 1e-4


@pytest.mark.parametrize("variant", ["published-D4-T1", "fully-D4-T1", "fully-D8-T4", "8-bit"])
@pytest.mark.parametrize("arrangement", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_both_arrangements_count_the_same_in_both_runtimes(lively, variant, arrangement, runtime):
    model = lively(**VARIANTS[variant])
    graph = lower(model, info_for(model))
    pixels = random_pixels(model, 2).numpy()
    found = start(runtime, onnx_model(graph, arrangement, counts=True))(pixels, None)
    for name, expected in graph.run_with_counts(pixels)[1].items():
        assert np.array_equal(found[name], expected), name


@pytest.mark.parametrize("variant", ["published-D4-T1", "fully-D2-T4", "lif-T4", "lif-T1"])
def test_the_float_arrangement_gives_the_same_logits(lively, variant):
    model = lively(**VARIANTS[variant])
    graph = lower(model, info_for(model))
    pixels = random_pixels(model, 3).numpy()
    found = start("onnxruntime", onnx_model(graph, "float"))(pixels, None)["logits"]
    # Float32 rounding alone: no count may differ.
    assert np.abs(found - graph.run(pixels) * graph.logit_scale).max() < 1e-4


def test_the_batch_is_dynamic(graph):
    run = start("onnxruntime", onnx_model(graph))
    pixels = np.random.default_rng(0).integers(0, 256, (5, 3, 32, 32)).astype(np.uint8)
    together = run(pixels, None)["logits"]
    single = np.concatenate([run(pixels[i : i + 1], None)["logits"] for i in range(5)])
    assert together.shape == (5, 5)
    assert np.allclose(together, single, atol=1e-6)


@pytest.mark.parametrize("arrangement", ["onnxruntime", "openvino"])
def test_weights_are_stored_in_bytes_and_operators_are_standard(graph, arrangement):
    model = onnx_model(graph, arrangement)
    assert {node.domain for node in model.graph.node} == {""}
    assert [entry.domain for entry in model.opset_import] == [""]
    arrays = [numpy_helper.to_array(tensor) for tensor in model.graph.initializer]
    widest = max(op.codes.shape[0] for op in graph.ops if hasattr(op, "codes"))
    for array in arrays:
        if array.dtype not in (np.int8, np.uint8):
            assert array.size <= widest, "only vectors may be wider than 8 bits"
    stored = sum(array.size for array in arrays if array.dtype == np.int8)
    assert stored >= sum(op.codes.size for op in graph.ops if hasattr(op, "codes"))
    assert model.graph.input[0].type.tensor_type.elem_type == TensorProto.UINT8
    onnx.checker.check_model(model, full_check=True)


def test_metadata_name_classes_and_preprocessing(graph):
    found = {entry.key: entry.value for entry in onnx_model(graph).metadata_props}
    description = json.loads(found["qsdformer"])
    assert description["class_names"] == list(graph.class_names)
    assert description["preprocessing"]["image_size"] == 32


@pytest.mark.parametrize("fully_spiking", [True, False])
def test_onnxruntime_uses_integer_kernels_for_everything_that_reads_spikes(lively, fully_spiking):
    model = lively(fully_spiking=fully_spiking)
    graph = lower(model, info_for(model))
    pixels = random_pixels(model, 1).numpy()
    found = onnxruntime_kernels(onnx_model(graph).SerializeToString(), pixels)
    convolutions = sum(hasattr(op, "codes") for op in graph.ops)
    blocks = 2
    attention = found.real.pop("MatMul")
    assert attention == 2 * blocks
    real = sum(found.real.values())
    assert sum(found.integer.values()) + real == convolutions
    # The stem; as published also 2 of 3 convolutions of 4 RepConvs a block, 2 of 4 SepConvs' 3.
    assert real == (1 if fully_spiking else 1 + 4 * 2 * blocks + 4 * 2)


def test_openvino_uses_integer_kernels_for_everything_that_reads_spikes(lively):
    pytest.importorskip("openvino")
    model = lively(fully_spiking=True, dims=(16, 32, 32, 32))
    graph = lower(model, info_for(model))
    data = onnx_model(graph, "openvino").SerializeToString()
    found = openvino_kernels(data, random_pixels(model, 1).numpy())
    convolutions = {name: n for name, n in found.real.items() if "Convolution" in name}
    assert sum(convolutions.values()) == 1, "the stem alone"
    # All but the stem and the head, which may be a matrix product.
    assert sum(found.integer.values()) >= sum(hasattr(op, "codes") for op in graph.ops) - 2


def test_a_full_disk_leaves_the_old_file_whole(graph, tmp_path, monkeypatch):
    path = tmp_path / "model.onnx"
    path.write_bytes(b"old")

    def full(self, data):
        with self.open("wb") as file:
            file.write(data[:10])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pathlib.Path.write_bytes", full)
    with pytest.raises(UserError, match="No space left"):
        export_onnx(graph, path)
    monkeypatch.undo()
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["model.onnx"]


def test_an_unknown_arrangement_is_refused(graph):
    with pytest.raises(ValueError, match="onnxruntime, openvino, float"):
        onnx_model(graph, "tensorrt")
