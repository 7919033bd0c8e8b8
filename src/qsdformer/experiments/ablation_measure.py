"""What a row of an ablation says of a trained cell besides its accuracy."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from qsdformer.analysis.energy import COST_MODELS
from qsdformer.analysis.information import packed_bytes
from qsdformer.analysis.ledger import Ledger, make_ledger
from qsdformer.analysis.measure import Measured
from qsdformer.analysis.measure import measure as measure_spikes
from qsdformer.analysis.twins import ann_ledger, twins
from qsdformer.data import DataInfo, DataModule
from qsdformer.experiments.ablation_report import EVALUATED
from qsdformer.models.base import SpikingTransformer
from qsdformer.models.checkpoint import load_checkpoint
from qsdformer.recipes.learning import FEATURES
from qsdformer.recipes.recipe import Recipe
from qsdformer.tasks.activity import measure_activity, overall_activity
from qsdformer.tasks.evaluation import first_images

PJ_PER_UJ = 1e6


def measure(recipe: Recipe, checkpoint: Path, images: int) -> dict[str, Any]:
    """Size, speed, work and energy; of a spiking model entropies and rates too.

    Spikes are those of the first `images` evaluation images.
    """
    loaded = load_checkpoint(checkpoint)
    model, data = loaded.model, evaluation_data(recipe, images, loaded.info)
    row: dict[str, Any] = {
        EVALUATED: data.eval_size,
        "packed_bytes": packed_bytes(model),
        "parameters": sum(p.numel() for p in model.parameters()),
        "epochs": recipe.train.epochs,
        "threads": torch.get_num_threads(),
        **training_speed(checkpoint.parent / "metrics.csv", recipe.train.global_batch),
    }
    batches = list(first_images(data.val_dataloader(), images))
    if not model.config.is_spiking:
        height, width = batches[0][0].shape[-2:]
        return row | work_columns(ann_ledger("", model, (height, width), None))
    measured = measure_spikes(model, batches)
    row |= spike_columns(model, [inputs for inputs, _ in batches], measured)
    quantised = twins("", model, measured)[1:]  # the first is the ANN in fp32
    return row | work_columns(make_ledger("", model, measured), quantised)


def work_columns(ledger: Ledger, quantised: Sequence[Ledger] = ()) -> dict[str, float]:
    """Additions that spikes cause and MACs, an image, and the energy under every cost model, µJ.

    `quantised` are the quantised ANN twins, whose bit-aware energy is given too.
    """
    columns = {"additions": ledger.synaptic_operations, "macs": ledger.macs}
    for name, cost in COST_MODELS.items():
        columns[f"uj_{name.replace('-', '_')}"] = ledger.total(cost) / PJ_PER_UJ
    for name, twin in zip(("twin", "twin_skip"), quantised, strict=False):
        columns[f"uj_{name}"] = twin.total(COST_MODELS["bit-aware"]) / PJ_PER_UJ
    return columns


def spike_columns(
    model: SpikingTransformer, batches: list[Tensor], measured: Measured
) -> dict[str, float]:
    """Entropy of q, k, v in bits; firing rates of q, k, v and of all; share of active groups."""
    activity = measure_activity(model, batches)
    columns = {f"entropy_{name}": bits + 0.0 for name, bits in measured.entropies.items()}
    for name in FEATURES:
        layers = {k: v for k, v in activity.items() if k.endswith(f".attention.{name}_neuron")}
        columns[f"rate_{name}"] = overall_activity(layers)["firing_rate"]
    return {**columns, **overall_activity(activity)}


def evaluation_data(recipe: Recipe, limit: int, info: DataInfo | None = None) -> DataModule:
    """The images a recipe evaluates on, of which `limit` are wanted; as `info` says, if given."""
    size = min(256, limit)
    return DataModule(recipe.data, batch_size=size, seed=recipe.seed, evaluate_as=info)


def evaluation_images(recipe: Recipe, limit: int) -> Iterator[Tensor]:
    """The first `limit` evaluation images, in batches (B, C, H, W)."""
    batches = first_images(evaluation_data(recipe, limit).val_dataloader(), limit)
    return (images for images, _ in batches)


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
