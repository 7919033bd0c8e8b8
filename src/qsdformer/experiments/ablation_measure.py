"""What a row of an ablation says of a trained cell besides its accuracy."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from qsdformer.analysis.information import packed_bytes, qkv_entropy
from qsdformer.data import DataModule
from qsdformer.models.base import SpikingTransformer
from qsdformer.models.checkpoint import load_checkpoint
from qsdformer.recipes.learning import FEATURES
from qsdformer.recipes.recipe import Recipe
from qsdformer.tasks.activity import measure_activity, overall_activity
from qsdformer.tasks.evaluation import first_images


def measure(recipe: Recipe, checkpoint: Path, images: int) -> dict[str, Any]:
    """Size, speed and, of a spiking model, entropies and rates over `images` evaluation images."""
    model = load_checkpoint(checkpoint).model
    row: dict[str, Any] = {
        "packed_bytes": packed_bytes(model),
        "parameters": sum(p.numel() for p in model.parameters()),
        "epochs": recipe.train.epochs,
        "threads": torch.get_num_threads(),
        **training_speed(checkpoint.parent / "metrics.csv", recipe.train.global_batch),
    }
    if model.config.is_spiking:
        row |= spike_columns(model, list(evaluation_images(recipe, images)))
    return row


def spike_columns(model: SpikingTransformer, batches: list[Tensor]) -> dict[str, float]:
    """Entropy of q, k, v in bits; firing rates of q, k, v and of all; share of active groups."""
    activity = measure_activity(model, batches)
    columns = {f"entropy_{name}": bits + 0.0 for name, bits in qkv_entropy(model, batches).items()}
    for name in FEATURES:
        layers = {k: v for k, v in activity.items() if k.endswith(f".attention.{name}_neuron")}
        columns[f"rate_{name}"] = overall_activity(layers)["firing_rate"]
    return {**columns, **overall_activity(activity)}


def evaluation_images(recipe: Recipe, limit: int) -> Iterator[Tensor]:
    """The first `limit` evaluation images, in batches (B, C, H, W)."""
    data = DataModule(recipe.data, batch_size=min(256, limit), seed=recipe.seed)
    return (images for images, _ in first_images(data.val_dataloader(), limit))


def training_speed(metrics: Path, batch: int) -> dict[str, float]:
    """Training seconds over all epochs, and images per second, from a run's metrics.csv.

    `batch` is the number of images a step. What passes between two epochs does not count.
    """
    with metrics.open(newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["images_per_second"]]
    rates = [float(row["images_per_second"]) for row in rows]
    steps = [int(row["step"]) for row in rows]
    images = [(now - before) * batch for before, now in zip([0, *steps], steps, strict=False)]
    seconds = sum(n / rate for n, rate in zip(images, rates, strict=True))
    return {"images_per_second": sum(images) / seconds, "seconds": seconds}
