"""Trained networks on the sparse designs and on the dense array of as many adders and bytes.

A line for each checkpoint: accuracy, firing rate, and cycles and energy on `sdt-sparse` with D
passes, with counts stored, and with weights shared as well, beside `dense-int`. Energies are given
with and without leakage, which is an assumption of both designs.

    python benchmarks/accelerator_tables.py runs/A "B's name=zoo/B.qsd" --data-root data/cifar-10

--csv FILE keeps the rows by name: those of other networks that it has stay in it.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from qsdformer.accelerator.design import Design, load_design
from qsdformer.accelerator.results import Figures, figures
from qsdformer.accelerator.simulate import Simulation, simulate
from qsdformer.accelerator.sweep import variant
from qsdformer.analysis.report.collect import locate
from qsdformer.commands.exported_data import data_for, pixel_batches
from qsdformer.data.preprocessing import Preprocessing
from qsdformer.errors import UserError
from qsdformer.files import write_csv
from qsdformer.graph.integer import IntegerGraph
from qsdformer.graph.lowering import lower
from qsdformer.graph.ops import Array
from qsdformer.runtimes.executors import to_pixels
from qsdformer.runtimes.exported import load_exported
from qsdformer.runtimes.runnable import runnable
from qsdformer.tasks.evaluation import evaluate, evaluate_logits, first_images
from qsdformer.tasks.stored import load_with_data


@dataclasses.dataclass(frozen=True, kw_only=True)
class Trained:
    """A trained network as an integer graph, with images and its accuracy."""

    name: str
    graph: IntegerGraph
    images: Array
    accuracy: float | None


def load_trained(run: str, images: int, limit: int, root: str | None = None) -> Trained:
    """The network of a run folder, checkpoint or .qsd file; accuracy on `limit` images, if any.

    `run` is its path, or NAME=PATH. A file takes its images from the folder `root`, a checkpoint
    from where it was trained.
    """
    name, _, path = run.rpartition("=")
    trained = _load(path, images, limit, root)
    return dataclasses.replace(trained, name=name) if name else trained


def _load(path: str, images: int, limit: int, root: str | None) -> Trained:
    graph = None if Path(path).is_dir() else load_exported(path)
    if isinstance(graph, IntegerGraph):
        return _load_file(path, graph, images, limit, root)
    checkpoint, folder = locate(path)
    loaded, data = load_with_data(str(checkpoint), {}, 256)
    pixels = spread((pixels for pixels, _ in data.val_dataloader()), images)
    accuracy = None
    if limit:
        batches = first_images(data.val_dataloader(), limit)
        accuracy = evaluate(loaded.model, batches, torch.device("cpu")).top1
    return Trained(
        name=folder.name
        if checkpoint.parent == folder and Path(path).is_dir()
        else checkpoint.stem,
        graph=lower(loaded.model, data.info, membrane_bits=16),
        images=to_pixels(pixels, Preprocessing.of(data.info)),
        accuracy=accuracy,
    )


def _load_file(
    path: str, graph: IntegerGraph, images: int, limit: int, root: str | None
) -> Trained:
    if root is None:
        raise UserError(f"{path} does not say where its images are: give --data-root FOLDER")
    data = data_for(path, graph, {"data.root": root}, 256)
    accuracy = None
    if limit:
        runner = runnable(graph, 1, exact=False)
        batches = pixel_batches(data, limit)
        accuracy = evaluate_logits(
            lambda pixels: torch.from_numpy(runner.logits(pixels.numpy())), batches
        ).top1
    pixels = spread((pixels for pixels, _ in pixel_batches(data, None)), images)
    return Trained(name=Path(path).stem, graph=graph, images=pixels.numpy(), accuracy=accuracy)


def spread(batches: Iterable[Tensor], count: int) -> Tensor:
    """So many images, taken evenly from all."""
    whole = torch.cat(list(batches))
    return whole[torch.linspace(0, len(whole) - 1, count).long()]


def designs() -> dict[str, Design]:
    """The designs compared, by column."""
    sparse = load_design("sdt-sparse")
    counts = variant(sparse, {"encoding": "address+count"})
    return {
        "D passes": sparse,
        "counts": counts,
        "shared": variant(counts, {"share": True}),
        "dense": load_design("dense-int"),
    }


def firing_rate(simulation: Simulation) -> float:
    """Share of spikes among the places that operations on spikes read."""
    stages = simulation.stages
    return sum(s.spikes for s in stages) / sum(s.places for s in stages)


def without_leakage(found: Figures) -> float:
    """µJ an image."""
    return (found.total - found.energy["leakage"]) / 1e6


def measured(trained: Trained) -> dict[str, str]:
    """A row: accuracy in %, firing rate, and by design thousand cycles and µJ an image."""
    simulations = {n: simulate(trained.graph, d, trained.images) for n, d in designs().items()}
    assert all(s.differing == 0 for s in simulations.values())
    found = {name: figures(s) for name, s in simulations.items()}
    accuracy = "" if trained.accuracy is None else f"{trained.accuracy:.1%}"
    return {
        "network": trained.name,
        "top-1": accuracy,
        "rate": f"{firing_rate(simulations['dense']):.3f}",
        **{f"kcycles: {name}": f"{each.cycles / 1e3:.1f}" for name, each in found.items()},
        **{f"µJ: {name}": f"{without_leakage(each):.2f}" for name, each in found.items()},
        **{f"µJ with leakage: {name}": f"{each.total / 1e6:.2f}" for name, each in found.items()},
    }


def line(row: dict[str, str]) -> str:
    """A measured row in Markdown, energy with leakage in brackets."""
    cycles = [row[f"kcycles: {name}"] for name in designs()]
    energies = [f"{row[f'µJ: {name}']} ({row[f'µJ with leakage: {name}']})" for name in designs()]
    cells = [row["network"], row["top-1"], row["rate"], *cycles, *energies]
    return f"| {' | '.join(cells)} |"


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse arguments and print the table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "runs", nargs="+", metavar="[NAME=]PATH", help="run folders, checkpoints or .qsd files"
    )
    parser.add_argument("--data-root", help="folder of the images of .qsd files")
    parser.add_argument("--images", type=int, default=8)
    parser.add_argument("--limit", type=int, default=10**6, help="images for accuracy, 0 for none")
    parser.add_argument("--csv", type=Path, help="keep the rows in this file, too")
    options = parser.parse_args(arguments)
    titles = [f"{what}: {name}" for what in ("kcycles", "µJ") for name in designs()]
    print(f"| network | top-1 | rate | {' | '.join(titles)} |")
    print("|" + "---|" * (3 + len(titles)))
    kept: dict[str, dict[str, str]] = {}
    if options.csv is not None and options.csv.exists():
        with options.csv.open(newline="", encoding="utf-8") as file:
            kept = {row["network"]: row for row in csv.DictReader(file)}
    for run in options.runs:
        row = measured(load_trained(run, options.images, options.limit, options.data_root))
        kept[row["network"]] = row
        print(line(row), flush=True)
    if options.csv is not None:
        write_csv(options.csv, list(row), kept.values(), line_end="\n")


if __name__ == "__main__":
    main()
