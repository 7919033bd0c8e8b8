"""`qsd simulate MODEL`."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from qsdformer.accelerator.design import designs, published_names
from qsdformer.commands.arguments import check_exported, positive
from qsdformer.commands.outputs import check_outputs
from qsdformer.commands.recipe_keys import add_recipe_keys, given_keys
from qsdformer.errors import UserError
from qsdformer.files import write_json
from qsdformer.terminal import say, table_console

if TYPE_CHECKING:
    from rich.console import Console

    from qsdformer.accelerator.design import Design
    from qsdformer.accelerator.ledger import Line
    from qsdformer.accelerator.simulate import Simulation
    from qsdformer.accelerator.sweep import Point
    from qsdformer.data import DataModule
    from qsdformer.graph.integer import IntegerGraph
    from qsdformer.graph.ops import Array
    from qsdformer.tasks.deployment import Deployable


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
        help=f"one of {', '.join(designs())}, a YAML file, or as published "
        f"{', '.join(published_names())}; may be repeated, the first in detail "
        "(default: sdt-sparse and dense-int)",
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
        help="of a checkpoint: width of membrane potentials (default: 16, as in qsd analyze)",
    )
    parser.add_argument(
        "--sweep",
        metavar="KEYS",
        help="vary the first design, such as lanes=32|64,encoding=address|address+count,"
        "buffers=0.5|1 (default: off)",
    )
    parser.add_argument(
        "--ledger",
        action="store_true",
        help="of a checkpoint: also show the first design's traffic beside that of the memory "
        "cost model of qsd analyze (default: off)",
    )
    parser.add_argument(
        "--csv",
        metavar="FILE",
        help="write a row for each stage; of published designs alone, for each design "
        "(default: off)",
    )
    parser.add_argument("--json", metavar="FILE", help="write everything (default: off)")
    add_recipe_keys(parser, section="data")


def run(options: argparse.Namespace) -> int:
    """Simulate, print the tables, write the files asked for."""

    from qsdformer.accelerator.design import load_design
    from qsdformer.accelerator.simulate import simulate
    from qsdformer.accelerator.sweep import parse_sweep

    names = options.design or ["sdt-sparse", "dense-int"]
    check_outputs([options.csv, options.json], [options.model, *names])
    published = [name for name in names if name in published_names()]
    chosen = [load_design(name) for name in names if name not in published]
    if not chosen and (options.sweep or options.ledger):
        raise UserError(
            f"--sweep and --ledger: {names[0]} is a formula and has no units to look at"
        )
    if options.sweep and (options.ledger or len(options.design or ()) > 1):
        raise UserError(
            "--sweep shows the variants of one design and nothing else: leave out --ledger and "
            "every --design but one"
        )
    keys = parse_sweep(options.sweep, chosen[0]) if options.sweep else None
    graph, images, ledger, left_out = _load(options)
    console = table_console()
    if left_out:
        lacking = ", ".join(left_out)
        say(console, f"simulated is {options.model} without its {lacking}")
    if keys is not None:
        return _sweep(console, options, graph, chosen[0], images, keys)
    simulations = []
    for design in chosen:
        with console.status(f"simulating {design.name}"):
            simulations.append(simulate(graph, design, images))
    if simulations:
        _print(console, simulations)
    estimates = _estimates(console, published, graph, images) if published else []
    if ledger is not None:
        from qsdformer.accelerator.tables import ledger_table

        console.print(ledger_table(ledger(simulations[0]), chosen[0].name))
    if options.csv:
        _write_csv(console, options.csv, simulations, estimates)
    if options.json:
        from qsdformer.accelerator.tables import simulation_values

        values = [*map(simulation_values, simulations), *estimates]
        write_json(
            options.json,
            [{**each, "left_out": [*left_out, *each.get("left_out", ())]} for each in values],
        )
    return 0


def _load(
    options: argparse.Namespace,
) -> tuple[IntegerGraph, Array, Callable[[Simulation], list[Line]] | None, list[str]]:
    """The integer graph, pixels for it, what compares with the ledger, if asked for.

    And what of the network is not in the graph, in words.
    """
    import numpy as np

    from qsdformer.commands.exported_data import data_for, pixel_batches
    from qsdformer.data.preprocessing import Preprocessing
    from qsdformer.graph.integer import IntegerGraph
    from qsdformer.graph.lowering import lower
    from qsdformer.runtimes.exported import load_exported, task_of
    from qsdformer.tasks.deployment import deployable, parts_beside
    from qsdformer.tasks.stored import load_with_data

    keys = given_keys(options)
    graph, compare = load_exported(options.model), None
    if graph is not None:
        if options.ledger:
            raise UserError(f"--ledger is of a checkpoint, and {options.model} is none")
        check_exported(options.model, membrane_bits=options.membrane_bits)
    if graph is None:
        loaded, data = load_with_data(options.model, keys, options.images)
        found = deployable(loaded.model, loaded.info or data.info)
        pre, task = Preprocessing.of(data.info, found.multiple), loaded.task
        if options.ledger:
            compare = _comparison(options.model, found, data, options.images, task)
        bits = options.membrane_bits or 16
        graph = lower(found.part, data.info, membrane_bits=bits, multiple=found.multiple)
        left_out = parts_beside(found.heads, found.left_out)
    elif not isinstance(graph, IntegerGraph):
        raise UserError(f"{options.model} is an ONNX file: give the checkpoint or a .qsd file")
    else:
        data = data_for(options.model, graph, keys, options.images)
        pre, task = graph.preprocessing, task_of(graph)
        left_out = parts_beside(graph.heads)
    batches = [pixels.numpy() for pixels, _ in pixel_batches(data, options.images, pre, task)]
    if not batches:
        raise UserError("there are no images to simulate")
    return graph, np.concatenate(batches), compare, left_out


def _comparison(
    name: str, found: Deployable, data: DataModule, images: int, task: str
) -> Callable[[Simulation], list[Line]]:
    """What puts a simulation beside the ledger of a model on the same images."""
    from qsdformer.accelerator.ledger import traffic_lines
    from qsdformer.analysis.ledger import make_ledger
    from qsdformer.analysis.measure import measure
    from qsdformer.data.preprocessing import Preprocessing
    from qsdformer.tasks.evaluation import first_images
    from qsdformer.tasks.network_images import network_batches

    model, batches = found.part, data.val_dataloader()
    pre = Preprocessing.of(data.info, found.multiple)
    if task == "classification":
        shown = first_images(batches, images)
    else:
        shown = network_batches(batches, images, pre, task)
    measured = measure(model, shown)
    ledger = make_ledger(name, model, measured)
    return lambda simulation: traffic_lines(ledger, model, measured, simulation)


def _print(console: Console, simulations: Sequence[Simulation]) -> None:
    from qsdformer.accelerator.tables import design_table, stage_table, traffic_table, unit_table

    first = simulations[0]
    for table in (stage_table(first), unit_table(first), traffic_table(first)):
        console.print(table)
    console.print(design_table(simulations))
    for simulation in simulations:
        say(console, _notes(simulation))


def _estimates(
    console: Console, names: Sequence[str], graph: IntegerGraph, images: Array
) -> list[dict[str, Any]]:
    """Print what published designs take, and give it as plain values."""
    from qsdformer.accelerator.published.design import estimate, load_published
    from qsdformer.accelerator.published.workload import graph_workload
    from qsdformer.accelerator.tables import estimate_table, estimate_values

    with console.status("estimating published designs"):
        batch = images.shape[-4]
        loads = [graph_workload(graph, images[..., i : i + 1, :, :, :]) for i in range(batch)]
        found = [[estimate(load_published(name), load) for load in loads] for name in names]
    console.print(estimate_table(found))
    if loads[0].left_out:
        left = ", ".join(loads[0].left_out)
        text = "published designs leave out layers on real values or sums, or transposed"
        say(console, f"{text}: {left}")
    return [estimate_values(each) for each in found]


def _write_csv(
    console: Console,
    path: str,
    simulations: Sequence[Simulation],
    estimates: Sequence[dict[str, Any]],
) -> None:
    """The stages of simulations as rows, or where there is none the estimates."""
    from qsdformer.accelerator.tables import write_csv, write_rows

    if not simulations:
        rows = [{**row, "left_out": ", ".join(row["left_out"])} for row in estimates]
        write_rows(path, rows)
        return
    write_csv(path, simulations)
    if estimates:
        left = ", ".join(row["design"] for row in estimates)
        say(console, f"{path} has rows of stages, and none of {left}: see --json")


def _notes(simulation: Simulation) -> str:
    from qsdformer.accelerator.tables import bytes_text

    design, weights = simulation.design, bytes_text(simulation.weight_bits)
    where = "stay on the chip" if simulation.resident else "come from DRAM for every image"
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
    say(console, "*: no other variant is better in frames/s, energy or memory and worse in none")
    rows = sweep_values(points)
    if options.csv:
        write_rows(options.csv, rows)
    if options.json:
        write_json(options.json, rows)
    return 0
