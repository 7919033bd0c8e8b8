"""Reading inside a model."""

from __future__ import annotations

import pytest
import torch

from qsdformer.nn.neurons import IELIF
from qsdformer.nn.taps import matching_modules, on_call, spiking_neurons, tap


@pytest.fixture(scope="module")
def model(make_model):
    return make_model().eval()


@pytest.fixture(scope="module")
def images():
    return torch.randn(2, 3, 32, 32)


def test_a_tap_records_the_modules_that_match(model, images):
    with tap(model, "*.q_neuron", "stages.?", "head") as acts:
        logits = model(images)
    q_neurons = [f"stages.{i}.blocks.0.attention.q_neuron" for i in (3, 4)]
    assert set(acts) == {*q_neurons, *(f"stages.{i}" for i in range(5)), "head"}
    assert torch.equal(acts["head"], logits)
    assert [acts[f"stages.{i}"].shape[1:] for i in range(5)] == [
        (2, 16, 16),
        (4, 8, 8),
        (6, 4, 4),
        (8, 2, 2),
        (8, 2, 2),
    ]


def test_a_tap_on_inputs_records_what_goes_in(model, images):
    with (
        tap(model, "stages.1", inputs=True) as before,
        tap(model, "stages.0") as after,
    ):
        model(images)
    assert torch.equal(before["stages.1"], after["stages.0"])


def test_every_pattern_has_to_match(model):
    with (
        pytest.raises(ValueError, match=r"no module matches '\*\.w_neuron'"),
        tap(model, "*.q_neuron", "*.w_neuron"),
    ):
        pass
    # Nothing stays behind on the modules that did match.
    assert not any(module._forward_hooks for module in model.modules())


def test_a_tap_ends_with_its_block_and_says_if_it_recorded_nothing(model, images):
    expected = "nothing was recorded of head: the model did not run"
    with pytest.warns(UserWarning, match=expected), tap(model, "head") as acts:
        pass
    model(images)
    assert acts == {}


def test_a_tap_ends_after_an_error_too(model):
    with pytest.raises(RuntimeError, match="inside"), tap(model, "*"):
        raise RuntimeError("inside")
    assert not any(module._forward_hooks for module in model.modules())


def test_the_latest_pass_counts(model, images):
    with tap(model, "head") as acts:
        model(images)
        latest = model(images * 2)
    assert torch.equal(acts["head"], latest)


def test_gradients_stay_attached(make_model, images):
    model = make_model()
    with tap(model, "stages.3") as acts:
        model(images)
    acts["stages.3"].sum().backward()
    assert model.stages[0].downsample.conv.weight.grad is not None


def test_modules_come_in_the_order_of_definition(model):
    names = list(matching_modules(model, "head", "stages.?"))
    assert names == [*(f"stages.{i}" for i in range(5)), "head"]


def test_spiking_neurons_are_found_by_name(model, make_model):
    neurons = spiking_neurons(model)
    assert "stages.4.blocks.0.attention.attention_neuron" in neurons
    assert all(isinstance(neuron, IELIF) for neuron in neurons.values())
    assert spiking_neurons(make_model(neuron="relu")) == {}


def test_on_call_gives_module_input_and_output(model, images):
    calls = []
    with on_call(model.head, lambda *call: calls.append(call)):
        logits = model(images)
    ((module, x, y),) = calls
    assert module is model.head
    assert x.shape == (2, 8)
    assert torch.equal(y, logits)


def test_a_tap_takes_an_argument_by_name(images):
    layer = torch.nn.Sequential(torch.nn.Identity())
    with tap(layer, "0", inputs=True) as acts:
        layer[0](input=images)
    assert acts["0"] is images
