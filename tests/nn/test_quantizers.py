"""LSQ against an independent computation of its definition."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from qsdformer.nn.neurons import counts_to_spikes
from qsdformer.nn.quantizers import (
    QuantConv2d,
    QuantConvTranspose2d,
    QuantLinear,
    code_range,
    initial_step_size,
    lsq_quantize,
    quantized_layers,
    quantized_together,
    weight_codes,
)

ALL_BITS = range(2, 9)


def numpy_codes(weight: np.ndarray, step: np.ndarray, bits: int) -> np.ndarray:
    """round(clip(w/step, -2^(b-1), 2^(b-1) - 1)), a half to the even neighbour."""
    step = step.reshape(-1, *[1] * (weight.ndim - 1))
    return np.rint(np.clip(weight / step, -(2 ** (bits - 1)), 2 ** (bits - 1) - 1))


def numpy_step(weight: np.ndarray, bits: int) -> np.ndarray:
    """2 mean|w| / sqrt(Qp) per output channel."""
    mean = np.abs(weight).reshape(len(weight), -1).mean(axis=1)
    return 2 * mean / math.sqrt(2 ** (bits - 1) - 1)


@pytest.mark.parametrize("bits", ALL_BITS)
@pytest.mark.parametrize("shape", [(5, 3, 3, 3), (7, 11)])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_codes_equal_an_independent_computation(bits, shape, seed):
    generator = np.random.default_rng(seed)
    weight = generator.normal(size=shape).astype(np.float32)
    step = generator.uniform(0.02, 0.5, shape[0]).astype(np.float32)
    # Weights exactly between two codes as well: powers of two times odd halves.
    step[0] = 0.25
    weight[0] = (generator.integers(-6, 6, shape[1:]) + 0.5) * 0.25
    codes = weight_codes(torch.from_numpy(weight), torch.from_numpy(step), bits).numpy()
    assert np.array_equal(codes, numpy_codes(weight, step, bits))


def test_ternary_codes_are_signs_and_zeros_kept_in_two_bits():
    weight, step = torch.linspace(-5, 5, 101).view(1, -1), torch.ones(1)
    expected = weight.sign() * (weight.abs() > 0.5)  # a half goes to the even code, 0
    assert torch.equal(weight_codes(weight, step, "ternary"), expected)
    layer = QuantLinear(8, 4, bits="ternary")
    assert layer.bits == 2
    assert layer.codes().unique().tolist() == [-1, 0, 1]


def test_a_half_rounds_to_the_even_code():
    weight = torch.tensor([[-2.5, -1.5, -0.5, 0.5, 1.5, 2.5]])
    assert weight_codes(weight, torch.ones(1), 4).tolist() == [[-2, -2, 0, 0, 2, 2]]


@pytest.mark.parametrize("bits", ALL_BITS)
def test_codes_use_the_whole_range_and_no_more(bits):
    low, high = code_range(bits)
    codes = weight_codes(torch.linspace(-500, 500, 2001).view(1, -1), torch.ones(1), bits)
    assert (codes.min().item(), codes.max().item()) == (low, high)
    assert high - low + 1 == 2**bits


@pytest.mark.parametrize("bits", [0, 1, 9, 3.5, "4", "none", "Ternary", None])
def test_other_bits_are_refused(bits):
    with pytest.raises(ValueError, match="weights have 2 to 8 bits"):
        code_range(bits)


@pytest.mark.parametrize("bits", ALL_BITS)
def test_step_sizes_start_from_the_mean_weight_of_each_channel(bits):
    layer = QuantConv2d(3, 5, 3, bits=bits)
    expected = numpy_step(layer.weight.detach().numpy(), bits)
    np.testing.assert_allclose(layer.step_size.detach().numpy(), expected, rtol=1e-6)


def test_a_channel_of_zeros_has_a_positive_step_size():
    step = initial_step_size(torch.zeros(2, 3), 4)
    assert (step > 0).all()
    assert step.log().isfinite().all()


def test_gradients_equal_those_worked_out_by_hand():
    # 3 bits: codes -4..3. step = .5, w/step = .6, -6, 4, 1.2 -> codes 1, -4, 3, 1.
    weight = torch.tensor([[0.3, -3.0, 2.0, 0.6]], requires_grad=True)
    step = torch.tensor([0.5], requires_grad=True)
    quantised = lsq_quantize(weight, step, 3)
    assert quantised.tolist() == [[0.5, -2.0, 1.5, 0.5]]
    quantised.backward(torch.tensor([[1.0, 1.0, 2.0, 3.0]]))
    # Straight through inside the range, nothing outside it.
    assert weight.grad.tolist() == [[1, 0, 0, 3]]
    # code - w/step inside (.4 and -.2), the clipped code outside (-4 and 3):
    # (1*.4 - 1*4 + 2*3 - 3*.2) / sqrt(4 weights * Qp 3) = 1.8 / sqrt(12).
    assert step.grad.tolist() == pytest.approx([1.8 / math.sqrt(12)], rel=1e-5)


@pytest.mark.parametrize("bits", [*ALL_BITS, "ternary"])
def test_gradients_equal_those_of_the_textbook_formula(bits):
    torch.manual_seed(0)
    low, high = code_range(bits)
    weight, upstream = torch.randn(4, 3, 3, 3), torch.randn(4, 3, 3, 3)
    step = torch.rand(4).mul(0.3).add(0.05).requires_grad_()
    ours_w = weight.clone().requires_grad_()
    lsq_quantize(ours_w, step, bits).backward(upstream)

    # LSQ as autograd sees it: a detached residual for the round, a scaled view of the step size.
    theirs_w = weight.clone().requires_grad_()
    theirs_s = step.detach().clone().requires_grad_()
    scale = 1 / math.sqrt(weight.numel() * high)
    s = (theirs_s * scale + (theirs_s - theirs_s * scale).detach()).view(-1, 1, 1, 1)
    clipped = (theirs_w / s).clamp(low, high)
    ((clipped + (clipped.round() - clipped).detach()) * s).backward(upstream)
    torch.testing.assert_close(ours_w.grad, theirs_w.grad)
    torch.testing.assert_close(step.grad, theirs_s.grad, rtol=1e-4, atol=1e-5)


def _layers(seed: int = 0) -> nn.ModuleList:
    torch.manual_seed(seed)
    return nn.ModuleList(
        [
            QuantConv2d(3, 4, 3, bits=8),
            QuantConv2d(4, 4, 3, groups=4, bias=False, bits=4),
            QuantConv2d(4, 6, 1, bits=None),
            QuantLinear(6, 5, bits=2),
        ]
    )


def _run(layers: nn.ModuleList, x: torch.Tensor) -> torch.Tensor:
    for layer in layers[:-1]:
        x = layer(x).relu()
    return layers[-1](x.mean(dim=(2, 3)))


def test_quantising_together_gives_the_same_values_and_gradients():
    x = torch.randn(2, 3, 9, 9)
    one_by_one, together = _layers(), _layers()
    expected = _run(one_by_one, x)
    expected.square().sum().backward()
    with quantized_together(list(quantized_layers(together).values())):
        got = _run(together, x)
    got.square().sum().backward()
    assert torch.equal(got, expected)
    for (name, a), b in zip(one_by_one.named_parameters(), together.parameters(), strict=True):
        assert a.grad is not None, name
        assert torch.equal(a.grad, b.grad), name


def test_frozen_layers_are_left_out_of_quantising_together():
    layers = _layers()
    frozen = layers[0].eval().requires_grad_(False)
    with torch.no_grad():
        frozen(torch.randn(2, 3, 9, 9))
    assert frozen._kept is not None
    with quantized_together(list(quantized_layers(layers).values())):
        assert not frozen.effective_weight().requires_grad
        assert frozen._kept is not None
        assert layers[1]._prepared is not None
    codes = weight_codes(frozen.weight, frozen.step_size, 8)
    expected = codes * frozen.step_size.view(-1, 1, 1, 1)
    assert torch.equal(frozen.effective_weight(), expected)


def test_codes_of_an_evaluation_are_given_up_in_training():
    layers = _layers()
    with torch.no_grad():
        _run(layers.eval(), torch.randn(2, 3, 9, 9))
    quantised = [layer for layer in layers if layer.bits is not None]
    for layer in quantised:
        assert layer._kept is not None
        layer.training = True  # as Lightning puts it back, without a call of train()
    with quantized_together(list(quantized_layers(layers).values())):
        assert all(layer._kept is None for layer in quantised)


def test_quantising_together_ends_with_the_block_even_after_an_error():
    layers = _layers()
    chosen = list(quantized_layers(layers).values())

    def fail() -> None:
        with quantized_together(chosen):
            raise RuntimeError("inside")

    with pytest.raises(RuntimeError, match="inside"):
        fail()
    x = torch.randn(2, 3, 9, 9)
    before = _run(layers, x)
    with torch.no_grad():
        layers[0].weight.mul_(-1)
    assert not torch.equal(_run(layers, x), before)


def test_a_full_precision_state_dict_starts_the_step_sizes():
    full = QuantConv2d(3, 5, 3, bits=None)
    with torch.no_grad():
        full.weight.mul_(10)
    state = full.state_dict()
    layer = QuantConv2d(3, 5, 3, bits=4)
    layer.load_state_dict(state)
    assert torch.equal(layer.weight, full.weight)
    expected = numpy_step(full.weight.detach().numpy(), 4)
    np.testing.assert_allclose(layer.step_size.detach().numpy(), expected, rtol=1e-5)
    assert set(state) == {"weight", "bias"}  # the caller's dictionary is left alone


def test_a_state_dict_in_half_precision_starts_steps_as_fine_as_in_full():
    torch.manual_seed(0)
    full = QuantConv2d(64, 8, 3, bits=None)
    layer, half = QuantConv2d(64, 8, 3, bits=8), QuantConv2d(64, 8, 3, bits=8)
    layer.load_state_dict(full.state_dict())
    half.load_state_dict(full.half().state_dict())
    # float16 has 11 bits; its own smallest step would be twice the one wanted.
    torch.testing.assert_close(half.log_step_size, layer.log_step_size, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("layer", [QuantConv2d, QuantConvTranspose2d])
def test_an_image_without_a_batch_has_none_in_evaluation_either(layer):
    conv = layer(3, 4, 3, bits=4)
    x = torch.randn(3, 8, 8)
    trained = conv(x)
    torch.testing.assert_close(conv.eval()(x), trained, rtol=1e-5, atol=1e-6)
    assert conv(x).dim() == 3


def test_a_quantised_state_dict_keeps_its_step_sizes():
    layer, other = QuantLinear(4, 3, bits=4), QuantLinear(4, 3, bits=4)
    with torch.no_grad():
        layer.log_step_size.add_(1.0)
    other.load_state_dict(layer.state_dict())
    assert torch.equal(other.log_step_size, layer.log_step_size)
    assert torch.equal(other.codes(), layer.codes())


def test_reset_step_size_starts_again_from_the_weight():
    layer = QuantLinear(4, 3, bits=4)
    start = layer.step_size.detach().clone()
    with torch.no_grad():
        layer.weight.mul_(3)
    layer.reset_step_size()
    torch.testing.assert_close(layer.step_size.detach(), 3 * start)


def test_a_full_precision_layer_has_no_codes_and_computes_like_torch():
    torch.manual_seed(0)
    layer = QuantLinear(4, 3, bits=None)
    x = torch.randn(2, 4)
    assert torch.equal(layer(x), nn.functional.linear(x, layer.weight, layer.bias))
    with pytest.raises(ValueError, match="no weight codes"):
        layer.codes()
    with pytest.raises(ValueError, match="no step size"):
        _ = layer.step_size


@pytest.mark.parametrize("bits", ALL_BITS)
def test_training_and_evaluation_compute_with_the_same_weight(bits):
    torch.manual_seed(bits)
    layer = QuantConv2d(3, 4, 3, bits=bits)
    x = torch.randn(2, 3, 8, 8)
    expected = layer.codes().float() * layer.step_size.view(-1, 1, 1, 1)
    assert torch.equal(layer.effective_weight(), expected)
    torch.testing.assert_close(layer(x), layer.eval()(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("levels", [1, 2, 4, 8])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_one_virtual_step_after_the_other_gives_the_same_bits(levels, seed):
    torch.manual_seed(seed)
    counts = torch.randint(0, levels + 1, (2, 8, 7, 7)).float()
    for layer in (
        QuantConv2d(8, 6, 3, padding=1, bits=4).eval(),
        QuantConv2d(8, 8, 7, padding=3, groups=8, bias=False, bits=8).eval(),
        QuantConv2d(8, 6, 1, bits=2).eval(),
    ):
        codes = layer.codes().float()
        additions = torch.zeros_like(layer(counts))
        for spikes in counts_to_spikes(counts, levels):
            additions += nn.functional.conv2d(
                spikes, codes, padding=layer.padding, groups=layer.groups
            )
        assert torch.equal(additions, additions.round())
        expected = additions / levels * layer.step_size.view(1, -1, 1, 1)
        if layer.bias is not None:
            expected = expected + layer.bias.view(1, -1, 1, 1)
        assert torch.equal(layer(counts / levels), expected)
