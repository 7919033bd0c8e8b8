from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from qsdformer.analysis.information import histogram_rate, spike_histograms
from qsdformer.analysis.measure import firing_rates, measure
from qsdformer.errors import UserError
from qsdformer.models.metaspikeformer import MetaSpikeFormer


@pytest.mark.parametrize("time_steps", [1, 2])
@pytest.mark.parametrize("levels", [3, 4])
def test_rates_and_histograms_equal_those_of_every_single_spike(
    levels: int,
    time_steps: int,
    make_model: Callable[..., MetaSpikeFormer],
    settle: Callable[..., MetaSpikeFormer],
) -> None:
    model = settle(make_model(levels=levels, time_steps=time_steps))
    images = torch.randn(5, 3, 32, 32, generator=torch.Generator().manual_seed(4))
    labels = torch.zeros(5, dtype=torch.long)
    measured = measure(model, [(images[:3], labels[:3]), (images[3:], labels[3:])])
    every = spike_histograms(model, [images])
    rates = firing_rates(measured)
    assert set(rates) == set(every)
    for name, histogram in every.items():
        assert rates[name] == pytest.approx(histogram_rate(histogram), rel=1e-12)
        assert int(measured.active[name].sum()) == int(histogram[1:].sum())
    for name, histogram in measured.histograms.items():
        assert histogram.tolist() == every[name].tolist()
    with torch.no_grad():
        assert measured.correct == int((model(images).argmax(1) == 0).sum())


def test_an_empty_data_set_is_refused(make_model: Callable[..., MetaSpikeFormer]) -> None:
    with pytest.raises(UserError, match="data set is empty"):
        measure(make_model(), [])


def test_an_ann_is_refused(make_model: Callable[..., MetaSpikeFormer]) -> None:
    with pytest.raises(UserError, match="no spiking neurons"):
        measure(make_model(neuron="relu"), [])


def test_spikes_that_are_no_numbers_are_one_line(
    make_model: Callable[..., MetaSpikeFormer], settle: Callable[..., MetaSpikeFormer]
) -> None:
    model = settle(make_model())
    with torch.no_grad():
        model.stages[0].downsample.norm.weight.fill_(float("nan"))
    images = torch.randn(2, 3, 32, 32)
    with pytest.raises(UserError, match="its spikes are no numbers: the weights are NaN"):
        measure(model, [(images, torch.zeros(2, dtype=torch.long))])
