"""Quantised layers in evaluation: straight-through gradients, and codes kept between passes."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from qsdformer.nn.neurons import SpikingNeuron
from qsdformer.nn.quantizers import QuantConv2d, QuantLinear, quantized_layers, weight_codes

VARIANTS = {
    "published": {},
    "fully spiking": {"fully_spiking": True, "time_steps": 2, "layer_scale": 0.5},
    "mixed bits": {"weight_bits": 2, "stem_bits": 8, "head_bits": 3},
    "lif": {"neuron": "lif", "time_steps": 2, "threshold": 0.2},
    "quantised ann": {"neuron": "relu", "weight_bits": 4, "stem_bits": 8, "head_bits": 8},
}


def _train_layers_only(model: nn.Module) -> None:
    """The training path of every quantised layer; norms and all the rest stay as in evaluation."""
    for layer in quantized_layers(model).values():
        layer.training = True


def _gradients(model: nn.Module, images: torch.Tensor) -> dict[str, torch.Tensor | None]:
    model.zero_grad()
    logits = model(images)
    F.cross_entropy(logits, torch.arange(len(logits)) % logits.shape[1]).backward()
    return {name: p.grad for name, p in model.named_parameters()}


@pytest.mark.parametrize("fields", VARIANTS.values(), ids=VARIANTS.keys())
def test_every_parameter_gets_in_evaluation_the_gradient_that_training_gives(lively, fields):
    # In double precision, so that the other order of operations moves no spike count.
    model = lively(**fields).double()
    images = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(2)).double()
    got = _gradients(model, images)
    _train_layers_only(model)
    expected = _gradients(model, images)
    assert len(got) == len(list(model.parameters()))
    for name, gradient in got.items():
        assert gradient is not None, name
        assert gradient.isfinite().all(), name
        torch.testing.assert_close(gradient, expected[name], rtol=1e-6, atol=1e-9, msg=name)
    weights = [n for n in got if n.endswith((".weight", "log_step_size"))]
    assert sum(bool(got[n].any()) for n in weights) > 0.5 * len(weights)


@pytest.mark.parametrize("fields", VARIANTS.values(), ids=VARIANTS.keys())
def test_evaluation_with_gradients_gives_the_same_bits_as_without(lively, fields):
    model = lively(**fields)
    images = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        expected = model(images)
    logits = model(images)
    assert logits.requires_grad
    assert torch.equal(logits, expected)
    with torch.inference_mode():
        assert torch.equal(model(images), expected)


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("make", [QuantConv2d, QuantLinear])
def test_a_layer_alone_has_the_gradients_of_training(make, bits):
    torch.manual_seed(bits)
    layer = make(4, 6, 3, bits=bits) if make is QuantConv2d else make(4, 6, bits=bits)
    x = torch.randn(5, 4, 7, 7) if make is QuantConv2d else torch.randn(5, 4)
    with torch.no_grad():
        layer.log_step_size.sub_(1)  # some weights lie outside the range of codes

    def gradients() -> list[torch.Tensor]:
        inputs = x.clone().requires_grad_()
        return list(
            torch.autograd.grad(layer(inputs).square().sum(), [inputs, *layer.parameters()])
        )

    expected = gradients()
    layer.eval()
    for got, want in zip(gradients(), expected, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-3)


def test_one_stage_alone_back_propagates_in_evaluation(lively):
    stage = lively().stages[2]
    x = torch.randn(2, stage.downsample.conv.in_channels, 8, 8, requires_grad=True)
    stage(x).square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in stage.parameters())
    assert x.grad is not None


def test_neurons_have_the_same_gradient_in_evaluation(lively):
    for fields in ({}, {"neuron": "lif", "time_steps": 2}):
        neurons = [m for m in lively(**fields).modules() if isinstance(m, SpikingNeuron)]
        x = torch.randn(4, 8, requires_grad=True)
        in_eval = torch.autograd.grad(neurons[0].eval()(x).sum(), x)[0]
        in_training = torch.autograd.grad(neurons[0].train()(x).sum(), x)[0]
        assert in_eval.any()
        assert torch.equal(in_eval, in_training)


def test_frozen_weights_need_no_gradient_of_their_own(lively):
    model = lively().requires_grad_(False)
    images = torch.randn(2, 3, 32, 32, requires_grad=True)
    with torch.inference_mode():
        model(images.detach())  # codes made here must not spoil the pass below
    model(images).sum().backward()
    assert images.grad is not None
    assert images.grad.isfinite().all()
    assert all(layer._kept is not None for layer in quantized_layers(model).values())


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_a_compiled_layer_in_evaluation_has_the_same_values_and_gradients(backend):
    torch.manual_seed(0)
    layer = QuantConv2d(3, 4, 3, bits=4).eval()
    x = torch.randn(2, 3, 8, 8)
    torch._dynamo.reset()
    compiled = torch.compile(layer, fullgraph=True, backend=backend)
    assert torch.equal(compiled(x), layer(x))
    got = torch.autograd.grad(compiled(x).square().sum(), list(layer.parameters()))
    expected = torch.autograd.grad(layer(x).square().sum(), list(layer.parameters()))
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
    with torch.no_grad():
        assert torch.equal(compiled(x), layer(x))
        layer.weight.mul_(-1)
        assert torch.equal(compiled(x), layer(x))
    torch._dynamo.reset()


# From here on: codes are kept, and made anew after every change.


def _layer(bits: int = 4) -> QuantConv2d:
    torch.manual_seed(0)
    return QuantConv2d(4, 6, 3, bits=bits).eval()


def _fresh(layer: QuantConv2d | QuantLinear) -> torch.Tensor:
    assert layer.bits is not None
    return weight_codes(layer.weight.detach(), layer.step_size.detach(), layer.bits)


def _used(layer: QuantConv2d) -> torch.Tensor:
    """The codes that an evaluation pass computes with."""
    x = torch.randn(1, 4, 5, 5, dtype=layer.weight.dtype)
    with torch.no_grad():
        y = layer(x)
        step = layer.step_size.view(1, -1, 1, 1)
        expected = F.conv2d(x, _fresh(layer)) * step + layer.bias.view(1, -1, 1, 1)
    assert torch.equal(y, expected)
    return _fresh(layer) if layer._kept is None else layer._kept.codes


def test_codes_are_kept_between_passes():
    layer = _layer()
    assert _used(layer) is _used(layer)
    with torch.inference_mode():
        layer(torch.randn(1, 4, 5, 5))
    assert not _used(layer).is_inference()
    # effective_weight is made of them as well.
    with torch.no_grad():
        assert torch.equal(
            layer.effective_weight(), _fresh(layer) * layer.step_size.view(-1, 1, 1, 1)
        )


def _optimizer_step(layer: QuantConv2d, make: object, **options: object) -> None:
    optimizer = make(layer.parameters(), lr=0.5, **options)
    layer(torch.randn(1, 4, 5, 5)).square().sum().backward()
    optimizer.step()


def _swap_state(layer: QuantConv2d, **options: object) -> None:
    state = {k: v * 1.7 for k, v in layer.state_dict().items()}
    layer.load_state_dict(state, **options)


def _in_inference_mode(layer: QuantConv2d) -> None:
    with torch.inference_mode():
        layer.weight.mul_(-1)


def _there_and_back(layer: QuantConv2d) -> None:
    """Other values at what may be the same address."""
    layer.weight.data = torch.zeros_like(layer.weight)
    layer.weight.data = torch.full_like(layer.weight, 0.3)


CHANGES = {
    "weight in place": lambda m: torch.no_grad()(m.weight.neg_)(),
    "step size in place": lambda m: torch.no_grad()(m.log_step_size.add_)(1),
    "weight in inference mode": _in_inference_mode,
    "a view": lambda m: torch.no_grad()(m.weight[2].mul_)(-3),
    "a detached alias": lambda m: m.weight.detach().mul_(-1),
    "one list for all": lambda m: torch._foreach_mul_([m.weight.detach()], -1),
    "new parameter": lambda m: setattr(m, "weight", nn.Parameter(-m.weight.detach())),
    "new parameter over the same memory": lambda m: setattr(
        m, "weight", nn.Parameter(m.weight.data.neg_())
    ),
    "new data": lambda m: setattr(m.weight, "data", -m.weight.data),
    "new data twice": _there_and_back,
    "transposed data": lambda m: setattr(m.weight, "data", m.weight.data.transpose(-1, -2)),
    "new step size data": lambda m: setattr(m.log_step_size, "data", m.log_step_size.data + 1),
    "data in place, then eval": lambda m: (m.weight.data.mul_(-1), m.eval()),
    "data in place, after a pass with gradients": lambda m: (
        m(torch.randn(1, 4, 5, 5)),
        m.weight.data.mul_(-1),
    ),
    "load_state_dict": _swap_state,
    "load_state_dict by assignment": lambda m: _swap_state(m, assign=True),
    "reset_step_size": lambda m: (torch.no_grad()(m.weight.mul_)(5), m.reset_step_size()),
    "sgd": lambda m: _optimizer_step(m, torch.optim.SGD),
    "adamw": lambda m: _optimizer_step(m, torch.optim.AdamW),
    "fused adamw": lambda m: _optimizer_step(m, torch.optim.AdamW, fused=True),
    "foreach adamw": lambda m: _optimizer_step(m, torch.optim.AdamW, foreach=True),
    "double": lambda m: m.double(),
    "bfloat16": lambda m: m.bfloat16(),
    "channels last": lambda m: m.to(memory_format=torch.channels_last),
    "training and back": lambda m: m.train().eval(),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_codes_are_made_anew_after(change):
    layer = _layer()
    with torch.no_grad():
        layer.log_step_size.add_(0.3)
    before = _used(layer)
    change(layer)
    # `_used` compares with codes made from the present weight.
    assert _used(layer) is not before


@pytest.mark.parametrize("fused", [False, True])
def test_a_training_step_in_evaluation_mode_shows_in_the_next_pass(lively, fused):
    model = lively()
    images = torch.randn(4, 3, 32, 32)
    with torch.no_grad():
        before = model(images)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.05, fused=fused)
    loss = F.cross_entropy(model(images), torch.arange(4))
    with torch.no_grad():
        model(images)  # a metric; fused optimisers then change weights unseen
    loss.backward()
    optimizer.step()
    with torch.no_grad():
        after = model(images)
        assert not torch.equal(after, before)
        assert torch.equal(after, copy.deepcopy(model)(images))


@pytest.mark.parametrize("change", [lambda m: m.to("meta"), lambda m: m.train()])
def test_moving_or_training_lets_go_of_the_codes(change):
    layer = _layer()
    _used(layer)
    change(layer)
    assert layer._kept is None


def test_a_layer_on_the_meta_device_and_one_made_in_inference_mode_work_without():
    with torch.no_grad():
        assert _layer().to("meta")(torch.empty(1, 4, 5, 5, device="meta")).is_meta
    with torch.inference_mode():
        layer = _layer()
        x = torch.randn(1, 4, 5, 5)
        before = layer(x)
        layer.weight.mul_(-1)
        assert not torch.equal(layer(x), before)
        assert layer._kept is None


def test_copies_files_and_state_dicts_carry_no_codes():
    layer = _layer()
    _used(layer)
    bare = len(pickle.dumps(_layer()))
    assert copy.deepcopy(layer)._kept is None
    assert copy.copy(layer)._kept is None
    assert len(pickle.dumps(layer)) == bare
    assert pickle.loads(pickle.dumps(layer))._kept is None
    assert set(layer.state_dict()) == {"weight", "bias", "log_step_size"}
    buffer = io.BytesIO()
    torch.save(layer, buffer)
    buffer.seek(0)
    assert torch.equal(_used(torch.load(buffer, weights_only=False)), _used(layer))
    assert layer._kept is not None  # the layer itself keeps them


def test_other_weights_for_one_call_are_used_and_not_kept():
    layer = _layer()
    own = _used(layer)
    other = {k: -v.detach() for k, v in layer.named_parameters() if k != "log_step_size"}
    x = torch.randn(1, 4, 5, 5)
    with torch.no_grad():
        y = torch.func.functional_call(layer, other, (x,))
        assert torch.equal(y, -layer(x))
        # Several at once, as for an ensemble.
        stacked = {k: torch.stack([v, v.neg()]) for k, v in other.items()}
        both = torch.vmap(lambda p: torch.func.functional_call(layer, p, (x,)))(stacked)
        assert torch.allclose(both[0], y, atol=1e-5)
        assert torch.allclose(both[1], layer(x), atol=1e-5)
    assert _used(layer) is own


def test_a_trace_and_an_export_hold_what_the_layer_computes():
    layer = _layer()
    x = torch.randn(2, 4, 5, 5)
    with torch.no_grad():
        expected = layer(x)
        exported = torch.export.export(layer, (x,)).module()
        assert torch.equal(exported(x), expected)
    assert torch.equal(torch.export.export(layer, (x,)).module()(x), expected)
    assert torch.equal(_used(layer), _fresh(layer))


def test_a_stand_in_of_a_tracer_is_not_kept():
    layer = _layer()
    with torch._subclasses.FakeTensorMode(allow_non_fake_inputs=True) as mode, torch.no_grad():
        layer(mode.from_tensor(torch.randn(1, 4, 5, 5)))
    _used(layer)
