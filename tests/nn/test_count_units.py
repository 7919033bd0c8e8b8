"""IE-LIF neurons with potentials in units of counts and halves rounded to even, by hand."""

from __future__ import annotations

import pytest
import torch

from qsdformer.models.e_spikeformer import ESpikeFormerConfig
from qsdformer.nn.neurons import IELIF, firing_window, make_neuron, spike_count

HALVES = torch.tensor([-1.0, 0.5, 0.50001, 1.5, 2.0, 2.5, 3.5, 3.49999, 9.0])


def test_halves_go_to_even_counts():
    counts = spike_count(HALVES, 4, window=4.0, rounding="even")
    assert counts.tolist() == [0, 0, 1, 2, 2, 2, 4, 3, 4]
    up = spike_count(HALVES, 4, window=4.0)
    assert up.tolist() == [0, 1, 1, 2, 2, 3, 4, 3, 4]


@pytest.mark.parametrize("levels", [1, 3, 4, 8])
def test_a_window_of_d_divides_potentials_by_d(levels):
    u = torch.randn(1000, generator=torch.Generator().manual_seed(0)) * levels
    expected = spike_count((u.double() / levels), levels)
    assert torch.equal(spike_count(u.double(), levels, window=float(levels)), expected)


def test_the_value_is_count_over_d_and_the_soft_reset_takes_the_count_away():
    neuron = IELIF(levels=4, time_steps=3, decay=0.5, window=4.0, rounding="even")
    # h: 2.5, 0.5 * (2.5 - 2) + 1.25 = 1.5, 0.5 * (1.5 - 2) + 6 = 5.75; counts 2, 2, 4.
    values = neuron(torch.tensor([[2.5], [1.25], [6.0]]))
    assert values.flatten().tolist() == [0.5, 0.5, 1.0]
    assert neuron.counts(values).flatten().tolist() == [2, 2, 4]


@pytest.mark.parametrize(("surrogate", "outside"), [("rect", 0.0), ("exp", 0.25 * 0.36787944)])
def test_the_gradient_is_one_over_the_window_inside_it(surrogate, outside):
    u = torch.tensor([0.3, 3.9, 5.0], requires_grad=True)  # 1 outside: exp(-4 * 1/4)
    IELIF(levels=4, surrogate=surrogate, window=4.0)(u).sum().backward()
    torch.testing.assert_close(u.grad, torch.tensor([0.25, 0.25, outside]))


def test_e_spikeformer_chooses_its_neurons_units_and_rounding():
    config = ESpikeFormerConfig(levels=8)
    neuron = make_neuron(config)
    assert (neuron.window, neuron.rounding, neuron.step) == (8.0, "even", 0.125)
    assert firing_window(config) == (4.0, pytest.approx(2.4))
    plain = make_neuron(config.replace(count_units=False, rounding="up"))
    assert (plain.window, plain.rounding) == (1.0, "up")


def test_normed_potentials_use_few_counts_in_units_of_counts():
    """What docs/families.md says of the start: 93 % of normal potentials give 0 or 1."""
    u = torch.randn(1_000_000, generator=torch.Generator().manual_seed(0))

    def shares(window: float) -> list[float]:
        counts = spike_count(u, 4, window, "even").long()
        return (torch.bincount(counts, minlength=5) / len(u)).tolist()

    # Six standard errors of a share of a million are 0.003 at most.
    assert shares(4.0) == pytest.approx([0.691, 0.242, 0.061, 0.006, 0.0002], abs=3e-3)
    assert shares(1.0) == pytest.approx([0.550, 0.096, 0.088, 0.076, 0.191], abs=3e-3)
