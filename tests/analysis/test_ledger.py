from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import qsdformer as qsd
from qsdformer.analysis.energy import COST_MODELS, cost_model
from qsdformer.analysis.information import packed_bytes
from qsdformer.analysis.ledger import Ledger, make_ledger, papers_energy
from qsdformer.analysis.measure import Measured, measure
from qsdformer.analysis.operations import operations
from qsdformer.analysis.report.sections import wat
from qsdformer.analysis.twins import activation_bits, ann_ledger, twins
from qsdformer.models.metaspikeformer import MetaSpikeFormer, model_config
from qsdformer.nn import IELIF, QuantConv2d

Make = Callable[..., MetaSpikeFormer]


def measured_on_noise(model: MetaSpikeFormer) -> Measured:
    images = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(5))
    return measure(model, [(images, torch.zeros(4, dtype=torch.long))])


def twins_of(model: MetaSpikeFormer) -> dict[str, Ledger]:
    found = twins("m", model, measured_on_noise(model))
    return {ledger.name.removeprefix("m "): ledger for ledger in found}


def test_the_published_formula_is_followed_at_a_published_size() -> None:
    config = model_config("metaspikeformer_55m", levels=4)
    with torch.device("meta"):
        network = MetaSpikeFormer(config)
    found = operations(network, (224, 224))
    stem = next(op.dense_macs for op in found if op.role == "stem")
    inner = sum(op.dense_macs for op in found if op.role == "inner")
    others = sum(op.dense_macs for op in found if op.kind in ("ac", "attention"))
    rate = 0.2
    expected = 4.6 * stem + 0.9 * others * rate * 4
    assert papers_energy(network, (224, 224), rate, cost_model("papers")) == pytest.approx(expected)
    rates = (papers_energy(network, (224, 224), one, cost_model("papers")) for one in (1, 1.0))
    assert len(set(rates)) == 1
    with_inner = papers_energy(network, (224, 224), rate, cost_model("papers-inner"))
    assert with_inner == pytest.approx(expected + 4.6 * inner)


def test_published_rates_can_be_given_for_each_neuron() -> None:
    config = model_config("metaspikeformer_tiny")
    with torch.device("meta"):
        network = MetaSpikeFormer(config)
    found = operations(network, (32, 32))
    rates = {op.source: 0.1 + 0.001 * i for i, op in enumerate(found) if op.source}
    expected = sum(0.9 * op.dense_macs * rates[op.source] * 4 for op in found if op.source)
    expected += sum(4.6 * op.dense_macs for op in found if op.role == "stem")
    found_energy = papers_energy(network, (32, 32), rates, cost_model("papers"))
    assert found_energy == pytest.approx(expected)


def test_the_estimate_from_measured_rates_is_exact_where_no_border_is(
    make_model: Make, settle: Make
) -> None:
    model = settle(make_model())
    rows = make_ledger("m", model, measured_on_noise(model)).rows
    pointwise = [row for row in rows if row.kind == "ac" and "pointwise1" in row.name]
    assert len(pointwise) == 4 + 8
    for row in pointwise:
        assert row.estimate == pytest.approx(row.count)
    padded = [row for row in rows if row.name.endswith("sepconv.depthwise")]
    assert all(row.estimate > row.count for row in padded)


def test_kinds_add_up_to_the_total(make_model: Make, settle: Make) -> None:
    model = settle(make_model(time_steps=2))
    ledger = make_ledger("m", model, measured_on_noise(model))
    for cost in COST_MODELS.values():
        assert sum(ledger.by_kind(cost).values()) == pytest.approx(ledger.total(cost))


def test_widths_and_traffic_of_rows_are_those_of_their_operands(
    make_model: Make, settle: Make
) -> None:
    model = settle(make_model(time_steps=2, weight_bits=4, levels=4))
    measured = measured_on_noise(model)
    found = {op.name: op for op in operations(model, measured.size)}
    rows = {row.name: row for row in make_ledger("m", model, measured).rows}
    conv = "stages.1.blocks.0.conv1"
    fan_in = model.get_submodule(conv).weight[0].numel()
    # Sums of fan-in products of 4-bit codes and counts up to 4; each count is read as 4 spikes.
    assert rows[conv].add_bits == 4 + math.ceil(math.log2(fan_in * 4))
    assert rows[conv].moved == 2 * found[conv].layer_input * 4
    assert rows[conv].weights_read == model.get_submodule(conv).weight.numel() * 4
    # Pixels have 8 bits, other real inputs 16.
    stem = next(row for row in rows.values() if row.role == "stem")
    assert stem.mult_bits == (8, 8)
    assert stem.moved == 3 * 32 * 32 * 8
    inner = next(row for row in rows.values() if row.role == "inner")
    assert inner.mult_bits == (4, 16)
    assert inner.moved == 2 * found[inner.name].layer_input * 16
    # k^T v of a token is a sum over tokens of products of two counts up to 4; a head has 4 of q.
    kv = next(op for op in found.values() if op.partner is not None)
    kv_bits = math.ceil(math.log2(kv.tokens * 16 + 1))
    assert rows[kv.name].add_bits == kv_bits
    qkv = kv.name.removesuffix(".kv") + ".qkv"
    assert rows[qkv].add_bits == math.ceil(math.log2(found[qkv].fan_in * 4)) + kv_bits
    kinds: dict[str, list[str]] = {}
    for name, op in found.items():
        kinds.setdefault(op.kind, []).append(name)
    for name in kinds[
        "neuron"
    ]:  # 4 comparisons a step; spikes written, the membrane read and written
        op = found[name]
        assert rows[name].count == 2 * op.elements
        assert rows[name].moved == 2 * op.elements * (4 + 2 * 16)
    for name in kinds["norm"]:
        assert rows[name].additions == rows[name].multiplications == rows[name].count > 0
        assert rows[name].moved in (0, found[name].passes * found[name].elements * 16)
    assert any(rows[name].moved for name in kinds["norm"])
    for name in kinds["shortcut"]:
        assert rows[name].additions == rows[name].count > rows[name].multiplications == 0
        assert rows[name].moved == found[name].passes * found[name].elements * 2 * 16
    for row in rows.values():
        if row.kind in ("neuron", "norm", "shortcut"):
            assert (row.add_bits, row.mult_bits[0]) == (16, 16)


def test_the_fully_spiking_variant_pays_no_macs_but_the_stems(
    make_model: Make, settle: Make
) -> None:
    published = settle(make_model())
    spiking = settle(make_model(fully_spiking=True))
    first = make_ledger("m", published, measured_on_noise(published))
    second = make_ledger("m", spiking, measured_on_noise(spiking))
    papers, inner = cost_model("papers"), cost_model("papers-inner")
    assert first.total(inner) > first.total(papers)
    assert second.total(inner) == second.total(papers)
    assert second.macs == next(row.count for row in second.rows if row.role == "stem")


def test_full_precision_weights_are_charged_as_fp32(make_model: Make, settle: Make) -> None:
    bits = {"weight_bits": None, "stem_bits": None, "head_bits": None}
    model = settle(make_model(neuron="lif", time_steps=4, **bits))
    ledger = make_ledger("m", model, measured_on_noise(model))
    charged = ledger.energies(cost_model("bit-aware"))
    energies = {row.name: pj for row, pj in zip(ledger.rows, charged, strict=True)}
    for row in ledger.rows:
        if row.kind in ("ac", "attention"):
            assert energies[row.name] == pytest.approx(0.9 * row.count)
        if row.kind == "mac":
            assert energies[row.name] == pytest.approx(4.6 * row.count)
    assert ledger.packed_bytes == ledger.float_bytes


def test_the_quantised_twin_does_every_mac_and_its_skipping_version_only_those_not_zero(
    make_model: Make, settle: Make
) -> None:
    model = settle(make_model())
    measured = measured_on_noise(model)
    found = {op.name: op for op in operations(model, measured.size)}
    dense, skipping = twins_of(model)["quantised-ann"], twins_of(model)["quantised-ann-skip"]
    conv = "stages.1.blocks.0.conv1"
    rows = {row.name: row for row in dense.rows}
    assert rows[conv].count == found[conv].reached
    assert rows[conv].mult_bits == (4, 3)
    assert dense.accuracy == measured.accuracy
    by_name = {row.name: row for row in skipping.rows}
    source = found[conv].source
    assert source is not None
    share = float(measured.active[source].sum()) / measured.active[source].numel() / 4
    assert 0 < share < 1
    assert by_name[conv].count == pytest.approx(rows[conv].count * share, rel=0.1)
    spiking = make_ledger("m", model, measured)
    assert skipping.macs < spiking.synaptic_operations + spiking.macs


def test_the_skipping_twin_skips_zeros_of_k_in_its_product_with_v(
    make_model: Make, settle: Make
) -> None:
    model = settle(make_model())
    measured = measured_on_noise(model)
    kv = next(op for op in operations(model, measured.size) if op.partner is not None)
    assert kv.source is not None
    active = measured.active[kv.source].clone()
    active[0] = 0
    measured.active[kv.source] = active
    rows = {row.name: row for row in twins("m", model, measured)[2].rows}
    # Each k meets the width of v's head, 8 channels in 2 heads; 4 images.
    assert rows[kv.name].count == int(active.sum()) * 4 / 4 < kv.dense_macs


def test_a_1_bit_activation_is_added_and_not_multiplied_as_a_spike_is(
    make_model: Make, settle: Make
) -> None:
    model = settle(make_model(levels=1, fully_spiking=True))
    spiking = {row.name: row for row in make_ledger("m", model, measured_on_noise(model)).rows}
    found = twins_of(model)
    for name in ("quantised-ann", "quantised-ann-skip"):
        products = {row.name: row.multiplications for row in found[name].rows if row.kind == "mac"}
        stem, *others = products.values()
        assert stem > 0
        assert not any(others)
    skipping = {row.name: row for row in found["quantised-ann-skip"].rows}
    for name, row in spiking.items():
        if row.kind == "ac" or name.endswith(".qkv"):
            assert skipping[name].additions == row.additions
            assert skipping[name].add_bits == row.add_bits
            assert skipping[name].moved == row.moved


def test_sums_of_spikes_have_more_levels_than_neurons_in_a_quantised_twin() -> None:
    torch.manual_seed(0)
    fields = {"width": 16, "depth": 1, "heads": 2, "num_classes": 5, "levels": 1}
    model = qsd.create_model("spikformer_tiny", **fields)
    (skipping,) = twins("m", model, measured_on_noise(model))[2:]
    rows = {row.name: row for row in skipping.rows}
    assert rows["blocks.0.mlp.fc2.conv"].multiplications == 0  # it reads a neuron
    assert rows["blocks.0.mlp.fc1.conv"].mult_bits == (4, 2)  # and this up to three spikes
    assert rows["blocks.0.mlp.fc1.conv"].multiplications == rows["blocks.0.mlp.fc1.conv"].count


def test_twins_differ_with_the_network(make_model: Make, settle: Make) -> None:
    assert list(twins_of(settle(make_model()))) == ["ann", "quantised-ann", "quantised-ann-skip"]
    assert list(twins_of(settle(make_model(time_steps=2)))) == ["ann", "quantised-ann"]
    bits = {"weight_bits": None, "stem_bits": None, "head_bits": None}
    assert list(twins_of(settle(make_model(**bits)))) == ["ann"]


def test_the_fp32_twin_is_the_counterpart_ann(make_model: Make, settle: Make) -> None:
    twin = twins_of(settle(make_model()))["ann"]
    ann = ann_ledger("m", make_model(neuron="relu"), (32, 32), 0.5)
    assert ann.rows == twin.rows
    assert ann.accuracy == 0.5
    assert twin.total(cost_model("papers")) == pytest.approx(
        4.6 * sum(row.dense_macs for row in twin.rows)
    )


def test_an_anns_attention_has_a_mac_for_every_channel_of_v() -> None:
    fields = {"dims": (4, 6, 8, 8), "depth": 2, "heads": 2, "neuron": "relu"}
    ann = qsd.create_model("e_spikeformer_tiny", **fields)  # v is four times as wide as q and k
    found = [(r.name, r.count) for r in ann_ledger("m", ann, (64, 64), None).rows]
    tokens, channels = 16, 8
    attention = "stages.3.blocks.0.attention"
    assert (f"{attention}.kv", tokens**2 * channels) in found
    assert (f"{attention}.qkv", tokens**2 * 4 * channels) in found


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("metaspikeformer_tiny", {"dims": (4, 6, 8, 8), "depth": 2, "heads": 2}),
        ("e_spikeformer_tiny", {"dims": (4, 6, 8, 8), "depth": 2, "heads": 2}),
        ("spikformer_tiny", {"width": 16, "depth": 2, "heads": 2}),
        ("sdt_tiny", {"width": 16, "depth": 2, "heads": 2}),
        ("sdt_cifar10dvs_2_256", {"width": 16, "depth": 1, "heads": 2, "in_channels": 3}),
    ],
)
def test_an_ann_has_the_macs_that_torch_counts(name: str, fields: dict[str, Any]) -> None:
    spiking = qsd.create_model(name, **fields)
    ann = type(spiking)(spiking.config.ann()).eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        ann(torch.randn(1, 3, 32, 32))
    rows = ann_ledger("m", ann, (32, 32), None).rows
    assert 2 * sum(row.dense_macs for row in rows) == counter.get_total_flops()
    assert not any(".core." in row.name for row in rows)


def test_an_ann_with_low_bit_weights_is_stored_and_read_in_their_bits() -> None:
    fields = {"dims": (4, 6, 8, 8), "depth": 2, "heads": 2, "neuron": "relu"}
    none = {"weight_bits": None, "stem_bits": None, "head_bits": None}
    low, full = (qsd.create_model("metaspikeformer_tiny", **fields, **bits) for bits in ({}, none))
    ledgers = [ann_ledger("m", model, (32, 32), None) for model in (low, full)]
    assert ledgers[0].packed_bytes == packed_bytes(low) < ledgers[1].packed_bytes
    assert ledgers[1].packed_bytes == ledgers[1].float_bytes == ledgers[0].float_bytes
    read = [sum(row.weights_read for row in ledger.rows) for ledger in ledgers]
    bits = {row.name: row.weight_bits for row in ledgers[0].rows if row.weights}
    assert set(bits.values()) == {4, 8}
    assert read[0] == sum(row.weights * bits[row.name] for row in ledgers[0].rows if row.weights)
    assert read[0] < read[1] / 4
    assert wat(low) == "ANN, 4-bit weights"
    assert wat(full) == "ANN, fp32"


def test_sums_of_spikes_that_no_layer_reads_are_operations() -> None:
    model = qsd.create_model("sdt_tiny", width=16, depth=1, heads=2, time_steps=2)
    found = {op.name: op for op in operations(model, (32, 32))}
    core = "blocks.0.attention.core"
    tokens = found[f"{core}.mul1"].elements // 16
    assert found[f"{core}.sum"].elements == 16 * tokens
    assert found[f"{core}.sum"].passes == 2
    assert found[f"{core}.mask_neuron"].elements == 16
    net = nn.Sequential(QuantConv2d(3, 4, 1, bits=4), IELIF(4), nn.AdaptiveAvgPool2d(1), IELIF(4))
    kinds = [(op.kind, op.elements) for op in operations(net, (8, 8))]
    assert ("shortcut", 4 * 64) in kinds


def test_an_ann_pools_before_its_head_where_a_spiking_network_sums_spikes() -> None:
    torch.manual_seed(0)
    fields = {"width": 16, "depth": 1, "heads": 2, "num_classes": 5}
    model = qsd.create_model("spikformer_tiny", **fields)
    measured = measured_on_noise(model)
    head = next(op for op in operations(model, measured.size) if op.name == "head")
    assert head.places == 16
    assert head.layer_input == 16 * 16
    assert head.levels == 4 * 4  # the stem's two convolutions, attention and MLP add their spikes
    found = {ledger.name: ledger.rows for ledger in twins("m", model, measured)}
    for twin, bits, sum_bits in (("ann", 32, 32), ("quantised-ann", 5, 9)):
        rows = {row.name: row for row in found[f"m {twin}"]}
        assert rows["head"].count == rows["head"].dense_macs == 16 * 5
        assert rows["head"].moved == 16 * sum_bits
        assert rows["head.pool"].additions == 16 * 16
        assert rows["head.pool"].moved == 16 * 16 * bits
    quantised = {row.name: row for row in found["m quantised-ann"]}
    assert quantised["head"].mult_bits == (8, 9)  # sums up to 16 * 16
    skipping = {row.name: row for row in found["m quantised-ann-skip"]}
    assert skipping["head"].count <= 16 * 5


@pytest.mark.parametrize(("levels", "bits"), [(1, 1), (2, 2), (3, 2), (4, 3), (16, 5)])
def test_activations_take_as_many_bits_as_their_levels_need(levels: int, bits: int) -> None:
    assert activation_bits(levels) == bits
