import math

import pytest
import torch
from timm.optim import Lamb

from qsdformer.models.metaspikeformer import create_model
from qsdformer.recipes.recipe import TrainConfig
from qsdformer.tasks.classification import (
    learning_rate,
    make_optimizer,
    parameter_groups,
    step_seed,
)


def test_learning_rate_rises_linearly_and_falls_as_a_cosine() -> None:
    rates = [learning_rate(s, 101, peak=1.0, final=0.1, warmup=0.1) for s in range(101)]
    assert rates[:3] == pytest.approx([0.1, 0.2, 0.3])
    assert rates[9] == rates[10] == pytest.approx(1.0)
    assert rates[55] == pytest.approx(0.55)  # half-way between peak and final
    assert rates[30] == pytest.approx(0.1 + 0.45 * (1 + math.cos(math.pi * 20 / 90)))
    assert rates[100] == pytest.approx(0.1)
    assert rates[10:] == sorted(rates[10:], reverse=True)


def test_learning_rate_without_warmup_starts_at_the_peak_and_never_passes_the_end() -> None:
    assert learning_rate(0, 10, peak=2.0, final=0.0, warmup=0.0) == 2.0
    assert learning_rate(0, 1, peak=2.0, final=0.0, warmup=0.0) == 2.0
    assert learning_rate(99, 10, peak=2.0, final=0.5, warmup=0.0) == pytest.approx(0.5)


def test_only_matrices_and_kernels_decay() -> None:
    model = create_model("metaspikeformer_tiny", layer_scale=0.1, num_classes=3)
    decayed, kept = (set(map(id, g["params"])) for g in parameter_groups(model, 0.05))
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
    assert isinstance(make_optimizer(model, TrainConfig()), torch.optim.AdamW)


def test_step_seeds_differ_by_seed_step_and_process() -> None:
    seeds = {step_seed(s, n, r) for s in range(5) for n in range(50) for r in range(4)}
    assert len(seeds) == 5 * 50 * 4
    assert step_seed(1, 2, 3) == step_seed(1, 2, 3)
