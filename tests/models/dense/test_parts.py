"""Parts of a dense network: rates of learning, weight decay, what the docs say of their shares."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from models.dense.small import (
    DETECTORS,
    HEADS,
    detection,
    made,
    normalised,
    objects,
    pixels,
    segmentation,
)
from qsdformer.analysis.information import packed_bytes_by_tensor
from qsdformer.models.dense.building import build_dense
from qsdformer.models.dense.config import DetectionConfig
from qsdformer.models.dense.rates import layerwise_groups
from qsdformer.models.registry import model_config

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
        calls: list[int] = []
        block = network.body.stages[3].blocks[0]
        block.register_forward_pre_hook(lambda *_, calls=calls: calls.append(1))
        if name == "segmentation":
            loss = network(pixels().float() / 255)["mask"].square().mean()
        else:
            torch.manual_seed(3)
            loss = sum(network(list(pixels().float() / 255), objects(2)).values())
        loss.backward()
        assert len(calls) == 1 + recompute
        found.append({n: p.grad for n, p in network.named_parameters()})
    # Sums in another order: float32.
    assert all(torch.allclose(found[0][n], g, rtol=1e-3, atol=1e-5) for n, g in found[1].items())


def test_the_documented_shares_are_those_of_the_networks() -> None:
    text = (Path(__file__).parents[3] / "docs" / "dense.md").read_text(encoding="utf-8")
    config = DetectionConfig(backbone=model_config("metaspikeformer_15m"), num_classes=80)
    with torch.device("meta"):
        float_heads, spiking = (
            build_dense(config.replace(**kind)) for kind in reversed(HEADS.values())
        )
    lines = []
    totals = [sum(packed_bytes_by_tensor(n).values()) for n in (float_heads, spiking)]
    for part, paths in spiking.PARTS.items():
        inside = tuple(f"{path}." for path in paths)
        count = sum(
            p.numel()
            for name, p in float_heads.named_parameters()
            if name.startswith(inside) and not name.endswith("log_step_size")
        )
        cells = [f"{count / 1e6:.2f} M", f"{4 * count / 1e6:.1f} MB"]
        for network, total in zip((float_heads, spiking), totals, strict=True):
            sizes = packed_bytes_by_tensor(network).items()
            packed = sum(size for name, size in sizes if name.startswith(inside))
            cells.append(f"{packed / 1e6:.1f} MB ({packed / total:.0%})".replace("%", " %"))
        lines.append(f"| {part} | {' | '.join(cells)} |")
    assert all(line in text for line in lines), lines
    assert all(f" {total / 1e6:.1f} MB |" in text for total in totals)


@pytest.mark.parametrize("fields", [{"norm": "frozen"}, {"frozen_stages": 2}])
def test_what_is_frozen_keeps_its_statistics_from_the_start(fields: dict[str, Any]) -> None:
    network = made(segmentation(**fields))  # nobody has called train()
    stages = network.body.stages[: fields.get("frozen_stages")]
    norms = [m for m in stages.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    before = [norm.running_mean.clone() for norm in norms]
    network(normalised(pixels()))
    assert norms
    assert all(torch.equal(a, norm.running_mean) for a, norm in zip(before, norms, strict=True))
