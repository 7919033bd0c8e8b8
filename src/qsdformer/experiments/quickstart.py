"""`qsd quickstart`: the whole method on bundled digits, ANN and 4-bit student side by side."""

from __future__ import annotations

import csv
import dataclasses
import time
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from qsdformer.analysis.information import (
    histogram_entropy,
    mean_firing_rate,
    packed_bytes,
    qkv_histograms,
    spike_histograms,
)
from qsdformer.data import DataModule
from qsdformer.errors import UserError
from qsdformer.experiments.figures import new_figure
from qsdformer.files import atomic_path, write_json
from qsdformer.models.checkpoint import load_checkpoint
from qsdformer.recipes.recipe import Recipe, load_recipe
from qsdformer.tasks.evaluation import evaluate
from qsdformer.terminal import say
from qsdformer.training import train

RECIPES = {"ann": "digits-ann", "student": "digits"}
TITLES = {"ann": "ANN", "student": "4-bit student"}


def run(
    output: Path, seed: int = 0, epochs: int | None = None, console: Console | None = None
) -> dict[str, Any]:
    """Train both models into `output`, compare them, and return what results.json holds.

    `epochs` is for each of them; None keeps the recipes'. Compared are the models of the last
    epoch: nothing is chosen on the held-out images. Writes ann/ and student/ (checkpoints and
    curves), results.json and quickstart.png.
    """
    console = console or Console()
    begin = time.perf_counter()
    rows: dict[str, dict[str, Any]] = {}
    histograms: dict[str, Tensor] = {}
    keys = {"seed": str(seed)} if epochs is None else {"seed": str(seed), "epochs": str(epochs)}
    recipes = {
        name: load_recipe(of, {**keys, "output": str(output / name)})
        for name, of in RECIPES.items()
    }
    for recipe in recipes.values():
        _check_own(recipe)
    for name, recipe in recipes.items():
        console.rule(TITLES[name])
        trained = train(recipe, overwrite=True, console=console)
        measured, histograms = measure(trained.last_path, recipe)
        rows[name] = {**measured, "train_seconds": round(trained.seconds, 1)}
    results = {"seed": seed, "seconds": round(time.perf_counter() - begin, 1), "models": rows}
    write_json(output / "results.json", results)
    draw(output / "quickstart.png", output, histograms)
    console.print(table(rows))
    say(
        console,
        f"{results['seconds']:.0f} s in all. Look at {output}; "
        f"try: qsd eval {output / 'student' / 'last.ckpt'}",
    )
    return results


def _check_own(recipe: Recipe) -> None:
    """`UserError` for a folder with anything but an earlier quickstart's run, which is replaced."""
    folder = Path(recipe.output)
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    try:
        there = load_recipe(str(folder / "recipe.yaml"), {"epochs": str(recipe.train.epochs)})
        there = dataclasses.replace(there, seed=recipe.seed, output=recipe.output)
    except UserError:
        there = None
    if there != recipe:
        raise UserError(f"{folder} is not from an earlier quickstart: choose another --output")


def measure(checkpoint: Path, recipe: Recipe) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Accuracy, size and spikes of a checkpoint on its held-out images, and the histograms."""
    model = load_checkpoint(checkpoint).model
    data = DataModule(recipe.data, batch_size=256, seed=recipe.seed)
    evaluation = evaluate(model, data.val_dataloader(), torch.device("cpu"))
    config = model.config
    row: dict[str, Any] = {
        "accuracy": evaluation.top1,
        "images": evaluation.images,
        "weight_bits": config.weight_bits or 32,
        "parameters": sum(p.numel() for p in model.parameters()),
        "packed_bytes": packed_bytes(model),
    }
    if not config.is_spiking:
        return row, {}
    histograms = spike_histograms(model, (images for images, _ in data.val_dataloader()))
    row["entropy_bits"] = {n: histogram_entropy(h) for n, h in qkv_histograms(histograms).items()}
    row["firing_rate"] = mean_firing_rate(histograms)
    return row, histograms


def table(rows: dict[str, dict[str, Any]]) -> Table:
    """The comparison, one line a model."""
    result = Table(title="Held-out digits")
    result.add_column("model")
    for column in ("accuracy", "weights", "packed", "entropy q/k/v (bit)", "firing rate"):
        result.add_column(column, justify="right")
    for name, row in rows.items():
        entropies = row.get("entropy_bits")
        result.add_row(
            TITLES[name],
            f"{row['accuracy']:.1%}",
            f"{row['weight_bits']} bit",
            f"{row['packed_bytes'] / 1024:,.0f} KiB",
            " ".join(f"{e:.2f}" for e in entropies.values()) if entropies else "-",
            f"{row['firing_rate']:.3f}" if "firing_rate" in row else "-",
        )
    return result


def draw(path: Path, output: Path, histograms: dict[str, Tensor]) -> None:
    """Accuracy curves of both models, and the student's q, k, v spike-count distributions."""
    figure = new_figure(path, (9, 3.6))
    if figure is None:
        return
    curves, counts = figure.subplots(1, 2)
    for name, title in TITLES.items():
        epochs, accuracies = read_curve(output / name / "metrics.csv")
        curves.plot(epochs, [100 * a for a in accuracies], label=title, marker=".")
    curves.set(xlabel="epoch", ylabel="held-out accuracy (%)", title="Training")
    curves.legend(loc="lower right")
    for offset, (name, histogram) in enumerate(qkv_histograms(histograms).items()):
        shares = (histogram / histogram.sum()).tolist()
        label = f"{name}: {histogram_entropy(histogram):.2f} bit"
        positions = [c + 0.27 * (offset - 1) for c in range(len(shares))]
        counts.bar(positions, shares, width=0.25, label=label)
    counts.set(xlabel="spike count", ylabel="share", title="What q, k and v carry (student)")
    counts.legend()
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=130)


def read_curve(path: Path) -> tuple[list[int], list[float]]:
    """Epochs and evaluation accuracies of a run's metrics.csv."""
    with path.open(newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["val_accuracy"]]
    return [int(row["epoch"]) for row in rows], [float(row["val_accuracy"]) for row in rows]
