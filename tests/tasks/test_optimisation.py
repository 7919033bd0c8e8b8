from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from lightning.pytorch.plugins.precision import MixedPrecision
from timm.optim import Lamb

from qsdformer import create_model
from qsdformer.models.dense.config import SegmentationConfig
from qsdformer.models.networks import build_network
from qsdformer.models.registry import model_config
from qsdformer.recipes.learning import TrainConfig
from qsdformer.tasks.optimisation import (
    learning_rate,
    make_optimizer,
    parameter_groups,
    rate_of,
    set_rate,
    step_size_notes,
)


def segmenter() -> torch.nn.Module:
    backbone = model_config("metaspikeformer_tiny", dims=(4, 6, 8, 8), depth=2, heads=2)
    widths = {"neck_width": 8, "head_width": 8}
    return build_network(SegmentationConfig(backbone=backbone, num_classes=3, **widths))


def test_learning_rate_rises_linearly_and_falls_as_a_cosine() -> None:
    config = TrainConfig(lr=1.0, min_lr=0.1, warmup=0.1)
    rates = [learning_rate(s, 101, config) for s in range(101)]
    assert rates[:3] == pytest.approx([0.1, 0.2, 0.3])
    assert rates[9] == rates[10] == pytest.approx(1.0)
    assert rates[55] == pytest.approx(0.55)  # half-way between peak and final
    assert rates[30] == pytest.approx(0.1 + 0.45 * (1 + math.cos(math.pi * 20 / 90)))
    assert rates[100] == pytest.approx(0.1)
    assert rates[10:] == sorted(rates[10:], reverse=True)


def test_learning_rate_without_warmup_starts_at_the_peak_and_never_passes_the_end() -> None:
    config = TrainConfig(lr=2.0, warmup=0.0)
    assert learning_rate(0, 10, config) == 2.0
    assert learning_rate(0, 1, config) == 2.0
    ending = TrainConfig(lr=2.0, min_lr=0.5, warmup=0.0)
    assert learning_rate(99, 10, ending) == pytest.approx(0.5)


def test_only_matrices_and_kernels_decay() -> None:
    model = create_model("metaspikeformer_tiny", layer_scale=0.1, num_classes=3)
    decayed, kept = (set(map(id, g["params"])) for g in parameter_groups(model, TrainConfig()))
    for name, parameter in model.named_parameters():
        matrix = name.endswith(".weight") and parameter.dim() > 1
        assert (id(parameter) in decayed) == matrix, name
        assert (id(parameter) in kept) == (not matrix), name
    undecayed = {n for n, p in model.named_parameters() if id(p) in kept}
    for ending in ("log_step_size", ".bias", ".scale"):
        assert any(name.endswith(ending) for name in undecayed), ending


def test_optimizers_take_the_scaled_rate() -> None:
    model = torch.nn.Linear(2, 2)
    config = TrainConfig(optimizer="lamb", lr=1e-3, lr_base_batch=64, batch_size=128, devices=2)
    optimizer = make_optimizer(model, config)
    assert isinstance(optimizer, Lamb)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(4e-3)
    assert optimizer.param_groups[0]["trust_clip"]
    machines = dataclasses.replace(config, num_nodes=3)
    assert machines.global_batch == 768
    assert make_optimizer(model, machines).param_groups[0]["lr"] == pytest.approx(12e-3)
    assert isinstance(make_optimizer(model, TrainConfig()), torch.optim.AdamW)
    config = TrainConfig(optimizer="sgd", lr=0.1, weight_decay=5e-4, betas=(0.8, 0.9))
    sgd = make_optimizer(model, config)
    assert isinstance(sgd, torch.optim.SGD)
    decays = [group["weight_decay"] for group in sgd.param_groups]
    assert decays == [5e-4, 0.0]
    with pytest.raises(ValueError, match=r"betas=.*must be a momentum above 0"):
        TrainConfig(optimizer="sgd", betas=(0.0, 0.9))
    assert {(g["lr"], g["momentum"], g["nesterov"]) for g in sgd.param_groups} == {(0.1, 0.8, True)}


def test_the_published_segmentation_rate_warms_up_in_steps_and_falls_in_a_line() -> None:
    schedule = {"warmup_steps": 1500, "warmup_start": 1e-6, "schedule": "poly", "power": 1.0}
    config = TrainConfig(lr=1e-3, **schedule)  # type: ignore[arg-type]
    assert learning_rate(0, 160_000, config) == pytest.approx(1e-3 * (1e-6 + 1 / 1500), rel=1e-5)
    assert learning_rate(1499, 160_000, config) == pytest.approx(1e-3)
    half = 1500 + (160_000 - 1500) // 2
    assert learning_rate(half, 160_000, config) == pytest.approx(5e-4, rel=1e-4)
    assert learning_rate(159_999, 160_000, config) == 0
    steeper = TrainConfig(lr=1.0, warmup=0.0, schedule="poly", power=2.0)
    assert learning_rate(50, 101, steeper) == pytest.approx(0.25)


def test_the_published_detection_rate_falls_after_epochs_8_and_11() -> None:
    config = TrainConfig(lr=1.0, epochs=15, warmup=0.0, schedule="step", lr_steps=(8, 11))
    rates = [learning_rate(step, 150, config) for step in range(150)]
    assert rates[:80] == [1.0] * 80
    assert rates[80:110] == pytest.approx([0.1] * 30)
    assert rates[110:] == pytest.approx([0.01] * 40)
    for wrong in (
        {"lr_steps": (8,)},
        {"schedule": "step"},
        {"schedule": "step", "lr_steps": (3, 2)},
    ):
        with pytest.raises(ValueError, match="lr_steps"):
            TrainConfig(**wrong)  # type: ignore[arg-type]


def test_every_trained_parameter_is_in_one_group_whatever_the_groups() -> None:
    model = segmenter()
    every = sorted(id(p) for p in model.parameters())
    for fields in (
        {},
        {"layer_decay": 0.7},
        {"head_lr": 2.0},
        {"layer_decay": 0.7, "head_lr": 2.0},
        {"step_size_lr": 8.0},
        {"layer_decay": 0.7, "head_lr": 2.0, "step_size_lr": 8.0},
    ):
        groups = parameter_groups(model, TrainConfig(**fields))  # type: ignore[arg-type]
        assert sorted(id(p) for group in groups for p in group["params"]) == every
        for group in groups:
            assert {p.dim() > 1 for p in group["params"]} == {group["weight_decay"] > 0}


def test_layers_nearer_to_the_image_learn_more_slowly_and_the_head_as_told() -> None:
    model = segmenter()
    optimizer = make_optimizer(model, TrainConfig(layer_decay=0.5, head_lr=2.0))
    set_rate(optimizer, 0.01)
    assert optimizer.param_groups[0]["lr"] < 0.01
    assert rate_of(optimizer) == pytest.approx(0.01)
    set_rate(optimizer, 0.1)
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    found = {name: rates[id(p)] for name, p in model.named_parameters()}
    stem = found["backbone.body.stages.0.downsample.conv.weight"]
    deep = {rate for name, rate in found.items() if name.startswith("backbone.body.stages.3")}
    assert 0 < stem < min(deep) <= max(deep) <= 0.1
    assert {rate for name, rate in found.items() if name.startswith("head.")} == {0.2}
    assert {rate for name, rate in found.items() if name.startswith("neck.")} == {0.1}


@pytest.mark.parametrize("fields", [{}, {"layer_decay": 0.5}])
def test_step_sizes_learn_at_their_own_multiple_of_their_layers_rate(
    fields: dict[str, float],
) -> None:
    model = create_model("metaspikeformer_tiny", num_classes=3, weight_bits=4)
    rates = []
    for factor in (1.0, 8.0):
        optimizer = make_optimizer(model, TrainConfig(step_size_lr=factor, **fields))  # type: ignore[arg-type]
        set_rate(optimizer, 0.01)
        assert rate_of(optimizer) == pytest.approx(0.01)
        rates.append({id(p): g["lr"] for g in optimizer.param_groups for p in g["params"]})
    for name, parameter in model.named_parameters():
        factor = 8.0 if name.endswith("log_step_size") else 1.0
        assert rates[1][id(parameter)] == pytest.approx(factor * rates[0][id(parameter)]), name


def test_a_network_without_step_sizes_learns_alike_whatever_their_rate() -> None:
    bits = dict.fromkeys(("weight_bits", "stem_bits", "head_bits"))
    model = create_model("metaspikeformer_tiny", num_classes=3, **bits)
    config = TrainConfig(step_size_lr=8.0)
    groups = parameter_groups(model, config)
    assert {group.get("lr_scale", 1.0) for group in groups} == {1.0}
    assert step_size_notes(config, model) == (
        "train.step_size_lr changes nothing: no weights of this network have step sizes",
    )
    quantised = create_model("metaspikeformer_tiny", num_classes=3, weight_bits=4)
    assert step_size_notes(config, quantised) == step_size_notes(TrainConfig(), model) == ()


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "16-mixed"])
@pytest.mark.parametrize("clip", [None, 1.0])
def test_fused_adamw_is_not_chosen_where_lightning_refuses_to_clip_for_it(
    precision: str, clip: float | None
) -> None:
    optimizer = make_optimizer(torch.nn.Linear(2, 2), TrainConfig(clip_grad=clip), precision)
    fused = bool(optimizer.param_groups[0]["fused"])
    assert fused == (clip is None or precision == "32-true")
    assert getattr(optimizer, "_step_supports_amp_scaling", False) == fused
    if clip is not None and precision != "32-true":
        plugin = MixedPrecision(precision, "cpu")  # type: ignore[arg-type]
        plugin.clip_gradients(optimizer, clip)
