"""Parts of a dense network: rates of learning, weight decay, shares of parameters and bytes."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from models.dense.small import DETECTORS, HEADS, detection, made, objects, pixels, segmentation
from qsdformer.models.dense.rates import layerwise_groups
from qsdformer.models.dense.shares import shares, shares_table

NETWORKS: dict[str, Any] = {
    "segmentation": segmentation(),
    **{name: detection(detector=name) for name in DETECTORS},
}


@pytest.mark.parametrize("name", list(NETWORKS))
def test_parts_hold_every_parameter_once(name: str) -> None:
    network = made(NETWORKS[name])
    parts = [p for part in network.PARTS for top in network.part(part) for p in top.parameters()]
    assert len(parts) == len(set(map(id, parts)))
    assert set(map(id, parts)) == set(map(id, network.parameters()))


@pytest.mark.parametrize("name", list(NETWORKS))
def test_earlier_layers_learn_more_slowly_and_heads_come_last(name: str) -> None:
    network = made(NETWORKS[name])
    groups = layerwise_groups(network, weight_decay=0.1, layer_decay=0.5, head_rate=2.0)
    rate = {id(p): g["lr_scale"] for g in groups for p in g["params"]}
    assert set(rate) == set(map(id, network.parameters()))
    stages = network.body.stages
    rates = [
        rate[id(layer.weight)]
        for layer in (
            stages[0].downsample.conv,
            stages[1].downsample.conv,
            stages[2].downsample.conv,
            stages[3].downsample.conv,
            stages[4].downsample.conv,
        )
    ]
    assert rates == sorted(set(rates))
    necks = {rate[id(p)] for top in network.part("neck") for p in top.parameters()}
    heads = {rate[id(p)] for top in network.part("heads") for p in top.parameters()}
    assert (necks, heads) == ({1.0}, {2.0})
    decays = {id(p): g["weight_decay"] for g in groups for p in g["params"]}
    assert all(decays[id(p)] == (0.1 if p.ndim > 1 else 0.0) for p in network.parameters())


def test_what_is_frozen_is_in_no_group() -> None:
    network = made(segmentation(frozen_stages=3))
    groups = layerwise_groups(network, weight_decay=0.1)
    assert {g["lr_scale"] for g in groups} == {1.0}
    given = {id(p) for g in groups for p in g["params"]}
    assert given == {id(p) for p in network.parameters() if p.requires_grad}


def test_step_sizes_are_not_decayed() -> None:
    network = made(segmentation())
    names = {n for n, _ in network.named_parameters() if n.endswith("log_step_size")}
    assert names
    assert network.no_weight_decay() == names


@pytest.mark.parametrize("name", ["segmentation", "mask_rcnn"])
def test_recomputing_blocks_changes_no_gradient(name: str) -> None:
    found = []
    for recompute in (False, True):
        network = made(NETWORKS[name])
        network.set_grad_checkpointing(recompute)
        if name == "segmentation":
            loss = network(pixels().float() / 255)["mask"].square().mean()
        else:
            torch.manual_seed(3)
            loss = sum(network(list(pixels().float() / 255), objects(2)).values())
        loss.backward()
        found.append({n: p.grad for n, p in network.named_parameters()})
    # Sums in another order: float32.
    assert all(torch.allclose(found[0][n], g, rtol=1e-3, atol=1e-5) for n, g in found[1].items())


@pytest.mark.parametrize("kind", list(HEADS))
@pytest.mark.parametrize("name", list(NETWORKS))
def test_shares_are_counted_parameter_by_parameter(name: str, kind: str) -> None:
    network = made(NETWORKS[name].replace(**HEADS[kind]))
    found = shares(network)
    assert [s.part for s in found] == ["backbone", "neck", "heads", "total"]
    named = {n: p for n, p in network.named_parameters() if not n.endswith("log_step_size")}
    assert found[-1].parameters == sum(p.numel() for p in named.values())
    assert found[-1].full_bytes == 4 * found[-1].parameters
    assert found[-1].packed_bytes == sum(s.packed_bytes for s in found[:-1])
    for share in found[1:3]:
        packed = share.packed_bytes / share.full_bytes
        assert packed == 1.0 if kind == "float" else packed < 0.8


def test_packed_bytes_of_a_layer_are_those_of_its_codes_step_sizes_and_norm() -> None:
    network = made(segmentation(bits=3))
    neck, bits = shares(network)[1], 3
    weights = {"lateral": (2, 4, 6, 8), "smooth": (6 * 9,) * 4}
    codes = sum(-(-6 * n * bits // 8) for each in weights.values() for n in each)
    norms, step_sizes = 8 * 6 * 2 * 4, 8 * 6 * 4
    assert neck.packed_bytes == codes + norms + step_sizes


def test_the_table_has_a_line_for_each_part_and_its_shares() -> None:
    table = shares_table(shares(made(segmentation()))).splitlines()
    assert [line.split("|")[1].strip() for line in table[2:]] == [
        "backbone",
        "neck",
        "heads",
        "total",
    ]
    assert table[-1].count("100.0 %") == 2
