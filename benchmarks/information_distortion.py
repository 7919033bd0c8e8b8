"""Draws spike information distortion: what q, k and v carry, before and after the remedies.

One column a checkpoint: histograms of the membrane potentials of q, k, v with the firing window,
and below them the distributions of spike counts with their entropies. By default the direct 4-bit
LIF, the unrectified and the rectified IE-LIF of a finished ablation:

    python benchmarks/information_distortion.py --ablation runs/ablation-fashion-mnist --seed 0

Prints the entropies, and the spike information distortion: how far each distribution of counts is
from that of the same network trained with full-precision weights. With `--blocks FIGURE.png` the
same by block, as a figure and as rows of `--csv`; with `--kept CSV` the figure is of rows that were
written before, and no cells are needed.
"""

from __future__ import annotations

import argparse
import csv
import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from qsdformer.analysis.information import histogram_entropy, spike_information_distortion
from qsdformer.errors import UserError
from qsdformer.experiments.ablation_measure import evaluation_images
from qsdformer.experiments.grid import Cell, cell_checkpoint
from qsdformer.files import atomic_path, write_csv
from qsdformer.models.checkpoint import load_checkpoint
from qsdformer.nn.neurons import IELIF, LIF, SpikingNeuron
from qsdformer.nn.taps import matching_modules, tap
from qsdformer.recipes.recipe import parse_recipe

FEATURES = ("q", "k", "v")
COLUMNS = {
    "lif-4bit": "direct 4-bit LIF, T = 4",
    "plain": "4-bit IE-LIF, not rectified",
    "rectified": "4-bit IE-LIF, rectified",
}
TWINS = {"lif-4bit": "lif-fp32", "rectified": "ielif-fp32"}  # the same with fp32 weights
# By block, in grids that have them.
BLOCK_TWINS = {
    **TWINS,
    "plain": "ielif-fp32",
    "fgd-10": "ielif-fp32",
    "lif-4bit-published": "lif-fp32-published",
}
LABELS = {
    **COLUMNS,
    "fgd-10": "4-bit rectified + FGD, weight 10",
    "lif-4bit-published": "direct 4-bit LIF, published start",
}
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


def distributions(checkpoint: Path, images: int) -> tuple[dict[str, Distribution], SpikingNeuron]:
    """Histograms of q, k and v over all blocks of a checkpoint, and one q neuron."""
    blocks, neuron = by_block(checkpoint, images)
    return {
        name: Distribution(
            sum(block[name].membrane for block in blocks),  # type: ignore[arg-type]
            sum(block[name].counts for block in blocks),  # type: ignore[arg-type]
        )
        for name in FEATURES
    }, neuron


@functools.cache  # drawn, and then compared
@torch.no_grad()
def by_block(checkpoint: Path, images: int) -> tuple[list[dict[str, Distribution]], SpikingNeuron]:
    """Histograms of q, k and v of each block over a checkpoint's evaluation images."""
    loaded = load_checkpoint(checkpoint)
    model = loaded.model
    if not model.config.is_spiking:
        raise UserError(f"{checkpoint} is an ANN: give spiking models")
    steps = model.config.time_steps * model.config.levels
    patterns = [f"*.attention.{name}_neuron" for name in FEATURES]
    neurons: dict[str, Any] = matching_modules(model, *patterns)
    found = {path: Distribution(torch.zeros(BINS), torch.zeros(steps + 1)) for path in neurons}
    recipe = parse_recipe(loaded.extra["recipe"])
    for batch in evaluation_images(recipe, images):
        with tap(model, *patterns, inputs=True) as inputs, tap(model, *patterns) as outputs:
            model(batch)
        for path, neuron in neurons.items():
            h = membrane_potentials(neuron, inputs[path]).clamp(*RANGE)
            found[path].membrane.add_(torch.histc(h, BINS, *RANGE))
            total = neuron.counts(outputs[path]).unflatten(0, (neuron.time_steps, -1)).sum(0)
            found[path].counts.add_(torch.bincount(total.flatten(), minlength=steps + 1))
    blocks: dict[str, dict[str, Distribution]] = {}
    for path, one in found.items():
        block, _, name = path.rpartition(".")
        blocks.setdefault(block, {})[name[0]] = one
    return list(blocks.values()), next(iter(neurons.values()))


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


def print_distortion(ablation: Path, seed: int, images: int) -> None:
    """A line for each variant of the ablation and feature: entropy, and distortion to its twin."""
    for name, twin in TWINS.items():
        own, other = (
            distributions(cell_checkpoint(ablation, Cell(n, seed)), images)[0] for n in (name, twin)
        )
        for feature in FEATURES:
            counts = own[feature].counts
            distortion = spike_information_distortion(counts, other[feature].counts)
            entropy = histogram_entropy(counts)
            print(f"{name} {feature}: {entropy:.2f} bits, {distortion:.4f} bits from {twin}")


def block_rows(ablation: Path, seed: int, images: int) -> list[dict[str, Any]]:
    """A row for each variant of `BLOCK_TWINS` whose cells are there, block and feature."""
    rows = []
    for name, twin in BLOCK_TWINS.items():
        files = [cell_checkpoint(ablation, Cell(one, seed)) for one in (name, twin)]
        if not all(file.exists() for file in files):
            continue
        own, other = (by_block(file, images)[0] for file in files)
        for number, (block, reference) in enumerate(zip(own, other, strict=True), 1):
            for feature in FEATURES:
                counts, there = block[feature].counts, reference[feature].counts
                row = {"variant": name, "twin": twin, "seed": seed, "block": number}
                row |= {"feature": feature, "entropy": histogram_entropy(counts)}
                row["twin_entropy"] = histogram_entropy(there)
                row["distortion"] = spike_information_distortion(counts, there)
                rows.append(row)
    return rows


def draw_blocks(rows: list[dict[str, Any]], path: Path) -> None:
    """Above the entropy of q, k and v by block, below how far they are from the fp32 twin's."""
    figure = Figure(figsize=(11, 6), layout="constrained")
    axes: Any = figure.subplots(2, len(FEATURES), sharex=True, sharey="row")
    for column, feature in enumerate(FEATURES):
        for colour, name in enumerate(dict.fromkeys(row["variant"] for row in rows)):
            own = [r for r in rows if r["variant"] == name and r["feature"] == feature]
            blocks = [r["block"] for r in own]
            style = {"marker": "o", "markersize": 4, "color": f"C{colour}"}
            axes[0][column].plot(blocks, [r["entropy"] for r in own], label=LABELS[name], **style)
            twins = [r["twin_entropy"] for r in own]
            axes[0][column].plot(blocks, twins, ":", color=f"C{colour}", alpha=0.7)
            axes[1][column].plot(blocks, [r["distortion"] for r in own], **style)
        axes[0][column].set_title(feature)
        axes[1][column].set_xlabel("block")
        axes[1][column].xaxis.set_major_locator(MaxNLocator(integer=True))
        for row in axes:
            row[column].grid(alpha=0.4)
    for row in axes:  # at the end, when all columns of a row have had their say
        row[0].set_ylim(bottom=0)
    axes[0][0].set_ylabel("entropy, bits (dotted: fp32 twin)")
    axes[1][0].set_ylabel("divergence from the twin, bits")
    axes[0][0].legend(fontsize=8)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=130)


def kept_rows(path: Path, seed: int) -> list[dict[str, Any]]:
    """The rows of a seed that `write_blocks` wrote, in the order of `BLOCK_TWINS`."""
    numbers = {"block": int, "entropy": float, "twin_entropy": float, "distortion": float}
    with path.open(newline="") as file:
        found = [row for row in csv.DictReader(file) if int(row["seed"]) == seed]
    rows = [{**row, **{k: kind(row[k]) for k, kind in numbers.items()}} for row in found]
    return sorted(rows, key=lambda row: list(BLOCK_TWINS).index(row["variant"]))


def write_blocks(rows: list[dict[str, Any]], path: Path) -> None:
    """The rows as CSV, whole or not at all."""
    short = [{k: f"{v:.5g}" if isinstance(v, float) else v for k, v in row.items()} for row in rows]
    write_csv(path, list(rows[0]), short, line_end="\n")


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
    parser.add_argument("--blocks", type=Path, metavar="PNG", help="only this: by block")
    parser.add_argument("--csv", type=Path, help="of --blocks; default: beside the figure")
    parser.add_argument("--kept", type=Path, metavar="CSV", help="rows for --blocks to draw again")
    options = parser.parse_args()
    ablation = options.ablation
    columns = {
        t: cell_checkpoint(ablation, Cell(name, options.seed)) for name, t in COLUMNS.items()
    }
    if options.checkpoint:
        columns = {title: Path(file) for title, file in options.checkpoint}
    if options.blocks is not None:
        kept, seed = options.kept, options.seed
        rows = kept_rows(kept, seed) if kept else block_rows(ablation, seed, options.images)
        if not rows:
            parser.exit(2, f"error: {kept or ablation} has no finished pair of {BLOCK_TWINS}\n")
        if not kept:
            write_blocks(rows, options.csv or options.blocks.with_suffix(".csv"))
        draw_blocks(rows, options.blocks)
        print(options.blocks)
        return
    try:
        draw(columns, options.images, options.output)
        if not options.checkpoint:
            print_distortion(ablation, options.seed, options.images)
    except UserError as error:
        parser.exit(2, f"error: {error}\n")
    print(options.output)


if __name__ == "__main__":
    main()
