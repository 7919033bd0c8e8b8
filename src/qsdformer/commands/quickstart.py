"""`qsd quickstart`."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from qsdformer.commands.arguments import positive


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

    quickstart(Path(os.path.expanduser(options.output)), seed=options.seed, epochs=options.epochs)
    return 0
