from pathlib import Path
from typing import Any, cast

import pytest
import torch
from lightning.pytorch import Trainer
from torch import Tensor

from qsdformer.data import DataModule
from qsdformer.models.metaspikeformer import MetaSpikeFormer
from qsdformer.nn.exact import TF32_SWITCHES, exact_float32
from qsdformer.nn.taps import spiking_neurons, tap
from qsdformer.recipes.recipe import Recipe, parse_recipe
from qsdformer.runtimes.binary import multi_bit
from qsdformer.tasks.base import step_seed
from qsdformer.tasks.classification import Classification
from qsdformer.tasks.evaluation import evaluate
from qsdformer.training.run import make_trainer


def test_step_seeds_differ_by_seed_step_and_process() -> None:
    seeds = {step_seed(s, n, r) for s in range(5) for n in range(50) for r in range(4)}
    assert len(seeds) == 5 * 50 * 4
    assert step_seed(1, 2, 3) == step_seed(1, 2, 3)


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
