import math
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.plugins import MixedPrecision
from timm.optim import Lamb
from torch import Tensor

from qsdformer.data import DataModule
from qsdformer.models.metaspikeformer import MetaSpikeFormer, create_model
from qsdformer.nn.exact import TF32_SWITCHES, exact_float32
from qsdformer.nn.taps import spiking_neurons, tap
from qsdformer.recipes.learning import TrainConfig
from qsdformer.recipes.recipe import Recipe, parse_recipe
from qsdformer.runtimes.binary import multi_bit
from qsdformer.tasks.classification import (
    Classification,
    learning_rate,
    make_optimizer,
    parameter_groups,
    step_seed,
)
from qsdformer.tasks.evaluation import evaluate
from qsdformer.training.run import make_trainer


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


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "16-mixed"])
@pytest.mark.parametrize("clip", [None, 1.0])
def test_fused_adamw_is_not_chosen_where_lightning_refuses_to_clip_for_it(
    precision: str, clip: float | None
) -> None:
    optimizer = make_optimizer(torch.nn.Linear(2, 2), TrainConfig(clip_grad=clip), precision)
    fused = optimizer.param_groups[0]["fused"]
    assert fused == (clip is None or precision == "32-true")
    assert getattr(optimizer, "_step_supports_amp_scaling", False) == fused
    if clip is not None and precision != "32-true":
        plugin = MixedPrecision(precision, "cpu")  # type: ignore[arg-type]
        plugin.clip_gradients(optimizer, clip)


def trained(tmp_path: Path, **train: Any) -> tuple[Recipe, Trainer]:
    """A small network trained for 3 steps; the recipe, and the trainer that holds the task."""
    values: dict[str, Any] = {
        "model": {"name": "metaspikeformer_tiny", "dims": [8, 16, 16, 16], "depth": 2, "heads": 2},
        "data": {"name": "digits", "image_size": 16, "train_limit": 96},
        "train": {"epochs": 1, "batch_size": 32, "accelerator": "cpu", "lr": 1e-2, **train},
        "output": str(tmp_path),
    }
    recipe = parse_recipe(values)
    data = DataModule(recipe.data, batch_size=32, eval_batch_size=100)
    trainer = make_trainer(recipe, [])
    trainer.fit(Classification(recipe, data.info), datamodule=data)
    return recipe, trainer


def test_clipping_under_bfloat16_trains_and_may_be_switched_on_for_a_fused_run(
    tmp_path: Path,
) -> None:
    _, trainer = trained(tmp_path, precision="bf16-mixed")
    state = trainer.optimizers[0].state_dict()
    assert state["param_groups"][0]["fused"]
    _, clipping = trained(tmp_path, precision="bf16-mixed", clip_grad=0.1)
    assert clipping.global_step == 3
    task = cast(Classification, clipping.lightning_module)
    task.on_load_checkpoint({"optimizer_states": [state]})
    assert not any(group["fused"] for group in state["param_groups"])


@pytest.mark.parametrize("ema", [None, 0.5])
def test_validation_under_bfloat16_measures_the_network_that_eval_does(
    tmp_path: Path, ema: float | None
) -> None:
    recipe, trainer = trained(tmp_path, precision="bf16-mixed", ema=ema)
    task = cast(Classification, trainer.lightning_module)
    data = DataModule(recipe.data, batch_size=32, eval_batch_size=400)
    (images, _), *_ = data.val_dataloader()
    logits, counts = multi_bit(task.evaluated.eval(), images)
    rounded = multi_bit_under_autocast(task.evaluated, images)
    assert any(not torch.equal(rounded[name], counts[name]) for name in counts)  # a real risk
    with tap(task.evaluated, *counts, "head") as seen:
        (metrics,) = trainer.validate(task, datamodule=data, verbose=False)
    neurons = spiking_neurons(task.evaluated)
    for name, expected in counts.items():
        assert torch.equal(neurons[name].counts(seen[name]), expected), name
    accuracy = evaluate(task.evaluated, data.val_dataloader(), torch.device("cpu")).top1
    assert metrics["val_accuracy"] == pytest.approx(accuracy, abs=1e-7)
    assert torch.equal(seen["head"], logits)


def multi_bit_under_autocast(model: MetaSpikeFormer, images: Tensor) -> dict[str, Tensor]:
    with torch.autocast("cpu", torch.bfloat16):
        return multi_bit(model, images)[1]


def test_exact_float32_ends_autocast_and_tf32_and_puts_both_back() -> None:
    before = [switch.fp32_precision for switch in TF32_SWITCHES]
    torch.backends.cuda.matmul.fp32_precision = "tf32"
    try:
        with torch.autocast("cpu", torch.bfloat16):
            with exact_float32("cpu"):
                assert not torch.is_autocast_enabled("cpu")
                assert [switch.fp32_precision for switch in TF32_SWITCHES] == ["ieee"] * 3
            assert torch.is_autocast_enabled("cpu")
        assert torch.backends.cuda.matmul.fp32_precision == "tf32"
    finally:
        for switch, value in zip(TF32_SWITCHES, before, strict=True):
            switch.fp32_precision = value
    assert [switch.fp32_precision for switch in TF32_SWITCHES] == before
