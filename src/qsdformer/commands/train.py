"""`qsd train RECIPE [--key value ...]`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from qsdformer.commands.recipe_keys import REACHES_TEACHERS, add_recipe_keys, given_keys
from qsdformer.errors import UserError
from qsdformer.recipes.recipe import load_recipe


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `qsd train`."""
    parser.usage = "qsd train RECIPE [--key value ...] [--resume [CKPT]] [--overwrite]"
    parser.add_argument("recipe", metavar="RECIPE", help="a YAML file, or a name of `qsd recipes`")
    parser.add_argument(
        "--resume",
        nargs="?",
        const=True,
        default=False,
        metavar="CKPT",
        help="go on from CKPT, or where the run in the run folder has come to: a finished one is "
        "left as it is, one without a checkpoint starts (default: start afresh)",
    )
    parser.add_argument(
        "--overwrite",
        action="store_true",
        help="remove an earlier run's files from the run folder (default: refuse to start)",
    )
    parser.set_defaults(show_values_of=add_recipe_keys(parser))  # for RECIPE --help
    parser.epilog = REACHES_TEACHERS


def run(options: argparse.Namespace) -> int:
    """Train; the checkpoints, metrics.csv and TensorBoard logs are in the run folder."""
    recipe = load_recipe(options.recipe, given_keys(options))
    if options.overwrite and options.resume is not False:
        raise UserError("give one of --resume and --overwrite, not both")
    from qsdformer.training import train
    from qsdformer.training.checkpointing import LAST
    from qsdformer.training.run import is_worker

    try:
        train(recipe, resume=options.resume, overwrite=options.overwrite)
    except KeyboardInterrupt:
        last = Path(recipe.output) / LAST
        if last.exists() and not is_worker(recipe):
            print(f"{last} is that of the last whole epoch; go on with --resume", file=sys.stderr)
        raise
    return 0
