from pathlib import Path
from typing import Any, cast

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from torch import Tensor
from torch.nn import functional as F

from qsdformer.data import DataModule
from qsdformer.data.lightning import LightningData
from qsdformer.models.metaspikeformer import MetaSpikeFormer
from qsdformer.nn.exact import TF32_SWITCHES, exact_float32
from qsdformer.nn.taps import spiking_neurons, tap
from qsdformer.recipes.recipe import Recipe, parse_recipe
from qsdformer.runtimes.binary import multi_bit
from qsdformer.tasks.base import step_seed
from qsdformer.tasks.classification import Classification
from qsdformer.tasks.evaluation import evaluate, evaluate_logits
from qsdformer.training.run import make_trainer


def test_step_seeds_differ_by_seed_step_and_process() -> None:
    seeds = {step_seed(s, n, r) for s in range(5) for n in range(50) for r in range(4)}
    assert len(seeds) == 5 * 50 * 4
    assert step_seed(1, 2, 3) == step_seed(1, 2, 3)


def trained(
    tmp_path: Path, *callbacks: Callback, data: dict[str, Any] | None = None, **train: Any
) -> tuple[Recipe, Trainer]:
    """A small network trained for 3 steps; the recipe, and the trainer that holds the task."""
    values: dict[str, Any] = {
        "model": {"name": "metaspikeformer_tiny", "dims": [8, 16, 16, 16], "depth": 2, "heads": 2},
        "data": {"name": "digits", "image_size": 16, "train_limit": 96, **(data or {})},
        "train": {"epochs": 1, "batch_size": 32, "accelerator": "cpu", "lr": 1e-2, **train},
        "output": str(tmp_path),
    }
    recipe = parse_recipe(values)
    module = DataModule(recipe.data, batch_size=32, eval_batch_size=100)
    trainer = make_trainer(recipe, [*callbacks])
    trainer.fit(Classification(recipe, module.info), datamodule=LightningData(module))
    return recipe, trainer


class Weights(Callback):
    """The last layer's weights before the first step and after each one."""

    def __init__(self) -> None:
        self.seen: list[Tensor] = []

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        self.seen.append(head_of(pl_module.model))

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, *_: Any) -> None:
        self.seen.append(head_of(pl_module.model))


def head_of(model: Any) -> Tensor:
    return cast(Tensor, model.head.weight.detach().clone())


@pytest.mark.parametrize("warmup", [False, True])
def test_averaged_weights_follow_those_that_are_trained(tmp_path: Path, warmup: bool) -> None:
    weights = Weights()
    _, trainer = trained(tmp_path, weights, ema=0.5, ema_warmup=warmup)
    task = cast(Classification, trainer.lightning_module)
    assert len(weights.seen) == 4
    expected = weights.seen[0]
    for step, value in enumerate(weights.seen[1:], 1):
        # timm's: nothing of the start is kept; its warm-up goes on with 1 - 2^(-2/3), ...
        decay = min(0.5 if step > 1 else 0.0, 1 - step ** (-2 / 3) if warmup else 1.0)
        expected = decay * expected + (1 - decay) * value
    averaged = head_of(task.evaluated)
    torch.testing.assert_close(averaged, expected)
    assert not torch.allclose(averaged, weights.seen[-1])


class Mixed(Callback):
    """In which epochs images were mixed."""

    def __init__(self) -> None:
        self.epochs: list[int] = []

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        mix = pl_module.mix

        def noting(images: Tensor, labels: Tensor) -> Any:
            self.epochs.append(trainer.current_epoch)
            return mix(images, labels)

        vars(pl_module)["mix"] = noting  # a submodule of this name stands behind it


def test_images_are_mixed_until_the_epoch_that_the_recipe_says(tmp_path: Path) -> None:
    mixed = Mixed()
    trained(tmp_path, mixed, data={"mixup": 0.8, "mixup_off_epoch": 2}, epochs=3)
    assert mixed.epochs == [0, 0, 0, 1, 1, 1]


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_the_loss_is_cross_entropy_with_the_recipes_smoothing_of_what_was_mixed(
    tmp_path: Path, smoothing: float
) -> None:
    _, trainer = trained(tmp_path, label_smoothing=smoothing)
    task = cast(Classification, trainer.lightning_module)
    images, labels = next(iter(trainer.datamodule.train_dataloader()))  # type: ignore[attr-defined]
    shares = torch.full((len(labels), 10), 0.1)
    for mix, targets in ((None, labels), (lambda x, _: (-x, shares), shares)):
        task.mix = mix
        seen = images if mix is None else -images
        task.model.eval()  # so that both passes have the same statistics
        loss = task.training_step((images, labels), 0)["loss"]
        logits = task.model(seen)
        expected = F.cross_entropy(logits, targets, label_smoothing=smoothing)
        torch.testing.assert_close(loss, expected)


def test_top_5_is_right_where_the_class_is_among_five() -> None:
    logits = torch.arange(10.0).flip(0).repeat(4, 1)
    labels = torch.tensor([0, 4, 5, 9])
    found = evaluate_logits(lambda _: logits, [(torch.zeros(4, 1, 1, 1), labels)])
    assert (found.top1, found.top5, found.images) == (0.25, 0.5, 4)


def test_validation_logs_top_1_and_top_5(tmp_path: Path) -> None:
    recipe, trainer = trained(tmp_path)
    task = cast(Classification, trainer.lightning_module)
    data = DataModule(recipe.data, batch_size=32, eval_batch_size=400)
    (metrics,) = trainer.validate(task, datamodule=LightningData(data), verbose=False)
    found = evaluate(task.evaluated, data.val_dataloader(), torch.device("cpu"))
    assert metrics["val_accuracy"] == pytest.approx(found.top1, abs=1e-7)
    assert metrics["val_top5"] == pytest.approx(found.top5, abs=1e-7)
    assert found.top5 > found.top1


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
        (metrics,) = trainer.validate(task, datamodule=LightningData(data), verbose=False)
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
