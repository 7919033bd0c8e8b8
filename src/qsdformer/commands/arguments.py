"""Argument types shared by commands."""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping, Sequence

from qsdformer.errors import UserError

MOST_THREADS = 256  # of the native engine


def image_size(text: str) -> int | list[int]:
    """A side in pixels, or two as height,width."""
    sides = [positive(side) for side in text.split(",")]
    if len(sides) > 2:
        raise argparse.ArgumentTypeError(f"{text!r}: must be a side, or height,width")
    return sides if len(sides) == 2 else sides[0]


def positive(text: str) -> int:
    """A whole number, at least 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: must be a whole number, at least 1")
    return int(text)


def thread_count(text: str) -> int:
    """A whole number, 1 to 256."""
    if (count := positive(text)) > MOST_THREADS:
        raise argparse.ArgumentTypeError(f"{text!r}: must be at most {MOST_THREADS}")
    return count


def share(text: str) -> float:
    """A number in [0, 1]."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text!r}: must be a number in [0, 1]")
    return value


def add_execution_arguments(parser: argparse.ArgumentParser) -> None:
    """`--batch-size`, None where it is not given, and `--device`.

    For commands that run a model over a dataset.
    """
    parser.add_argument(
        "--batch-size",
        type=positive,
        metavar="N",
        help="images at a time (default: 256, or 16 of those with masks or boxes)",
    )
    add_device_argument(parser)


def check_task(
    options: argparse.Namespace, task: str, of_task: Mapping[str, Sequence[str]]
) -> None:
    """`UserError` for an option given that models of this task do not have.

    `of_task` says of options, by their names, which tasks they are for.
    """
    for name, tasks in of_task.items():
        if getattr(options, name) not in (None, False) and task not in tasks:
            option = f"--{name.replace('_', '-')}"
            raise UserError(f"{option} is for {' and '.join(tasks)} models: leave it out")


def add_device_argument(parser: argparse.ArgumentParser) -> None:
    """`--device`, for `pick_device`."""
    parser.add_argument(
        "--device", default="auto", help="cpu, cuda, ...; auto prefers CUDA (default: auto)"
    )


def add_threads_argument(parser: argparse.ArgumentParser) -> None:
    """`--threads`; None where it is not given."""
    parser.add_argument(
        "--threads",
        type=thread_count,
        metavar="N",
        help="processor threads (default: one for each core; of exported files 16 at most)",
    )


def add_limit(parser: argparse.ArgumentParser, verb: str) -> None:
    """`--limit`, for commands that `verb` on a dataset's images."""
    parser.add_argument(
        "--limit",
        type=positive,
        metavar="N",
        help=f"{verb} on the first N images only (default: all of them)",
    )


def check_exported(path: str, *, device: str = "auto", membrane_bits: int | None = None) -> None:
    """`UserError` for options of checkpoints, given with the exported file at `path`."""
    if device not in ("auto", "cpu"):
        raise UserError(f"--device {device}: exported files run on the CPU; leave it out")
    if membrane_bits is not None:
        raise UserError(
            f"--membrane-bits {membrane_bits}: {path} is exported and has its membranes; leave it "
            "out, or give the checkpoint"
        )
