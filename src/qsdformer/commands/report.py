"""`qsd report RUN...`."""

from __future__ import annotations

import argparse

from qsdformer.analysis.report.page import build
from qsdformer.commands.arguments import add_device_argument, positive
from qsdformer.commands.recipe_keys import add_recipe_keys, given_keys
from qsdformer.devices import pick_device
from qsdformer.files import write_text


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `qsd report`."""
    parser.add_argument(
        "runs",
        metavar="RUN",
        nargs="+",
        help="run folders or checkpoints; the first in detail, the others beside it",
    )
    parser.add_argument(
        "--output", default="report.html", metavar="FILE", help="(default: report.html)"
    )
    parser.add_argument(
        "--limit", type=positive, metavar="N", help="measure on the first N images (default: all)"
    )
    add_device_argument(parser)
    add_recipe_keys(parser, section="data")


def run(options: argparse.Namespace) -> int:
    """Measure the runs and write the page."""
    keys, device = given_keys(options), pick_device(options.device)
    text = build(options.runs, keys, options.limit, device)
    write_text(options.output, text)
    print(f"{options.output}: {len(text) / 1024:,.0f} KiB; open it in a browser")
    return 0
