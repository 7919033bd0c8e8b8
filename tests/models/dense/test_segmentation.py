"""The semantic feature pyramid: its maps, its gradients, and its integers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from models.dense.small import (
    INFO,
    SIZE,
    backbone,
    made,
    normalised,
    pixels,
    segmentation,
    settled,
)
from qsdformer.errors import UserError
from qsdformer.graph.lowering import lower
from qsdformer.graph.trace import trace
from qsdformer.nn.neurons import SpikingNeuron
from qsdformer.nn.taps import spiking_neurons

LIVELY = {"rectify": "all", "residual_gain": 1.0}
VARIANTS: dict[str, dict[str, Any]] = {
    "bilinear": {},
    "nearest": {"upsampling": "nearest"},
    "T=2": {"backbone": backbone(time_steps=2)},
    "LIF": {"backbone": backbone(neuron="lif", levels=1, tau=1.0, threshold=0.4, **LIVELY)},
    "e_spikeformer": {"backbone": backbone("e_spikeformer", **LIVELY)},
    "fully spike-driven": {"backbone": backbone(fully_spiking=True), "bits": 2},
}
FLOATS: dict[str, dict[str, Any]] = {
    "spiking, fp32": {"bits": None},
    "relu heads": {"bits": None, "neuron": "relu"},
    "ann": {"backbone": backbone().ann(), "bits": None},
}


@pytest.mark.parametrize("name", [*VARIANTS, *FLOATS])
def test_every_parameter_gets_a_finite_gradient(name: str) -> None:
    network = made(segmentation(**{**VARIANTS, **FLOATS}[name]))
    mask = network(normalised(pixels()))["mask"]
    assert mask.shape == (2, 5, SIZE // 2, SIZE // 2)
    F.cross_entropy(
        mask, torch.arange(2 * mask[0, 0].numel()).view(2, *mask.shape[2:]) % 5
    ).backward()
    for key, parameter in network.named_parameters():
        assert parameter.grad is not None, key
        assert parameter.grad.isfinite().all(), key
        assert parameter.grad.abs().max() > 0, key


def test_maps_are_at_strides_2_4_8_16_with_the_published_widths() -> None:
    network = made(segmentation(backbone=backbone(dims=(64, 128, 256, 360), heads=8)))
    assert network.backbone.strides == (2, 4, 8, 16)
    assert network.backbone.channels == (32, 64, 128, 360)
    assert (network.stride, network.multiple) == (2, 16)


def test_each_coarser_map_passes_one_more_doubling() -> None:
    paths = made(segmentation()).head.paths
    doublings = [sum(isinstance(m, nn.Upsample) for m in path) for path in paths]
    assert doublings == [0, 1, 2, 3]
    assert [len(path) - d for path, d in zip(paths, doublings, strict=True)] == [1, 1, 2, 3]


def test_the_size_of_the_published_network_is_as_counted() -> None:
    with torch.device("meta"):
        config = backbone(dims=(64, 128, 256, 360), depth=8, heads=8, stem_kernel=7)
        network = made(
            segmentation(backbone=config, num_classes=150, neck_width=128, head_width=128)
        )
    count = sum(p.numel() for n, p in network.named_parameters() if not n.endswith("step_size"))
    assert round(count / 1e6, 1) == 16.5  # 14.75 M and 1.72 M


def test_images_whose_sides_do_not_fit_are_refused_in_one_line() -> None:
    network = settled(segmentation())
    with pytest.raises(
        UserError, match="images of 64x72 pixels: both sides must be multiples of 16"
    ):
        network(torch.zeros(1, 3, 64, 72))
    assert network(torch.zeros(1, 3, 48, 80))["mask"].shape == (1, 5, 24, 40)


def test_another_resolution_needs_no_training() -> None:
    network = settled(segmentation())
    small, large = (network(normalised(pixels(size=s)))["mask"] for s in (SIZE, 2 * SIZE))
    assert (small.shape[-1], large.shape[-1]) == (SIZE // 2, SIZE)
    assert large.isfinite().all()


def test_neurons_of_the_heads_start_inside_their_firing_window() -> None:
    network = made(segmentation())
    seen: dict[str, torch.Tensor] = {}
    for name, neuron in spiking_neurons(network).items():
        if name.startswith("head."):
            neuron.register_forward_pre_hook(lambda _, x, name=name: seen.update({name: x[0]}))
    network(normalised(pixels(4)))
    means = {name: float(u.detach().mean()) for name, u in seen.items()}
    assert len(means) == 8
    assert all(abs(mean - 0.5) < 0.02 for mean in means.values()), means


def counts_of(network: Any, images: torch.Tensor) -> dict[str, np.ndarray]:
    """Spike counts of every call of a neuron in training-time evaluation."""
    found: dict[str, np.ndarray] = {}

    def do(step: Any, *values: Any) -> Any:
        result = step.run(*values)
        if isinstance(step.module, SpikingNeuron):
            found[step.name] = step.channels_first(step.module.counts(result)).numpy()
        return result

    with torch.no_grad():
        trace(network, images.shape).walk(images, do)
    return found


@pytest.mark.parametrize("seed", [1, 2])  # 0: a LIF potential 3e-8 from its threshold
@pytest.mark.parametrize("name", list(VARIANTS))
def test_integers_make_the_same_spike_counts_as_training_time_evaluation(
    name: str, seed: int
) -> None:
    network, images = settled(segmentation(**VARIANTS[name])), pixels(seed=seed)
    graph = lower(network, INFO)
    _, found = graph.run_values(images.numpy(), (), collect=True)
    expected = counts_of(network, normalised(images))
    assert set(found) == set(expected)
    assert all(np.array_equal(found[key], counts) for key, counts in expected.items())
    firing = {key for key, counts in expected.items() if counts.max() > 0}
    assert firing >= {key for key in expected if not key.startswith("backbone.body.stages")}
    assert len(firing) > 0.75 * len(expected)
    with torch.no_grad():
        mask = network(normalised(images))["mask"].numpy()
    real = graph.real_outputs(images.numpy())
    assert set(real) == {"mask"}
    assert np.abs(real["mask"] - mask).max() < 1e-4 * max(1, np.abs(mask).max())  # float32


@pytest.mark.slow
def test_a_compiled_training_step_is_one_graph_and_equals_the_eager_one() -> None:
    found = []
    for compiled in (False, True):
        network = made(segmentation())
        if compiled:
            network.compile(fullgraph=True, backend="aot_eager")
        mask = network(normalised(pixels()))["mask"]
        mask.square().mean().backward()
        found.append((mask, {name: p.grad for name, p in network.named_parameters()}))
    (eager, expected), (mask, gradients) = found
    assert torch.equal(mask, eager)
    # float32: sums in another order; those of biases before a norm are 0 but for rounding.
    assert all(torch.allclose(g, expected[n], rtol=1e-3, atol=1e-7) for n, g in gradients.items())
