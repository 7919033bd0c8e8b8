"""Networks of every family: the same spikes in every execution, counted alike by the ledger."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import qsdformer as qsd
from qsdformer.analysis.ledger import make_ledger
from qsdformer.analysis.measure import measure
from qsdformer.analysis.twins import ann_ledger, twins
from qsdformer.data.base import DataInfo
from qsdformer.runtimes.binary import multi_bit, run_binary
from qsdformer.runtimes.executors import normalised
from qsdformer.runtimes.verify import count_differences

FLAT: dict[str, Any] = {"width": 16, "depth": 1, "heads": 2, "num_classes": 5}
PYRAMID: dict[str, Any] = {"dims": (4, 6, 8, 8), "depth": 2, "heads": 2, "num_classes": 5}
DEEP_STEM: dict[str, Any] = {"stem_widths": (3, 6, 5, 8, 12), "pooling": "010101"}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "sdt": ("sdt_tiny", FLAT),
    "sdt, dvs mode": ("sdt_tiny", {**FLAT, "dvs_mode": True}),
    "spikformer": ("spikformer_tiny", {**FLAT, **DEEP_STEM}),
    "e-spikeformer": ("e_spikeformer_tiny", PYRAMID),
}
NEURONS: dict[str, dict[str, Any]] = {
    **{f"D{levels}": {"levels": levels} for levels in (1, 4, 8)},
    "lif": {"neuron": "lif", "threshold": 0.3},
}
INFO = DataInfo(
    image_size=16, channels=3, class_names=tuple("abcde"), mean=(0.5,) * 3, std=(0.25,) * 3
)


def settled(name: str, **fields: Any) -> torch.nn.Module:
    torch.manual_seed(0)
    model = qsd.create_model(name, **fields).train()
    with torch.no_grad():
        for _ in range(5):
            model(torch.randn(6, 3, 16, 16))
    return model.eval()


@pytest.mark.parametrize("steps", [1, 4])
@pytest.mark.parametrize("neuron", NEURONS)
@pytest.mark.parametrize("family", FAMILIES)
def test_binary_and_integer_execution_have_the_counts_of_multi_bit_evaluation(
    family: str, neuron: str, steps: int
) -> None:
    name, fields = FAMILIES[family]
    model = settled(name, **fields, **NEURONS[neuron], time_steps=steps)
    graph = qsd.lower(model, INFO)
    pixels = torch.randint(0, 256, (2, 3, 16, 16), dtype=torch.uint8).numpy()
    images = normalised(pixels, graph.preprocessing)
    logits, counts = multi_bit(model, images)
    with torch.no_grad():
        assert torch.equal(logits, model(images))
    binary = run_binary(model, images)
    assert all(torch.equal(binary.counts[n], c) for n, c in counts.items())
    torch.testing.assert_close(binary.logits, logits, rtol=1e-5, atol=1e-6)
    _, found = graph.run_with_counts(pixels)
    differing, total = count_differences(found, {n: c.numpy() for n, c in counts.items()})
    # None here on one processor; on another, a membrane within rounding distance of a threshold may
    # fall on its other side.
    assert differing <= 1e-3 * total
    measured = measure(model, [(images, torch.zeros(2).long())])
    rows = make_ledger("m", model, measured).rows
    assert {r.name: r.total for r in rows if r.kind in ("ac", "attention")} == binary.additions
    assert {r.name: r.total for r in rows if r.kind == "mac"} == binary.macs
    assert twins("m", model, measured)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_has_a_counterpart_ann_with_a_ledger(family: str) -> None:
    name, fields = FAMILIES[family]
    model = qsd.create_model(name, **fields)
    ann = type(model)(model.config.ann())
    assert ann_ledger("ann", ann, (16, 16), None).macs > 0


EVENTS = ("sdt_gesture_2_256", "sdt_cifar10dvs_2_256", "spikformer_cifar10dvs_2_256")
EVENT_FRAMES = torch.randint(
    0, 4, (4, 3, 2, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
)


def event_network(name: str) -> tuple[torch.nn.Module, DataInfo]:
    """A small network of event frames (4, B, 2, 32, 32), and what describes them."""
    torch.manual_seed(0)
    small = {"width": 32, "depth": 1, "heads": 4, "num_classes": 5, "time_steps": 4}
    model = qsd.create_model(name, **small, neuron="lif", rectify="all")
    with torch.no_grad():
        for _ in range(3):
            model(torch.rand(4, 4, 2, 32, 32))
    info = DataInfo(
        image_size=32,
        channels=2,
        class_names=tuple("abcde"),
        mean=(0.0, 0.0),
        std=(1 / 255, 1 / 255),  # values of a frame are counts of events
    )
    return model.eval(), info


@pytest.mark.parametrize("name", EVENTS)
def test_networks_of_event_frames_compute_in_integers_what_they_do_in_floats(name):
    model, info = event_network(name)
    graph = qsd.lower(model, info, frames=True)
    assert graph.takes_frames
    with torch.no_grad():
        expected = model(EVENT_FRAMES.float()).numpy()
    logits = graph.run(EVENT_FRAMES.numpy()) * graph.logit_scale
    assert logits == pytest.approx(expected, abs=1e-4)  # membranes have 24 fractional bits
