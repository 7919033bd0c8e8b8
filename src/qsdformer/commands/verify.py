"""`qsd verify MODEL`."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from qsdformer.commands.arguments import add_device_argument, add_limit, positive
from qsdformer.commands.recipe_keys import add_recipe_keys, given_keys
from qsdformer.errors import UserError

if TYPE_CHECKING:
    from qsdformer.data import DataInfo, DataModule
    from qsdformer.graph.integer import IntegerGraph
    from qsdformer.models.base import SpikingTransformer


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `qsd verify`."""
    parser.add_argument(
        "model",
        metavar="MODEL",
        help="a checkpoint of qsd train, or a .qsd file of qsd export, which needs --data.name "
        "or --data.root",
    )
    add_limit(parser, "verify")
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
        help="of a checkpoint: width of membrane potentials in the integer graph (default: 32)",
    )
    parser.add_argument(
        "--executor",
        action="append",
        metavar="NAME",
        help="a way of execution, such as integer; may be repeated "
        "(default: all that are installed)",
    )
    add_device_argument(parser)
    add_recipe_keys(parser, section="data")


def run(options: argparse.Namespace) -> int:
    """Print how the ways of execution compare; status 1 if a promise is broken."""
    from rich.console import Console

    from qsdformer.commands.exported_data import pixel_batches
    from qsdformer.commands.running import progress_bar
    from qsdformer.runtimes.verify import verify

    model, data, info = _load(options)
    total = min(data.eval_size, options.limit or data.eval_size)
    with progress_bar() as progress:
        task = progress.add_task("verifying", total=total)
        report = verify(
            model,
            pixel_batches(data, total),
            info,
            executors=options.executor,
            on_images=lambda n: progress.advance(task, n),
            membrane_bits=options.membrane_bits,
        )
    print(f"{options.model} on {data.config.name}")
    Console(width=110).print(report.table())
    for name in report.missing:
        print(f"{name}: not installed")
    return 0 if report.ok else 1


def _load(
    options: argparse.Namespace,
) -> tuple[SpikingTransformer | IntegerGraph, DataModule, DataInfo]:
    """The model, images, and what the model says of its images."""
    from qsdformer.commands.exported_data import data_for
    from qsdformer.devices import pick_device
    from qsdformer.graph.integer import IntegerGraph
    from qsdformer.runtimes.exported import load_exported
    from qsdformer.tasks.stored import load_with_data

    keys = given_keys(options)
    exported = load_exported(options.model)
    if exported is None:
        device = pick_device(options.device)
        loaded, data = load_with_data(options.model, keys, options.batch_size)
        return loaded.model.to(device), data, data.info
    if not isinstance(exported, IntegerGraph):
        raise UserError(
            f"{options.model} is an ONNX file, which has one way of execution: give the checkpoint "
            "or a .qsd file, or measure its accuracy with qsd eval"
        )
    data = data_for(options.model, exported, keys, options.batch_size)
    return exported, data, data.info
