"""A backbone starts from a classifier's checkpoint: whole, or not at all; and some of it stays."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from models.dense.small import (
    DETECTORS,
    INFO,
    backbone,
    detection,
    made,
    normalised,
    objects,
    pixels,
    segmentation,
)
from qsdformer.cli import run
from qsdformer.errors import UserError
from qsdformer.models.building import build
from qsdformer.models.checkpoint import save_checkpoint
from qsdformer.models.dense.starting import start_backbone
from qsdformer.models.finetune import start_from
from qsdformer.models.published import import_reference
from qsdformer.nn.quantizers import initial_step_size
from qsdformer.recipes.dense import SECTIONS
from qsdformer.recipes.learning import TrainConfig
from qsdformer.training.processes import check_processes


def classifier(**fields: Any) -> Any:
    torch.manual_seed(7)
    model = build(backbone(num_classes=3, **fields)).train()
    with torch.no_grad():
        model(torch.randn(4, model.config.in_channels, 64, 64))
    return model


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    save_checkpoint(tmp_path / "classifier.ckpt", classifier())
    return tmp_path / "classifier.ckpt"


@pytest.mark.parametrize(
    "make", [segmentation, *(lambda d=d: detection(detector=d) for d in DETECTORS)]
)
def test_weights_and_statistics_are_the_classifiers_and_what_was_left_out_is_told(
    make: Any, saved: Path
) -> None:
    network = made(make())
    lines = start_backbone(network, saved)
    wanted = {k: v for k, v in classifier().state_dict().items() if not k.startswith("head.")}
    own = network.body.state_dict()
    assert own.keys() == wanted.keys()
    assert all(torch.equal(own[key], value) for key, value in wanted.items())
    assert lines[0] == f"backbone from {saved}: {len(wanted)} tensors"
    assert lines[1] == "  left out: head.weight, head.bias, head.log_step_size"
    assert lines[2].startswith("  newly initialised: ")
    parts = lines[2].removeprefix("  newly initialised: ").split(", ")
    assert parts == [*network.PARTS["neck"], *network.PARTS["heads"]]


@pytest.mark.parametrize(
    ("make", "parts"),
    [
        (segmentation, "neck, head"),
        (lambda: detection(detector="mask_rcnn"), "backbone.neck, rpn, roi_heads"),
        (lambda: detection(detector="retinanet"), "backbone.neck, head"),
    ],
)
def test_neck_and_heads_of_a_dense_checkpoint_are_told_as_left_out(
    make: Any, parts: str, tmp_path: Path
) -> None:
    source = made(make())
    with torch.no_grad():
        for parameter in source.parameters():
            parameter += 0.01
    save_checkpoint(tmp_path / "dense.ckpt", source)
    network = made(segmentation())
    before = copy.deepcopy(network.state_dict())
    lines = start_backbone(network, tmp_path / "dense.ckpt")
    assert f"  left out: {parts}" in lines
    beside = [key for key in source.state_dict() if not key.startswith(f"{source.PATH}.")]
    assert all(key.startswith(tuple(f"{part}." for part in parts.split(", "))) for key in beside)
    own, theirs = network.body.state_dict(), source.body.state_dict()
    assert all(torch.equal(own[key], theirs[key]) for key in own)
    rest = [key for key in before if not key.startswith(f"{network.PATH}.")]
    assert all(torch.equal(network.state_dict()[key], before[key]) for key in rest)


def test_other_bits_start_their_step_sizes_from_the_weights(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "8.ckpt", classifier(weight_bits=8, levels=8))
    network = made(segmentation())
    lines = start_backbone(network, tmp_path / "8.ckpt")
    assert any(line.startswith("  step sizes started from the weights: ") for line in lines)
    assert "  other settings here: weight_bits 8 there, 4 here, levels 8 there, 4 here" in lines
    conv = network.body.stages[1].downsample.conv
    assert torch.equal(conv.log_step_size, initial_step_size(conv.weight, 4).log())


def test_a_classifier_of_grey_images_starts_a_network_of_coloured_ones(tmp_path: Path) -> None:
    grey = classifier(in_channels=1)
    save_checkpoint(tmp_path / "grey.ckpt", grey)
    network = made(segmentation())
    lines = start_backbone(network, tmp_path / "grey.ckpt")
    assert "  adapted to 3 channels: stages.0.downsample.conv.weight" in lines
    weight = network.body.stages[0].downsample.conv.weight
    expected = grey.stages[0].downsample.conv.weight
    assert torch.allclose(weight.sum(dim=1, keepdim=True), expected, atol=1e-6)


def test_a_classifier_starts_from_a_dense_networks_backbone(tmp_path: Path) -> None:
    network = made(segmentation())
    save_checkpoint(tmp_path / "dense.ckpt", network, INFO)
    model = classifier()
    info = dataclasses.replace(INFO, class_names=("a", "b", "c"))
    lines = start_from(model, tmp_path / "dense.ckpt", info)
    assert any("(no classifier there)" in line for line in lines)
    body = network.body.state_dict()
    own = model.state_dict()
    assert all(torch.equal(own[key], value) for key, value in body.items() if key in own)


def test_a_published_checkpoint_starts_a_backbone(fixtures: Path, tmp_path: Path) -> None:
    published = import_reference(fixtures / "reference_mini.pth", heads=8)
    save_checkpoint(tmp_path / "imported.ckpt", published)
    network = made(segmentation(backbone=published.config))
    start_backbone(network, tmp_path / "imported.ckpt")
    network.eval()
    with torch.no_grad():
        maps = network.backbone(normalised(pixels()))
        expected = published.forward_intermediates(normalised(pixels()), intermediates_only=True)
    assert all(torch.equal(a, b) for a, b in zip(maps, expected, strict=True))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"depth": 4}, "has stages.3.blocks.1.* and .* more, unknown to the backbone"),
        ({"dims": (4, 6, 8, 16)}, "has shape .*, the backbone .*: give the backbone"),
        ({"fully_spiking": True}, "lacks|has .*, unknown"),
    ],
)
def test_another_network_is_refused_in_one_line(
    fields: dict[str, Any], message: str, tmp_path: Path
) -> None:
    save_checkpoint(tmp_path / "other.ckpt", classifier(**fields))
    network = made(segmentation())
    before = copy.deepcopy(network.state_dict())
    with pytest.raises(UserError, match=message) as error:
        start_backbone(network, tmp_path / "other.ckpt")
    assert "\n" not in str(error.value)
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())


def test_a_shallower_network_lacks_tensors(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "shallow.ckpt", classifier())
    with pytest.raises(UserError, match=r"lacks stages\.3\.blocks\.1.* of the backbone"):
        start_backbone(made(segmentation(backbone=backbone(depth=4))), tmp_path / "shallow.ckpt")


def test_another_family_is_refused(tmp_path: Path, saved: Path) -> None:
    network = made(segmentation(backbone=backbone("e_spikeformer")))
    with pytest.raises(UserError, match="a metaspikeformer network, but the backbone is a e_spike"):
        start_backbone(network, saved)


def norms(module: nn.Module) -> list[_BatchNorm]:
    return [m for m in module.modules() if isinstance(m, _BatchNorm)]


def step(network: Any) -> dict[str, torch.Tensor]:
    """One training step; what state it started from."""
    before = copy.deepcopy(network.state_dict())
    optimizer = torch.optim.AdamW((p for p in network.parameters() if p.requires_grad), lr=0.1)
    if hasattr(network, "transform"):
        loss = sum(network(list(pixels().float() / 255), objects(2)).values())
    else:
        loss = network(normalised(pixels()))["mask"].square().mean()
    loss.backward()
    optimizer.step()
    return before


@pytest.mark.parametrize("make", [segmentation, detection])
def test_frozen_stages_stay_as_they_are_also_in_training(make: Any) -> None:
    network = made(make(frozen_stages=2)).train(False).train()
    stages = network.body.stages
    assert not any(p.requires_grad for s in stages[:2] for p in s.parameters())
    assert all(p.requires_grad for s in stages[2:] for p in s.parameters())
    assert not any(m.training for s in stages[:2] for m in s.modules())
    assert all(m.training for s in stages[2:] for m in s.modules())
    before = step(network)
    changed = {k for k, v in network.state_dict().items() if not torch.equal(v, before[k])}
    prefix = f"{network.PATH}.stages."
    assert not any(key.startswith((f"{prefix}0.", f"{prefix}1.")) for key in changed)
    assert any(key.startswith(f"{prefix}2.") for key in changed)


@pytest.mark.parametrize("make", [segmentation, detection])
def test_frozen_norms_keep_the_backbones_statistics_and_train_the_rest(make: Any) -> None:
    network = made(make(norm="frozen"))
    assert not any(m.training for m in norms(network.body))
    heads = [m for part in ("neck", "heads") for top in network.part(part) for m in norms(top)]
    assert all(m.training for m in heads)
    before = step(network)
    after = network.state_dict()
    for name, module in network.body.named_modules():
        if isinstance(module, _BatchNorm):
            key = f"{network.PATH}.{name}"
            assert torch.equal(after[f"{key}.running_mean"], before[f"{key}.running_mean"])
            assert torch.equal(after[f"{key}.running_var"], before[f"{key}.running_var"])
            assert not torch.equal(after[f"{key}.bias"], before[f"{key}.bias"])


@pytest.mark.parametrize("make", [segmentation, detection])
def test_synchronised_norms_are_everywhere_and_compute_the_same_in_one_process(make: Any) -> None:
    network, plain = made(make(norm="sync")), made(make())
    assert {type(m) for m in norms(network)} == {nn.SyncBatchNorm}
    assert network.state_dict().keys() == plain.state_dict().keys()
    network.load_state_dict(plain.state_dict())
    network.eval()
    plain.eval()
    with torch.no_grad():
        maps = (n.backbone(normalised(pixels())) for n in (network, plain))
        a, b = ([*x.values()] if isinstance(x, dict) else x for x in maps)
    assert all(torch.allclose(x, y, atol=1e-6) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("task", ["segmentation", "detection"])
@pytest.mark.parametrize("many", [{"devices": 2}, {"num_nodes": 2}])
def test_synchronised_norms_of_several_processes_need_gpus(task: str, many: Any) -> None:
    dense = SECTIONS[task].parse({"norm": "sync"})
    with pytest.raises(UserError, match=rf"{task}\.norm=sync: only GPUs .*norm batch") as caught:
        check_processes(TrainConfig(**many), cuda=False, dense=dense)
    assert "\n" not in str(caught.value)
    check_processes(TrainConfig(), cuda=False, dense=dense)
    check_processes(TrainConfig(devices=2), cuda=True, dense=dense)
    check_processes(TrainConfig(devices=2), cuda=False, dense=SECTIONS[task]())
    check_processes(TrainConfig(devices=2), cuda=False)


def test_a_run_with_synchronised_norms_on_two_cpu_processes_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--segmentation.norm=sync", "--devices=2", "--accelerator=cpu"]
    assert run(["train", "camvid", *words, "--output", str(tmp_path / "run")]) == 2
    assert "segmentation.norm=sync: only GPUs" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
