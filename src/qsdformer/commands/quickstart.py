"""`qsd quickstart`."""

from __future__ import annotations

import argparse

from qsdformer.commands.arguments import positive
from qsdformer.files import at_home


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `qsd quickstart`."""
    parser.add_argument(
        "--output",
        default="runs/quickstart",
        metavar="DIR",
        help="where everything is written (default: runs/quickstart)",
    )
    parser.add_argument(
        "--epochs", type=positive, metavar="N", help="of each model (default: the recipes')"
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="(default: 0)")


def run(options: argparse.Namespace) -> int:
    """Train both, compare them, save the results."""
    from qsdformer.experiments.quickstart import run as quickstart

    quickstart(at_home(options.output), seed=options.seed, epochs=options.epochs)
    return 0
