"""`qsd report RUN...`."""

from __future__ import annotations

import argparse

from qsdformer.commands.arguments import add_device_argument, add_limit
from qsdformer.commands.recipe_keys import add_recipe_keys, given_keys
from qsdformer.files import write_text


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `qsd report`."""
    parser.add_argument(
        "runs",
        metavar="RUN",
        nargs="+",
        help="run folders (their last.ckpt) or checkpoints; the first in detail, the others "
        "beside it",
    )
    parser.add_argument(
        "--output", default="report.html", metavar="FILE", help="(default: report.html)"
    )
    add_limit(parser, "measure")
    add_device_argument(parser)
    add_recipe_keys(parser, section="data")


def run(options: argparse.Namespace) -> int:
    """Measure the runs and write the page."""
    from qsdformer.analysis.report.page import build
    from qsdformer.devices import pick_device

    text = build(options.runs, given_keys(options), options.limit, pick_device(options.device))
    write_text(options.output, text)
    print(f"{options.output}: {len(text) / 1024:,.0f} KiB; open it in a browser")
    return 0
