"""`qsd report RUN...`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING

from qsdformer.commands.arguments import add_device_argument, add_limit
from qsdformer.commands.outputs import beside, check_outputs
from qsdformer.commands.recipe_keys import add_recipe_keys, given_keys
from qsdformer.files import write_text

if TYPE_CHECKING:
    from qsdformer.accelerator.design import Design
    from qsdformer.analysis.report.collect import Run


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
    parser.add_argument(
        "--design",
        action="append",
        metavar="NAME",
        help="simulate the first run on an accelerator, as qsd simulate does; may be repeated "
        "(default: none)",
    )
    add_device_argument(parser)
    add_recipe_keys(parser, section="data")


def run(options: argparse.Namespace) -> int:
    """Measure the runs and write the page."""
    from qsdformer.accelerator.design import load_design
    from qsdformer.analysis.report.page import build
    from qsdformer.devices import pick_device

    check_outputs([options.output], [*options.runs, *(options.design or ())])
    designs = [load_design(name) for name in options.design or ()]

    def simulated(run: Run) -> str:
        return _simulated(run, designs) if designs else ""

    device = pick_device(options.device)
    text = build(options.runs, given_keys(options), options.limit, device, simulated)
    write_text(options.output, text)
    line = f"{options.output}: {len(text) / 1024:,.0f} KiB; open it in a browser"
    print(line, file=beside(options.output))
    return 0


def _simulated(run: Run, designs: Sequence[Design]) -> str:
    """The section about the designs, on the first evaluation images of the run."""
    from qsdformer.accelerator.report import accelerator_section
    from qsdformer.accelerator.simulate import simulate
    from qsdformer.analysis.report.collect import SAMPLES, samples
    from qsdformer.graph.lowering import lower
    from qsdformer.runtimes.executors import to_pixels
    from qsdformer.tasks.deployment import parts_beside

    subject = run.subject
    multiple = subject.found.multiple
    graph = lower(subject.model, subject.data.info, membrane_bits=16, multiple=multiple)
    images, _ = samples(subject.batches())
    pixels = to_pixels(images[:SAMPLES], subject.preprocessing)
    lacking = parts_beside(subject.found.heads, subject.found.left_out)
    return accelerator_section([simulate(graph, design, pixels) for design in designs], lacking)
