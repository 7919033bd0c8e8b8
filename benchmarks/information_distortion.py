"""Draws spike information distortion: what q, k and v carry, before and after the remedies.

One column a checkpoint: histograms of the membrane potentials of q, k, v with the firing window,
and below them the distributions of spike counts with their entropies. By default the direct 4-bit
LIF, the unrectified and the rectified IE-LIF of a finished ablation:

    python benchmarks/information_distortion.py --ablation runs/ablation-fashion-mnist --seed 0

Prints the entropies, and the spike information distortion: how far each distribution of counts is
from that of the same network trained with full-precision weights.
"""

from __future__ import annotations

import argparse
import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor

from qsdformer.analysis.information import histogram_entropy, spike_information_distortion
from qsdformer.errors import UserError
from qsdformer.experiments.ablation_measure import evaluation_images
from qsdformer.experiments.grid import Cell
from qsdformer.files import atomic_path
from qsdformer.models.checkpoint import load_checkpoint
from qsdformer.nn.neurons import IELIF, LIF, SpikingNeuron
from qsdformer.nn.taps import matching_modules, tap
from qsdformer.recipes.recipe import parse_recipe
from qsdformer.training.checkpointing import LAST

FEATURES = ("q", "k", "v")
COLUMNS = {
    "lif-4bit": "direct 4-bit LIF, T = 4",
    "plain": "4-bit IE-LIF, not rectified",
    "rectified": "4-bit IE-LIF, rectified",
}
TWINS = {"lif-4bit": "lif-fp32", "rectified": "ielif-fp32"}  # the same with fp32 weights
RANGE = (-3.0, 3.0)  # of membrane potentials shown
BINS = 120


@dataclass(frozen=True)
class Distribution:
    """Histograms of one of q, k, v over all blocks: membrane potential, and spike count.

    Counts are those of all T·D binary steps together, 0..T·D.
    """

    membrane: Tensor
    counts: Tensor


def membrane_potentials(neuron: SpikingNeuron, x: Tensor) -> Tensor:
    """What `neuron` compares with its threshold, (T, B, ...), for its input (T*B, ...)."""
    steps = x.unflatten(0, (neuron.time_steps, -1))
    v, seen = torch.zeros_like(steps[0]), []
    for x_t in steps:
        if isinstance(neuron, LIF):
            h = v + (x_t - v) / neuron.tau
        else:
            assert isinstance(neuron, IELIF)
            h = neuron.decay * v + x_t
        seen.append(h)
        _, v = neuron._step(x_t, v)
        if neuron.time_steps == 1:
            break
    return torch.stack(seen)


@functools.cache  # drawn, and then compared
@torch.no_grad()
def distributions(checkpoint: Path, images: int) -> tuple[dict[str, Distribution], SpikingNeuron]:
    """Histograms of q, k and v of a checkpoint over its evaluation images, and one q neuron."""
    loaded = load_checkpoint(checkpoint)
    model = loaded.model
    if not model.config.is_spiking:
        raise UserError(f"{checkpoint} is an ANN: give spiking models")
    steps = model.config.time_steps * model.config.levels
    membrane = {name: torch.zeros(BINS) for name in FEATURES}
    counts = {name: torch.zeros(steps + 1) for name in FEATURES}
    patterns = [f"*.attention.{name}_neuron" for name in FEATURES]
    neurons: dict[str, Any] = matching_modules(model, *patterns)
    recipe = parse_recipe(loaded.extra["recipe"])
    for batch in evaluation_images(recipe, images):
        with tap(model, *patterns, inputs=True) as inputs, tap(model, *patterns) as outputs:
            model(batch)
        for path, neuron in neurons.items():
            name = path.rpartition(".")[2][0]
            h = membrane_potentials(neuron, inputs[path]).clamp(*RANGE)
            membrane[name] += torch.histc(h, BINS, *RANGE)
            total = neuron.counts(outputs[path]).unflatten(0, (neuron.time_steps, -1)).sum(0)
            counts[name] += torch.bincount(total.flatten(), minlength=steps + 1)
    found = {name: Distribution(membrane[name], counts[name]) for name in FEATURES}
    return found, next(iter(neurons.values()))


def draw(columns: dict[str, Path], images: int, path: Path) -> None:
    """The figure, one column a checkpoint."""
    figure = Figure(figsize=(4 * len(columns), 6), layout="constrained")
    axes = figure.subplots(2, len(columns), sharey="row", squeeze=False)
    for number, (title, checkpoint) in enumerate(columns.items()):
        found, neuron = distributions(checkpoint, images)
        _draw_membrane(axes[0][number], found, neuron)
        axes[0][number].set_title(title)
        _draw_counts(axes[1][number], found)
    axes[0][0].set_ylabel("density")
    axes[1][0].set_ylabel("share of neurons")
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=130)


def print_distortion(cells: Path, seed: int, images: int) -> None:
    """A line for each variant of the ablation and feature: entropy, and distortion to its twin."""
    for name, twin in TWINS.items():
        own, other = (distributions(checkpoint_of(cells, n, seed), images)[0] for n in (name, twin))
        for feature in FEATURES:
            counts = own[feature].counts
            distortion = spike_information_distortion(counts, other[feature].counts)
            entropy = histogram_entropy(counts)
            print(f"{name} {feature}: {entropy:.2f} bits, {distortion:.4f} bits from {twin}")


def checkpoint_of(cells: Path, variant: str, seed: int) -> Path:
    """The last checkpoint of a cell of the ablation."""
    return cells / str(Cell(variant, seed)) / LAST


def _draw_membrane(axes: Any, found: dict[str, Distribution], neuron: SpikingNeuron) -> None:
    if isinstance(neuron, LIF):
        axes.axvline(neuron.threshold, color="0.3", linestyle="--", label="firing threshold")
    else:
        axes.axvspan(0, 1, color="0.88", label="firing window")
    width = (RANGE[1] - RANGE[0]) / BINS
    centres = torch.linspace(RANGE[0] + width / 2, RANGE[1] - width / 2, BINS)
    for name, one in found.items():
        axes.plot(centres, one.membrane / one.membrane.sum() / width, label=name)
    axes.set_xlabel("membrane potential")
    axes.legend(fontsize=8)


def _draw_counts(axes: Any, found: dict[str, Distribution]) -> None:
    for offset, (name, one) in enumerate(found.items()):
        shares = one.counts / one.counts.sum()
        positions = torch.arange(len(shares)) + 0.27 * (offset - 1)
        label = f"{name}: {histogram_entropy(one.counts):.2f} bits"
        axes.bar(positions, shares, width=0.25, label=label)
    axes.set_xlabel("spike count over all binary steps")
    axes.legend(fontsize=8)


def main() -> None:
    """Parse arguments and draw."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ablation", type=Path, default=Path("runs/ablation-fashion-mnist"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--images", type=int, default=1000, help="evaluation images (default 1000)")
    parser.add_argument(
        "--checkpoint",
        nargs=2,
        action="append",
        metavar=("TITLE", "CKPT"),
        help="a column of its own choice, instead of the ablation's; may be repeated",
    )
    output = Path("docs/figures/information-distortion.png")
    parser.add_argument("--output", type=Path, default=output)
    options = parser.parse_args()
    cells = options.ablation / "cells"
    columns = {t: checkpoint_of(cells, name, options.seed) for name, t in COLUMNS.items()}
    if options.checkpoint:
        columns = {title: Path(file) for title, file in options.checkpoint}
    try:
        draw(columns, options.images, options.output)
        if not options.checkpoint:
            print_distortion(cells, options.seed, options.images)
    except UserError as error:
        parser.exit(2, f"error: {error}\n")
    print(options.output)


if __name__ == "__main__":
    main()
