"""Trained networks on the sparse designs and on the dense array of as many adders and bytes.

A line for each checkpoint: accuracy, firing rate, and cycles and energy on `sdt-sparse` with D
passes, with counts stored, and with weights shared as well, beside `dense-int`. Energies are given
with and without leakage, which is an assumption of both designs.

    python benchmarks/accelerator_tables.py runs/A zoo/B.qsd --data-root data/cifar-10 --images 8
"""

from __future__ import annotations

import argparse
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


def load_trained(path: str, images: int, limit: int, root: str | None = None) -> Trained:
    """The network of a run folder, checkpoint or .qsd file; accuracy on `limit` images, if any.

    A file takes its images from the folder `root`, a checkpoint from where it was trained.
    """
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


COLUMNS = ("kcycles", "µJ without leakage", "µJ")


def line(trained: Trained) -> str:
    """A row of the table."""
    simulations = {n: simulate(trained.graph, d, trained.images) for n, d in designs().items()}
    assert all(s.differing == 0 for s in simulations.values())
    found = {name: figures(s) for name, s in simulations.items()}
    accuracy = "" if trained.accuracy is None else f"{trained.accuracy:.1%}"
    cells = [
        trained.name,
        accuracy,
        f"{firing_rate(simulations['dense']):.3f}",
        *(f"{each.cycles / 1e3:,.1f}" for each in found.values()),
        *(f"{without_leakage(each):,.2f}" for each in found.values()),
        *(f"{each.total / 1e6:,.2f}" for each in found.values()),
    ]
    return f"| {' | '.join(cells)} |"


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse arguments and print the table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+", help="run folders, checkpoints or .qsd files")
    parser.add_argument("--data-root", help="folder of the images of .qsd files")
    parser.add_argument("--images", type=int, default=8)
    parser.add_argument("--limit", type=int, default=10**6, help="images for accuracy, 0 for none")
    options = parser.parse_args(arguments)
    titles = [f"{what}, {name}" for what in COLUMNS for name in designs()]
    print(f"| network | top-1 | rate | {' | '.join(titles)} |")
    print("|" + "---|" * (3 + len(titles)))
    for path in options.runs:
        trained = load_trained(path, options.images, options.limit, options.data_root)
        print(line(trained), flush=True)


if __name__ == "__main__":
    main()
