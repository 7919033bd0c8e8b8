"""`qsd simulate MODEL`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from qsdformer.accelerator.design import designs
from qsdformer.commands.arguments import positive
from qsdformer.commands.recipe_keys import add_recipe_keys, given_keys
from qsdformer.errors import UserError
from qsdformer.files import write_json

if TYPE_CHECKING:
    from rich.console import Console

    from qsdformer.accelerator.design import Design
    from qsdformer.accelerator.simulate import Simulation
    from qsdformer.accelerator.sweep import Point
    from qsdformer.graph.integer import IntegerGraph
    from qsdformer.graph.ops import Array

FILE_WIDTH = 140  # columns of output that goes to a file or a pipe


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `qsd simulate`."""
    parser.add_argument(
        "model",
        metavar="MODEL",
        help="a checkpoint of qsd train, or a .qsd file of qsd export, which needs --data.name "
        "or --data.root",
    )
    parser.add_argument(
        "--design",
        action="append",
        metavar="NAME",
        help=f"one of {', '.join(designs())}, or a YAML file; may be repeated, the first in "
        "detail (default: sdt-sparse and dense-int)",
    )
    parser.add_argument(
        "--images",
        type=positive,
        default=4,
        metavar="N",
        help="the first N evaluation images (default: 4)",
    )
    parser.add_argument(
        "--membrane-bits",
        type=int,
        choices=(16, 32),
        default=16,
        help="of a checkpoint: width of membrane potentials (default: 16, as in qsd analyze)",
    )
    parser.add_argument(
        "--sweep",
        metavar="KEYS",
        help="vary the first design, such as lanes=32|64,encoding=address|address+count,"
        "buffers=0.5|1 (default: off)",
    )
    parser.add_argument("--csv", metavar="FILE", help="write the stages' rows (default: off)")
    parser.add_argument("--json", metavar="FILE", help="write everything (default: off)")
    add_recipe_keys(parser, section="data")


def run(options: argparse.Namespace) -> int:
    """Simulate, print the tables, write the files asked for."""
    from rich.console import Console

    from qsdformer.accelerator.design import load_design
    from qsdformer.accelerator.simulate import simulate
    from qsdformer.accelerator.sweep import parse_sweep

    chosen = [load_design(name) for name in options.design or ("sdt-sparse", "dense-int")]
    keys = parse_sweep(options.sweep, chosen[0]) if options.sweep else None
    graph, images = _load(options)
    console = Console()
    if not console.is_terminal:
        console = Console(width=FILE_WIDTH)
    if keys is not None:
        return _sweep(console, options, graph, chosen[0], images, keys)
    simulations = []
    for design in chosen:
        with console.status(f"simulating {design.name}"):
            simulations.append(simulate(graph, design, images))
    _print(console, simulations)
    if options.csv:
        from qsdformer.accelerator.tables import write_csv

        write_csv(options.csv, simulations)
    if options.json:
        from qsdformer.accelerator.tables import simulation_values

        write_json(options.json, [simulation_values(s) for s in simulations])
    return 0


def _load(options: argparse.Namespace) -> tuple[IntegerGraph, Array]:
    """The integer graph, and pixels for it."""
    import numpy as np

    from qsdformer.commands.exported_data import data_for, pixel_batches
    from qsdformer.graph.integer import IntegerGraph
    from qsdformer.graph.lowering import lower
    from qsdformer.runtimes.exported import load_exported
    from qsdformer.tasks.stored import load_with_data

    keys = given_keys(options)
    graph = load_exported(options.model)
    if graph is None:
        loaded, data = load_with_data(options.model, keys, options.images)
        graph = lower(loaded.model, data.info, membrane_bits=options.membrane_bits)
    elif not isinstance(graph, IntegerGraph):
        raise UserError(f"{options.model} is an ONNX file: give the checkpoint or a .qsd file")
    else:
        data = data_for(options.model, graph, keys, options.images)
    batches = [pixels.numpy() for pixels, _ in pixel_batches(data, options.images)]
    if not batches:
        raise UserError("there are no images to simulate")
    return graph, np.concatenate(batches)


def _print(console: Console, simulations: Sequence[Simulation]) -> None:
    from qsdformer.accelerator.tables import design_table, stage_table, traffic_table, unit_table

    first = simulations[0]
    for table in (stage_table(first), unit_table(first), traffic_table(first)):
        console.print(table)
    console.print(design_table(simulations))
    for simulation in simulations:
        console.print(_notes(simulation), highlight=False)


def _notes(simulation: Simulation) -> str:
    from qsdformer.accelerator.tables import bytes_text

    design, weights = simulation.design, bytes_text(simulation.weight_bits)
    where = "stay on the chip" if simulation.resident else "come from DRAM for every image"
    if simulation.differing:
        raise RuntimeError(f"{design.name}: {simulation.differing} values are not the reference's")
    return (
        f"{design.name}: {design.title}; {simulation.images} images, all spikes and outputs equal "
        f"to the integer graph's; weights of {weights} {where}; {len(design.assumptions)} of "
        f"{len(design.sources)} numbers of the design are assumptions"
    )


def _sweep(
    console: Console,
    options: argparse.Namespace,
    graph: IntegerGraph,
    design: Design,
    images: Array,
    keys: dict[str, list[Any]],
) -> int:
    import math

    from rich.progress import Progress

    from qsdformer.accelerator.sweep import sweep
    from qsdformer.accelerator.tables import sweep_table, sweep_values, write_rows

    with Progress(transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("sweeping", total=math.prod(map(len, keys.values())))
        points: list[Point] = sweep(graph, design, images, keys, lambda: progress.advance(task))
    console.print(sweep_table(points))
    console.print(
        "*: no other variant has as many frames/s, as little energy and as little memory",
        highlight=False,
    )
    rows = sweep_values(points)
    if options.csv:
        write_rows(options.csv, rows)
    if options.json:
        write_json(options.json, rows)
    return 0
