"""`qsd verify CKPT`."""

from __future__ import annotations

import argparse
from collections.abc import Iterator

from rich.console import Console
from rich.progress import Progress
from torch import Tensor

from qsdformer.commands.arguments import add_device_argument, positive
from qsdformer.commands.recipe_keys import add_recipe_keys, given_keys
from qsdformer.data import DataModule
from qsdformer.devices import pick_device
from qsdformer.models.checkpoint import load_checkpoint
from qsdformer.recipes.recipe import parse_data, with_keys
from qsdformer.runtimes.executors import EXECUTORS
from qsdformer.runtimes.verify import verify
from qsdformer.tasks.evaluation import check_fits


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `qsd verify`."""
    parser.add_argument("checkpoint", metavar="CKPT", help="a checkpoint of qsd train")
    parser.add_argument(
        "--limit", type=positive, metavar="N", help="first N images only (default: all of them)"
    )
    parser.add_argument(
        "--batch-size",
        type=positive,
        default=64,
        metavar="N",
        help="images at a time (default: 64)",
    )
    parser.add_argument(
        "--membrane-bits",
        type=int,
        choices=(16, 32),
        default=32,
        help="width of membrane potentials in the integer graph (default: 32)",
    )
    parser.add_argument(
        "--executor",
        action="append",
        choices=list(EXECUTORS),
        metavar="NAME",
        help=f"one of {', '.join(EXECUTORS)}; may be repeated (default: all that are installed)",
    )
    add_device_argument(parser)
    add_recipe_keys(parser, section="data")


def run(options: argparse.Namespace) -> int:
    """Print how the ways of execution compare; status 1 if a promise is broken."""
    keys = given_keys(options)
    device = pick_device(options.device)
    loaded = load_checkpoint(options.checkpoint)
    stored = loaded.extra.get("recipe", {})
    config = parse_data(with_keys({"data": stored.get("data", {})}, keys))
    data = DataModule(config, batch_size=options.batch_size, seed=stored.get("seed", 0))
    check_fits(loaded.model.num_classes, loaded.info, data.info)
    total = min(data.eval_size, options.limit or data.eval_size)
    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("verifying", total=total)
        report = verify(
            loaded.model.to(device),
            _first(iter(data.val_dataloader()), total),
            loaded.info or data.info,
            executors=options.executor,
            on_images=lambda n: progress.advance(task, n),
            membrane_bits=options.membrane_bits,
        )
    print(f"{options.checkpoint} on {config.name}")
    Console(width=110).print(report.table())
    for name in report.missing:
        print(f"{name}: not installed")
    return 0 if report.ok else 1


def _first(batches: Iterator[tuple[Tensor, Tensor]], count: int) -> Iterator[tuple[Tensor, Tensor]]:
    for images, labels in batches:
        yield images[:count], labels[:count]
        count -= len(images)
        if count <= 0:
            return
