"""Entropy, distortion and firing rate of spike counts, against values worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch

from qsdformer.analysis.information import (
    histogram_entropy,
    histogram_rate,
    mean_firing_rate,
    spike_information_distortion,
)


def test_entropy_is_that_of_the_distribution_in_bits() -> None:
    assert histogram_entropy(torch.tensor([3, 3, 3, 3])) == pytest.approx(2.0)
    assert histogram_entropy(torch.tensor([7, 0, 0])) == 0.0
    assert str(histogram_entropy(torch.tensor([7, 0, 0]))) == "0.0"  # no minus sign in a table
    assert histogram_entropy(torch.tensor([2, 1, 1])) == pytest.approx(1.5)
    assert histogram_entropy(torch.zeros(5)) == 0.0


def test_firing_rate_is_the_mean_count_over_the_levels() -> None:
    # Counts 0, 1, 1, 4 of at most 4: mean 1.5.
    assert histogram_rate(torch.tensor([1, 2, 0, 0, 1])) == pytest.approx(0.375)
    rates = {"a": torch.tensor([1, 2, 0, 0, 1]), "b": torch.tensor([12, 0, 0, 0, 0])}
    assert mean_firing_rate(rates) == pytest.approx(0.375 / 4)


def test_distortion_is_zero_for_one_distribution_and_one_bit_for_disjoint_ones() -> None:
    p = torch.tensor([1, 2, 5])
    assert spike_information_distortion(p, 10 * p) == pytest.approx(0.0, abs=1e-12)
    apart = spike_information_distortion(torch.tensor([4, 0]), torch.tensor([0, 9]))
    assert apart == pytest.approx(1.0)


def test_distortion_matches_a_hand_computation_and_is_symmetric() -> None:
    # p = (1/2, 1/2), q = (1, 0), mixture (3/4, 1/4): H = 2 - 0.75 log2(3), minus (1 + 0) / 2.
    p, q = torch.tensor([1, 1]), torch.tensor([2, 0])
    expected = 2 - 0.75 * math.log2(3) - 0.5
    assert spike_information_distortion(p, q) == pytest.approx(expected)
    assert spike_information_distortion(q, p) == pytest.approx(expected)


def test_histograms_of_different_levels_have_no_distortion() -> None:
    with pytest.raises(ValueError, match=r"\(2,\) and \(5,\)"):
        spike_information_distortion(torch.ones(2), torch.ones(5))
