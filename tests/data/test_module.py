from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import lightning
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor

from qsdformer.data import DataConfig, DataModule
from qsdformer.data.lightning import LightningData
from qsdformer.errors import UserError

Build = Callable[..., DataModule]


@pytest.fixture(params=["memory", "folder"])
def build(request: pytest.FixtureRequest, fashion_folder: Path, image_root: Path) -> Build:
    """Makes fresh modules over the same files, with every augmentation on."""

    def make(seed: int = 0, workers: int = 0) -> DataModule:
        if request.param == "memory":
            options = {"name": "fashion_mnist", "root": str(fashion_folder), "crop_padding": 2}
        else:
            options = {"name": "image_folder", "root": str(image_root), "image_size": 24}
            options["auto_augment"] = "rand-m9-mstd0.5-inc1"
        config = DataConfig(hflip=True, random_erasing=0.5, workers=workers, **options)
        return DataModule(config, batch_size=4, seed=seed)

    return make


def epoch_of(module: DataModule, *epochs: int) -> tuple[Tensor, Tensor]:
    """The images and labels of the last of these epochs, after running through all of them."""
    loader = module.train_dataloader()
    for epoch in epochs:
        loader.sampler.set_epoch(epoch)
        batches = list(loader)
    images, labels = zip(*batches, strict=True)
    return torch.cat(images), torch.cat(labels)


def equal(first: tuple[Tensor, Tensor], second: tuple[Tensor, Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_an_epoch_is_the_same_whatever_ran_before_and_with_any_workers(build: Build) -> None:
    expected = epoch_of(build(), 2)
    torch.manual_seed(123)
    assert equal(epoch_of(build(), 0, 1, 2), expected)
    assert equal(epoch_of(build(workers=2), 1, 2), expected)


def test_epochs_and_seeds_differ(build: Build) -> None:
    first = epoch_of(build(), 0)
    assert not equal(epoch_of(build(), 1), first)
    assert not equal(epoch_of(build(seed=1), 0), first)


def test_augmentation_of_one_image_changes_from_epoch_to_epoch(build: Build) -> None:
    dataset = build()._train
    requests = [3 + epoch * len(dataset) for epoch in range(4)]
    images, labels = dataset.__getitems__(requests)
    assert len(labels.unique()) == 1
    assert not any(torch.equal(images[0], other) for other in images[1:])


def test_reading_batches_draws_nothing_from_the_global_generator(build: Build) -> None:
    state = torch.get_rng_state()
    epoch_of(build(), 0)
    assert torch.equal(torch.get_rng_state(), state)


def test_evaluation_is_complete_and_never_augmented(build: Build) -> None:
    """Variation is of the seed, evaluation is not: the same images in the same order."""
    module, other = build(), build(seed=1)
    first, second, third = (list(of.val_dataloader()) for of in (module, module, other))
    assert sum(len(labels) for _, labels in first) == module.eval_size
    assert all(equal(a, b) for a, b in zip(first, second, strict=True))
    assert all(equal(a, b) for a, b in zip(first, third, strict=True))


def test_the_last_incomplete_training_batch_is_left_out(build: Build) -> None:
    module = build()
    loader = module.train_dataloader()
    sizes = [len(labels) for _, labels in loader]
    assert sizes == [4] * (module.train_size // 4)
    assert len(loader) == len(sizes)


def test_a_training_set_smaller_than_a_batch_is_one_batch() -> None:
    module = DataModule(DataConfig(name="digits", train_limit=20), batch_size=64)
    loader = module.train_dataloader()
    assert [len(labels) for _, labels in loader] == [20]
    assert len(loader) == 1


def test_holdout_is_a_tenth_of_training_and_shares_no_image_with_it(fashion_folder: Path) -> None:
    config = DataConfig(name="fashion_mnist", root=str(fashion_folder), evaluate_on="holdout")
    module = DataModule(config, batch_size=45)
    assert (module.train_size, module.eval_size) == (45, 5)
    trained = {image.numpy().tobytes() for image in epoch_of(module, 0)[0]}
    held_out = {
        image.numpy().tobytes() for images, _ in module.val_dataloader() for image in images
    }
    assert (len(trained), len(held_out)) == (45, 5)
    assert not trained & held_out


def test_holdout_of_a_folder_is_not_augmented(image_root: Path) -> None:
    config = DataConfig(
        name="image_folder", root=str(image_root), image_size=24, evaluate_on="holdout"
    )
    modules = [DataModule(config, batch_size=4, seed=seed) for seed in (0, 1)]
    assert (modules[0].train_size, modules[0].eval_size) == (11, 1)
    first, second = (next(iter(module.val_dataloader())) for module in modules)
    assert equal(first, second)


def test_holdout_in_memory_is_not_augmented(fashion_folder: Path) -> None:
    varied = {"hflip": True, "crop_padding": 2, "random_erasing": 0.5}
    config = DataConfig(
        name="fashion_mnist", root=str(fashion_folder), evaluate_on="holdout", **varied
    )
    first, second = (
        next(iter(DataModule(config, batch_size=45, seed=seed).val_dataloader())) for seed in (0, 1)
    )
    assert len(first[1]) == 5
    assert equal(first, second)


def test_train_limit_takes_the_same_images_for_every_seed() -> None:
    def images(seed: int) -> set[bytes]:
        config = DataConfig(name="digits", train_limit=32)
        module = DataModule(config, batch_size=32, seed=seed)
        assert module.train_size == 32
        return {image.numpy().tobytes() for image in epoch_of(module, 0)[0]}

    assert images(0) == images(1)
    assert len(images(0)) == 32


def test_a_train_limit_beyond_the_data_is_refused() -> None:
    with pytest.raises(UserError, match="only 1437 training images"):
        DataModule(DataConfig(name="digits", train_limit=2000), batch_size=8)


@pytest.mark.parametrize("name", ["batch_size", "eval_batch_size"])
def test_batch_sizes_below_one_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name}=0"):
        DataModule(DataConfig(name="digits"), **{"batch_size": 8, name: 0})


class Recorder(lightning.LightningModule):
    """Learns nothing; notes a fingerprint of every training batch under its epoch."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.seen: dict[tuple[int, int], float] = {}

    def training_step(self, batch: tuple[Tensor, Tensor], index: int) -> Tensor:
        weights = torch.arange(batch[0].numel(), dtype=torch.float64).sin()
        fingerprint = float(batch[0].double().flatten() @ weights)
        self.seen[(self.current_epoch, index)] = fingerprint
        return self.weight.sum()

    def validation_step(self, batch: tuple[Tensor, Tensor], index: int) -> None:
        pass

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fit(folder: Path, workers: int, resume: Path | None = None, **when: object) -> Recorder:
    recorder = Recorder()
    trainer = lightning.Trainer(
        max_epochs=3,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        callbacks=[ModelCheckpoint(folder, filename="{epoch}-{step}", save_top_k=-1, **when)],
    )
    config = DataConfig(name="digits", train_limit=100, crop_padding=2, workers=workers)
    data = DataModule(config, batch_size=25, eval_batch_size=360)
    trainer.fit(recorder, datamodule=LightningData(data), ckpt_path=resume)
    return recorder


@pytest.mark.filterwarnings("error:You're resuming from a checkpoint that ended before")
@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize(
    ("when", "checkpoint", "first"),
    [
        ({"save_on_train_epoch_end": True}, "epoch=0-step=4.ckpt", (1, 0)),
        ({"save_on_train_epoch_end": False}, "epoch=0-step=4.ckpt", (1, 0)),
        ({"every_n_train_steps": 3}, "epoch=1-step=6.ckpt", (1, 2)),
    ],
    ids=["epoch end", "after validation", "mid-epoch"],
)
def test_a_resumed_fit_sees_the_batches_of_an_uninterrupted_one(
    tmp_path: Path, workers: int, when: dict[str, object], checkpoint: str, first: tuple[int, int]
) -> None:
    whole = fit(tmp_path / "whole", 0, **when)
    assert len(set(whole.seen.values())) == 12
    resumed = fit(tmp_path / "resumed", workers, tmp_path / "whole" / checkpoint, **when)
    assert resumed.seen == {step: v for step, v in whole.seen.items() if step >= first}
