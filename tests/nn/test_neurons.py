"""Spiking neurons against trajectories and gradients worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch
from variants import COMPILES

from qsdformer.nn.config import ModelConfig
from qsdformer.nn.neurons import (
    IELIF,
    LIF,
    SpikingNeuron,
    count_activation,
    counts_to_spikes,
    firing_window,
    lif_steps,
    make_neuron,
    spike_count,
    spikes_to_counts,
)

# LIF, tau 2, threshold 1: h = v + (x - v)/2, s = 1[h >= 1], v' = h (1 - s).
# Neuron a, x = 1.5 always:  h = .75        -> 0, v = .75
#                            h = .75 + .375 = 1.125 -> 1, v = 0; then the same again
# Neuron b, x = 2, -1, 4, .5: h = 1 -> 1 (reaching the threshold fires), v = 0
#                             h = -.5 -> 0, v = -.5
#                             h = -.5 + 4.5/2 = 1.75 -> 1, v = 0
#                             h = .25 -> 0
# Neuron c, x = 1, 1, 1, 1.2: h = .5, .75, .875 -> 0; h = .875 + .325/2 = 1.0375 -> 1
LIF_INPUT = [[1.5, 2.0, 1.0], [1.5, -1.0, 1.0], [1.5, 4.0, 1.0], [1.5, 0.5, 1.2]]
LIF_SPIKES = [[0, 1, 0], [1, 0, 0], [0, 1, 0], [1, 0, 1]]

# LIF at T = 1: h = x/2, so it fires from x = 2 on.
LIF_STILL = {"input": [-1.0, 1.99, 2.0, 2.5], "spikes": [0, 0, 1, 1]}

# IE-LIF over time, decay 1/4, x = .3, .6, -.2, 1.5: h = v/4 + x, c = floor(clip(D h, 0, D) + 1/2),
# v' = h - c/D.
# D = 1: h = .3 -> 0, v = .3;            h = .675 -> 1, v = -.325
#        h = -.08125 - .2 = -.28125 -> 0, v = h;  h = 1.43 -> 1
# D = 2: 2h = .6 -> 1, v = -.2;          h = .55, 2h = 1.1 -> 1, v = .05
#        h = .0125 - .2 -> 0;            h > 1 -> 2
# D = 3: 3h = .9 -> 1, v = -.0333;       h = .59167, 3h = 1.775 -> 2, v = -.075; -> 0; -> 3
# D = 4: 4h = 1.2 -> 1, v = .05;         h = .6125, 4h = 2.45 -> 2; -> 0; -> 4
# D = 8: 8h = 2.4 -> 2, v = .05;         h = .6125, 8h = 4.9 -> 5; -> 0; -> 8
IELIF_INPUT = [[0.3], [0.6], [-0.2], [1.5]]
IELIF_COUNTS = {
    1: [0, 1, 0, 1],
    2: [1, 1, 0, 2],
    3: [1, 2, 0, 3],
    4: [1, 2, 0, 4],
    8: [2, 5, 0, 8],
}

# IE-LIF at T = 1: floor(clip(D u, 0, D) + 1/2), a half rounds up. For D = 4 the products are
# -4, 0, .4, .5, 1.496, 1.5, 2.4, 4, 28; for D = 8: -8, 0, .8, 1, 2.992, 3, 4.8, 8, 56.
STILL_INPUT = [-1.0, 0.0, 0.1, 0.125, 0.374, 0.375, 0.6, 1.0, 7.0]
STILL_COUNTS = {
    1: [0, 0, 0, 0, 0, 0, 1, 1, 1],
    2: [0, 0, 0, 0, 1, 1, 1, 2, 2],
    3: [0, 0, 0, 0, 1, 1, 2, 3, 3],
    4: [0, 0, 0, 1, 1, 2, 2, 4, 4],
    8: [0, 0, 1, 1, 3, 3, 5, 8, 8],
}


def _cases() -> list[tuple[SpikingNeuron, torch.Tensor, torch.Tensor]]:
    """Neuron, input (T*B, ...), expected counts of the same shape."""
    cases: list[tuple[SpikingNeuron, torch.Tensor, torch.Tensor]] = [
        (LIF(4), torch.tensor(LIF_INPUT), torch.tensor(LIF_SPIKES)),
        (LIF(1), torch.tensor([LIF_STILL["input"]]), torch.tensor([LIF_STILL["spikes"]])),
    ]
    for levels, counts in IELIF_COUNTS.items():
        expected = torch.tensor(counts).view(4, 1)
        cases.append((IELIF(levels, 4, 0.25), torch.tensor(IELIF_INPUT), expected))
    for levels, counts in STILL_COUNTS.items():
        cases.append((IELIF(levels, 1), torch.tensor([STILL_INPUT]), torch.tensor([counts])))
    return cases


@pytest.mark.parametrize("case", _cases(), ids=lambda case: str(case[0]))
def test_neurons_follow_the_hand_computed_trajectories(case):
    neuron, x, expected = case
    output = neuron(x)
    assert torch.equal(neuron.counts(output), expected)
    assert torch.equal(output, expected.float() * neuron.step)


@pytest.mark.skipif(not COMPILES, reason="g++ or Python.h is missing")
def test_neurons_follow_the_same_trajectories_under_torch_compile():
    cases = _cases()

    # All in one graph, for one compilation.
    @torch.compile(fullgraph=True)
    def run(inputs: list[torch.Tensor]) -> list[torch.Tensor]:
        return [neuron(x) for (neuron, _, _), x in zip(cases, inputs, strict=True)]

    outputs = run([x for _, x, _ in cases])
    for (neuron, _, expected), output in zip(cases, outputs, strict=True):
        assert torch.equal(neuron.counts(output), expected), neuron


def test_time_steps_are_the_slow_part_of_the_batch():
    # Two samples with different inputs; each has to see its own past.
    neuron = LIF(4)
    a, b = torch.tensor(LIF_INPUT)[:, 0], torch.tensor(LIF_INPUT)[:, 1]
    together = neuron(torch.stack([a, b], dim=1).flatten()).view(4, 2)
    assert together[:, 0].tolist() == [row[0] for row in LIF_SPIKES]
    assert together[:, 1].tolist() == [row[1] for row in LIF_SPIKES]


def test_a_batch_that_is_no_multiple_of_the_time_steps_is_refused():
    with pytest.raises(ValueError, match="batch of 5 is not a multiple of time_steps=4"):
        LIF(4)(torch.zeros(5, 2))


def test_gain_scales_the_value_of_a_spike_and_not_the_counts():
    neuron = IELIF(4, 1, gain=2.0)
    output = neuron(torch.tensor(STILL_INPUT))
    assert neuron.step == 0.5
    assert neuron.counts(output).tolist() == STILL_COUNTS[4]
    assert output.tolist() == [count / 2 for count in STILL_COUNTS[4]]


def _gradient(function, *values: float) -> list[float]:
    x = torch.tensor(values, requires_grad=True)
    function(x).sum().backward()
    assert x.grad is not None
    return x.grad.tolist()


@pytest.mark.parametrize("levels", [1, 3, 4])
def test_the_exp_window_is_1_inside_and_decays_with_the_distance_outside(levels):
    got = _gradient(lambda u: count_activation(u, levels), -0.5, 0.0, 0.25, 0.9, 1.0, 1.25)
    # exp(-4 * .5), 1, 1, 1, 1, exp(-4 * .25)
    assert got == pytest.approx([math.exp(-2), 1, 1, 1, 1, math.exp(-1)], rel=1e-6)


@pytest.mark.parametrize("levels", [1, 3, 4])
def test_the_rectangular_window_is_open(levels):
    # The publication passes the gradient where 0 < D u < D.
    got = _gradient(lambda u: count_activation(u, levels, "rect"), -0.5, 0.0, 0.25, 0.9, 1.0, 1.25)
    assert got == [0, 0, 1, 1, 0, 0]


def test_the_lif_gradient_is_a_sigmoids_derivative():
    # h = x/2 and u = h - 1; 4 s (1 - s) with s = sigmoid(4 u), times dh/dx = 1/2.
    # x = 2: u = 0, s = 1/2 -> .5. x = 4: u = 1, s = 1/(1 + e^-4) = .982014 -> .0353254.
    assert _gradient(LIF(1), 2.0, 4.0) == pytest.approx([0.5, 0.0353254], rel=1e-5)


def test_lif_gradients_reach_back_in_time_until_a_reset():
    neuron = LIF(2)

    def last_spike(x: torch.Tensor) -> torch.Tensor:
        return neuron(x)[1]

    # x = 1, 1.5: h0 = .5 (silent), h1 = .5/2 + 1.5/2 = 1, where the surrogate is 1.
    # ds1/dx0 = 1 * 1/2 (v0 to h1) * 1/2 (x0 to h0); ds1/dx1 = 1/2.
    assert _gradient(last_spike, 1.0, 1.5) == pytest.approx([0.25, 0.5])
    # x = 2, 2: the first spike resets the membrane, and the reset is detached.
    assert _gradient(last_spike, 2.0, 2.0) == pytest.approx([0.0, 0.5])


def test_lif_over_all_steps_is_the_formula_step_by_step():
    class Surrogate(torch.autograd.Function):
        @staticmethod
        def forward(ctx, u):
            ctx.save_for_backward(u)
            return (u >= 0).to(u.dtype)

        @staticmethod
        def backward(ctx, grad):
            (u,) = ctx.saved_tensors
            s = torch.sigmoid(4 * u)
            return grad * 4 * s * (1 - s)

    tau, threshold = 1.7, 0.4
    torch.manual_seed(0)
    inputs = [2 * torch.randn(5, 64, dtype=torch.float64), torch.rand(64, dtype=torch.float64)]
    x, v = (one.clone().requires_grad_() for one in inputs)
    spikes, after = lif_steps(x, v, tau, threshold)
    a, potential = (one.clone().requires_grad_() for one in inputs)
    expected, state = [], potential
    for x_t in a:
        h = state + (x_t - state) / tau
        expected.append(Surrogate.apply(h - threshold))
        state = h * (1 - expected[-1].detach())
    assert torch.equal(spikes, torch.stack(expected))
    assert 0.2 < spikes.mean() < 0.8
    torch.testing.assert_close(after, state, rtol=0, atol=0)
    weights = torch.randn_like(spikes)
    ((weights * spikes).sum() + after.square().sum()).backward()
    ((weights * torch.stack(expected)).sum() + state.square().sum()).backward()
    torch.testing.assert_close(x.grad, a.grad, rtol=1e-12, atol=1e-14)  # float64, another order
    torch.testing.assert_close(v.grad, potential.grad, rtol=1e-12, atol=1e-14)


def test_ielif_gradients_reach_back_through_what_the_soft_reset_leaves():
    neuron = IELIF(4, 2, 0.25)

    def last_value(x: torch.Tensor) -> torch.Tensor:
        return neuron(x)[1]

    # v0 = h0 - value0, so dv0/dx0 = 1 - surrogate: nothing is left inside the window,
    assert _gradient(last_value, 0.3, 0.5) == pytest.approx([0.0, 1.0])
    # and 1 - exp(-4 * .25) outside it, times the decay 1/4.
    expected = 0.25 * (1 - math.exp(-1))
    assert _gradient(last_value, -0.25, 0.5) == pytest.approx([expected, 1.0])


@pytest.mark.parametrize("levels", [1, 2, 3, 4, 8])
def test_counts_and_binary_spikes_are_two_forms_of_the_same(levels):
    counts = torch.randint(0, levels + 1, (3, 5, 2)).float()
    spikes = counts_to_spikes(counts, levels)
    assert spikes.shape == (levels, 3, 5, 2)
    assert set(spikes.unique().tolist()) <= {0.0, 1.0}
    assert torch.equal(spikes_to_counts(spikes), counts)


def test_spikes_come_in_thermometer_order():
    spikes = counts_to_spikes(torch.tensor([0.0, 1.0, 3.0]), 3)
    assert spikes.T.tolist() == [[0, 0, 0], [1, 0, 0], [1, 1, 1]]


def test_spike_counts_leave_their_argument_alone():
    u = torch.tensor([0.3, 2.0])
    spike_count(u, 4)
    assert torch.equal(u, torch.tensor([0.3, 2.0]))


def test_make_neuron_passes_every_setting_on():
    config = ModelConfig(levels=8, time_steps=2, decay=0.5, surrogate="rect")
    ielif = make_neuron(config, gain=2.0)
    assert isinstance(ielif, IELIF)
    assert (ielif.levels, ielif.time_steps, ielif.decay) == (8, 2, 0.5)
    assert (ielif.surrogate, ielif.gain) == ("rect", 2.0)
    lif = make_neuron(ModelConfig(neuron="lif", levels=1, time_steps=3, tau=4.0, threshold=0.5))
    assert isinstance(lif, LIF)
    assert (lif.levels, lif.time_steps, lif.tau, lif.threshold) == (1, 3, 4.0, 0.5)
    assert isinstance(make_neuron(ModelConfig().ann("relu")), torch.nn.ReLU)
    assert isinstance(make_neuron(ModelConfig().ann("gelu")), torch.nn.GELU)


def test_the_firing_window_uses_all_counts():
    mean, deviation = firing_window(ModelConfig(levels=4))
    potentials = mean + deviation * torch.randn(100_000, generator=torch.Generator().manual_seed(0))
    shares = torch.bincount(spike_count(potentials, 4).long(), minlength=5) / 100_000
    assert shares.min() > 0.1
    assert shares.max() < 0.35


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("levels", [1, 3, 4, 31, 100, 127])
def test_counts_in_other_precisions_are_those_of_the_same_potentials_in_float32(dtype, levels):
    u = torch.cat([torch.linspace(-0.5, 1.5, 10_001), torch.tensor([-1e4, 1e4])]).to(dtype)
    counts = spike_count(u, levels)
    assert counts.dtype == dtype
    assert (counts.min().item(), counts.max().item()) == (0, levels)
    wide = u.double() if dtype == torch.float64 else u.float()
    assert torch.equal(counts.long(), spike_count(wide, levels).long())
    # The value c / D still tells the count.
    neuron = IELIF(levels)
    assert torch.equal(neuron.counts(neuron(u)), counts.long())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("neuron", [LIF(time_steps=8), IELIF(4, time_steps=8, decay=0.5)])
def test_potentials_are_summed_over_time_in_float32(neuron, dtype):
    x = torch.randn(8 * 4, 300, generator=torch.Generator().manual_seed(0)).to(dtype)
    spikes = neuron(x)
    assert spikes.dtype == dtype
    assert torch.equal(spikes, neuron(x.float()).to(dtype))
    steps, v = [], None
    for x_t in x.unflatten(0, (8, -1)).unbind(0):  # in half precision others fire
        value, v = neuron._step(x_t, v)
        steps.append(value)
    assert not torch.equal(torch.cat(steps), spikes)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_no_count_exceeds_the_levels_even_where_half_precision_is_too_coarse_for_them(dtype):
    for levels in (128, 200, 255, 256):
        assert spike_count(torch.tensor([0.999, 1.0, 3.0], dtype=dtype), levels).max() <= levels


@pytest.mark.parametrize(
    ("neuron", "name", "value"),
    [
        (IELIF, "levels", 0),
        (IELIF, "levels", 128),
        (IELIF, "time_steps", 0),
        (IELIF, "decay", 1.5),
        (IELIF, "surrogate", "sigmoid"),
        (IELIF, "rounding", "nearest"),
        (IELIF, "window", 0.0),
        (LIF, "tau", 0.5),
        (LIF, "threshold", -1.0),
    ],
)
def test_a_neuron_refuses_what_it_cannot_be(neuron, name, value):
    with pytest.raises(ValueError, match=f"^{name}={value!r}: must be "):
        neuron(**{name: value})
