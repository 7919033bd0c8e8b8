"""`qsd ablate RECIPE`."""

from __future__ import annotations

import argparse
from pathlib import Path

from rich.console import Console

from qsdformer.commands.arguments import positive
from qsdformer.commands.recipe_keys import REACHES_TEACHERS, add_recipe_keys, given_keys
from qsdformer.errors import UserError
from qsdformer.process import ALLOCATOR, RESTARTED
from qsdformer.terminal import say


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `qsd ablate`."""
    parser.add_argument("recipe", metavar="RECIPE", help="a YAML grid, or a packaged one's name")
    parser.add_argument(
        "--jobs",
        type=positive,
        default=1,
        metavar="N",
        help="cells side by side, of one thread each if more than one (default: 1)",
    )
    parser.add_argument(
        "--only",
        action="append",
        default=[],
        metavar="VARIANT",
        help="run this variant, and those it needs; may be repeated (default: all)",
    )
    parser.add_argument(
        "--seeds", type=int, nargs="+", default=[], metavar="N", help="(default: the grid's)"
    )
    parser.add_argument("--cell", nargs=2, metavar=("VARIANT", "SEED"), help=argparse.SUPPRESS)
    add_recipe_keys(parser)
    parser.epilog = f"{REACHES_TEACHERS}\nThe same keys hold for variants that set them as well."


def run(options: argparse.Namespace) -> int:
    """Run what is not finished; results.csv, results.md and results.png are in the output."""
    from qsdformer.experiments import ablation, grid

    keys = given_keys(options)
    output = keys.pop("output", None)
    if "seed" in keys:
        raise UserError("--seed is for one run: an ablation takes --seeds")
    wanted = grid.with_output(grid.load_grid(options.recipe), output, keys)
    console = Console()
    if options.cell is not None:
        ablation.run_cell(wanted, grid.Cell(options.cell[0], int(options.cell[1])), console)
        return 0
    cells = grid.wanted_cells(wanted, options.only, options.seeds)
    command = ablation.cell_command(options.recipe)
    for key, text in {**keys, "output": wanted.output}.items():
        command.append(f"--{key}={text}")
    environment = {**ALLOCATOR, RESTARTED: "1"}
    ablation.run_grid(
        wanted, cells, command, jobs=options.jobs, environment=environment, console=console
    )
    made = [f"results.{kind}" for kind in ("csv", "md", "png")]
    made = [name for name in made if (Path(wanted.output) / name).is_file()]
    say(console, f"results: {wanted.output}/{', '.join(made)}")
    return 0
