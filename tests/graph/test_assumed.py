"""Images that nobody describes: what is assumed of them, and what is refused."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import qsdformer as qsd
from graph.user_networks import INFO, ResNet, pixels, settled
from qsdformer.errors import UserError
from qsdformer.graph.artifact import load_artifact
from qsdformer.nn import IELIF, QuantConv2d, QuantLinear, SpikeAttention
from qsdformer.runtimes.onnx_predict import load_onnx


def floats(low: float, high: float) -> Tensor:
    return pixels().float() / 255 * (high - low) + low


@pytest.mark.parametrize(
    ("images", "assumed"),
    [
        (pixels(), "pixels / 255"),
        (pixels().numpy(), "pixels / 255"),
        (pixels().long(), "pixels / 255"),
        (floats(0, 1), "pixels / 255"),
        (floats(-2, 3), "256 steps from -2 to 3"),
        ([pixels(), pixels()], "pixels / 255"),
        ([(floats(-2, 3), torch.zeros(3).long())], "256 steps from -2 to 3"),
    ],
)
def test_a_model_is_verified_on_images_that_nobody_describes(images, assumed):
    report = qsd.verify(settled(ResNet), images)
    assert report.ok
    assert report.images == (6 if isinstance(images, list) and len(images) == 2 else 3)
    assert report.assumed is not None
    assert assumed in report.assumed
    assert report.table().caption == report.assumed


def test_described_images_need_no_assumption():
    report = qsd.verify(settled(ResNet), pixels(), info=INFO, executors=["integer"])
    assert report.assumed is None


def test_assumed_floats_are_the_very_images_that_the_integers_see():
    model, images = settled(ResNet), floats(-2, 3)
    report = qsd.verify(model, images, executors=["integer"])
    assert report.rows[1].differing == 0
    steps = torch.linspace(-2, 3, 256)
    info = qsd.DataInfo(
        image_size=16, channels=3, class_names=INFO.class_names, mean=(0.4,) * 3, std=(0.2,) * 3
    )
    logits = qsd.lower(model, info).real_outputs(pixels().numpy())["logits"][:, :, 0, 0]
    with torch.no_grad():
        expected = model(steps[pixels().long()])
    np.testing.assert_allclose(logits, expected.numpy(), atol=1e-4)


def test_a_model_is_exported_by_the_size_of_its_images_alone(tmp_path):
    graph = qsd.export(settled(ResNet), tmp_path / "model.qsd", image_size=16)
    assert graph.class_names == tuple("01234")
    assert (graph.preprocessing.mean, graph.preprocessing.std) == ((0.0,) * 3, (1.0,) * 3)
    assert load_artifact(tmp_path / "model.qsd") == graph
    assert len(repr(graph)) < 100


def test_the_image_size_of_a_description_can_be_replaced():
    assert qsd.lower(settled(ResNet), INFO, image_size=24).preprocessing.image_size == 24


def test_a_file_called_onnx_is_one(tmp_path):
    model, path = settled(ResNet), tmp_path / "model.onnx"
    graph = qsd.export(model, path, INFO, runtime="openvino")
    with pytest.raises(UserError, match="runtime='openvino' is for ONNX files: leave it out"):
        qsd.export(graph, path.with_suffix(".qsd"), runtime="openvino")
    expected = graph.run(pixels().numpy()) * graph.logit_scale
    np.testing.assert_allclose(load_onnx(path).logits(pixels().numpy()), expected, atol=1e-4)


class Linear(nn.Sequential):
    """A network without convolutions."""

    def __init__(self) -> None:
        layers = (nn.Flatten(), QuantLinear(768, 8, bits=4), nn.BatchNorm1d(8), IELIF(4))
        super().__init__(*layers, QuantLinear(8, 5, bits=4))


def test_a_network_of_linear_layers_is_lowered_and_counted(tmp_path):
    from qsdformer.analysis.ledger import make_ledger
    from qsdformer.analysis.measure import measure

    model = settled(Linear)
    assert qsd.export(model, tmp_path / "model.qsd", image_size=16).preprocessing.channels == 3
    measured = measure(model, [(torch.randn(3, 3, 16, 16), torch.zeros(3).long())])
    kinds = [row.kind for row in make_ledger("own", model, measured).rows]
    assert kinds == ["mac", "norm", "neuron", "ac", "norm"]


@pytest.mark.parametrize("channels", [1, 2])
def test_images_may_have_any_number_of_channels(channels, tmp_path):
    torch.manual_seed(0)
    layers = (QuantConv2d(channels, 6, 3, bits=4), IELIF(4), nn.Flatten())
    model = nn.Sequential(*layers, QuantLinear(6 * 14 * 14, 5, bits=4)).eval()
    assert qsd.verify(model, torch.rand(3, channels, 16, 16)).ok
    graph = qsd.export(model, tmp_path / "model.qsd", image_size=16)
    assert load_artifact(tmp_path / "model.qsd") == graph


def test_images_need_not_be_square(tmp_path):
    model = settled(ResNet)
    assert qsd.verify(model, torch.rand(2, 3, 16, 24)).ok
    graph = qsd.export(model, tmp_path / "model.qsd", image_size=(16, 24))
    assert graph.preprocessing.sides == (16, 24)
    assert load_artifact(tmp_path / "model.qsd") == graph


REFUSED: dict[str, tuple[Callable[[], object], str]] = {
    "no size": (lambda: qsd.lower(settled(ResNet)), "what images it takes: give info=.*image_size"),
    "no batch": (lambda: qsd.verify(settled(ResNet), pixels()[0]), "give a batch"),
    "no images": (lambda: qsd.verify(settled(ResNet), []), "no images"),
    "an empty batch": (lambda: qsd.verify(settled(ResNet), pixels()[:0]), "no images"),
    "other channels": (
        lambda: qsd.verify(settled(ResNet), pixels()[:, :1]),
        r"stem \(QuantConv2d\).*3 channels are asked for, and 1 given",
    ),
    "another size": (
        lambda: qsd.verify(settled(ResNet), pixels()[..., :8, :8], INFO),
        r"images of shape \(3, 3, 8, 8\)",
    ),
    "not finite": (
        lambda: qsd.verify(settled(ResNet), pixels().float() * float("nan")),
        "not finite",
    ),
    "no pixels": (lambda: qsd.verify(settled(ResNet), pixels().long() * 2), "0 to 255"),
    "half precision": (
        lambda: qsd.verify(settled(ResNet).half(), pixels()),
        r"computes in torch.float16: call model.float\(\)",
    ),
    "compiled": (
        lambda: qsd.verify(torch.compile(settled(ResNet)), pixels(), INFO),  # type: ignore[arg-type]
        "the model is compiled",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_images_that_fit_no_assumption_are_refused_in_one_line(case: str):
    act, message = REFUSED[case]
    with pytest.raises(UserError, match=message) as error:
        act()
    assert "\n" not in str(error.value)


def test_attention_of_tokens_says_how_they_become_a_map():
    tokens = torch.rand(2, 16, 8)
    with pytest.raises(ValueError, match=r"takes maps .*unflatten"):
        SpikeAttention(2)(tokens, tokens, tokens)
