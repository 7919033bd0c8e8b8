from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from qsdformer.analysis.ledger import Ledger, make_ledger
from qsdformer.analysis.measure import measure
from qsdformer.analysis.operations import neuron_arithmetic, operations, reach_along
from qsdformer.errors import UserError
from qsdformer.models.metaspikeformer import MetaSpikeFormer, model_config
from qsdformer.nn.neurons import IELIF, LIF
from qsdformer.nn.quantizers import QuantConv2d
from qsdformer.nn.taps import tap
from qsdformer.runtimes.binary import run_binary

VARIANTS: dict[str, dict[str, Any]] = {
    "binary": {"levels": 1},
    "two levels": {"levels": 2},
    "four levels": {},
    "three levels": {"levels": 3},
    "four time steps": {"time_steps": 4},
    "LIF": {"neuron": "lif", "threshold": 0.2},
    "LIF, four time steps": {"neuron": "lif", "time_steps": 4, "threshold": 0.3},
    "fully spiking": {"fully_spiking": True},
    "fully spiking, two steps": {"fully_spiking": True, "time_steps": 2, "levels": 2},
    "as published": {"attention_scale": 0.25, "attention_norm": False, "attention_gain": 2.0},
    "other stem, layer scale": {"stem_stride": 1, "stem_kernel": 5, "layer_scale": 0.5},
}


def ledger_of(model: MetaSpikeFormer, images: Tensor) -> Ledger:
    """The ledger over images, (B, C, H, W), measured in two batches."""
    labels = torch.zeros(len(images), dtype=torch.long)
    batches = [(images[:2], labels[:2]), (images[2:], labels[2:])]
    return make_ledger("model", model, measure(model, batches))


def enlivened(model: MetaSpikeFormer) -> MetaSpikeFormer:
    """The model with norms that make every neuron layer fire, which an untrained one does not."""
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.constant_(module.weight, 0.5)
            torch.nn.init.constant_(module.bias, 0.4)
    return model


@pytest.mark.parametrize("fields", VARIANTS.values(), ids=VARIANTS.keys())
def test_exact_counts_equal_those_of_binary_execution_on_every_layer(
    fields: dict[str, Any],
    make_model: Callable[..., MetaSpikeFormer],
    settle: Callable[..., MetaSpikeFormer],
) -> None:
    model = enlivened(settle(make_model(**fields)))
    images = torch.randn(3, 3, 27, 34, generator=torch.Generator().manual_seed(2))
    run = run_binary(model, images)
    rows = ledger_of(model, images).rows
    assert {r.name: r.total for r in rows if r.kind in ("ac", "attention")} == run.additions
    assert {r.name: r.total for r in rows if r.kind == "mac"} == run.macs
    assert min(run.additions.values()) > 0
    if fields.get("fully_spiking"):
        assert list(run.macs) == ["stages.0.downsample.conv"]


def test_frames_pass_the_stem_at_every_time_step(
    make_model: Callable[..., MetaSpikeFormer], settle: Callable[..., MetaSpikeFormer]
) -> None:
    model = enlivened(settle(make_model(time_steps=2)))
    images = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(2))
    labels = torch.zeros(3, dtype=torch.long)
    frames = images.expand(2, *images.shape)
    still, moving = (
        {r.name: r for r in make_ledger("m", model, measure(model, [(x, labels)])).rows}
        for x in (images, frames)
    )
    assert {r.name: r.total for r in moving.values() if r.kind == "ac"} == {
        r.name: r.total for r in still.values() if r.kind == "ac"
    }
    stem = "stages.0.downsample.conv"
    assert moving[stem].count == 2 * still[stem].count == run_binary(model, frames).macs[stem] / 3
    assert moving[stem].moved == 2 * still[stem].moved


def counted_by_hand(values: Tensor, layer: QuantConv2d) -> int:
    """Weights that the spike counts (B, C, H, W) reach, output by output, in plain Python."""
    channels, (height, width) = values.shape[1], values.shape[2:]
    kernel, stride = layer.kernel_size[0], layer.stride[0]
    padding = int(layer.padding[0])
    per_group_in, per_group_out = channels // layer.groups, layer.out_channels // layer.groups
    total = 0
    for image in values.tolist():
        for out in range(layer.out_channels):
            first = out // per_group_out * per_group_in
            for top in range(-padding, height + padding - kernel + 1, stride):
                for left in range(-padding, width + padding - kernel + 1, stride):
                    for channel in range(first, first + per_group_in):
                        for y in range(max(top, 0), min(top + kernel, height)):
                            row = image[channel][y]
                            total += sum(row[max(left, 0) : min(left + kernel, width)])
    return total


def test_ledger_totals_equal_a_count_in_plain_python_on_a_tiny_network(
    make_model: Callable[..., MetaSpikeFormer], settle: Callable[..., MetaSpikeFormer]
) -> None:
    model = settle(make_model(dims=(2, 2, 2, 2), heads=1, levels=2))
    images = torch.randn(1, 3, 12, 10, generator=torch.Generator().manual_seed(3))
    convs = {n: m for n, m in model.named_modules() if isinstance(m, QuantConv2d)}
    ledger = make_ledger("m", model, measure(model, [(images, torch.zeros(1).long())]))
    rows = {row.name: row for row in ledger.rows}
    with torch.no_grad(), tap(model, *convs, inputs=True) as inputs:
        model(images)
    additions = macs = 0
    for name, layer in convs.items():
        if rows[name].kind == "ac":
            counts = (inputs[name] * 2).round().long()
            additions += counted_by_hand(counts, layer)
        else:
            macs += counted_by_hand(torch.ones_like(inputs[name]).long(), layer)
    with torch.no_grad(), tap(model, "neuron", "*.[qkv]_neuron") as outputs:
        model(images)
    spikes = {name: (value[0] * 2).round().long() for name, value in outputs.items()}
    additions += sum(spikes.pop("neuron").tolist()) * 5
    for block in {name.rpartition(".")[0] for name in spikes}:
        q, k, v = (spikes[f"{block}.{letter}_neuron"].flatten(1).T.tolist() for letter in "qkv")
        for q_token, k_token, v_token in zip(q, k, v, strict=True):
            additions += sum(a * b for a in k_token for b in v_token)
            additions += sum(q_token) * 2
    assert ledger.synaptic_operations == additions
    assert ledger.macs == macs


def test_the_published_55m_network_has_24_8_gmacs() -> None:
    with torch.device("meta"):
        model = MetaSpikeFormer(model_config("metaspikeformer_55m"))
    assert sum(op.dense_macs for op in operations(model, (224, 224))) == pytest.approx(
        24.8e9, rel=0.005
    )


def test_every_operation_has_its_own_name(make_model: Callable[..., MetaSpikeFormer]) -> None:
    names = [op.name for op in operations(make_model(layer_scale=0.1), (32, 32))]
    assert len(names) == len(set(names))


@pytest.mark.parametrize(("size", "kernel", "stride", "padding"), [(7, 3, 2, 1), (6, 7, 1, 3)])
def test_reach_counts_the_outputs_that_use_an_input(
    size: int, kernel: int, stride: int, padding: int
) -> None:
    eye = torch.eye(size)[:, None]
    reached = torch.nn.functional.conv1d(
        eye, torch.ones(1, 1, kernel), stride=stride, padding=padding
    )
    assert reach_along(size, kernel, stride, padding).tolist() == reached.sum(dim=(1, 2)).tolist()


def test_neurons_shift_by_powers_of_two_and_multiply_by_other_factors() -> None:
    assert neuron_arithmetic(IELIF(4)) == (4, 0)
    assert neuron_arithmetic(IELIF(4, time_steps=2, decay=0.25)) == (6, 0)
    assert neuron_arithmetic(IELIF(4, time_steps=2, decay=0.3)) == (6, 1)
    assert neuron_arithmetic(LIF(time_steps=4, tau=2.0)) == (3, 0)
    assert neuron_arithmetic(LIF(time_steps=4, tau=3.0)) == (3, 1)


def test_an_ann_has_no_spikes_to_count(make_model: Callable[..., MetaSpikeFormer]) -> None:
    with pytest.raises(UserError, match="no spiking neurons"):
        operations(make_model(neuron="relu"), (32, 32))
