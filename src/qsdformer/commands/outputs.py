"""Outputs never take the place of what a command reads, nor of one another."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TextIO

from qsdformer.errors import UserError
from qsdformer.files import check_writable, is_special

READ = ("*.ckpt", "*.yaml", "metrics.csv", "result.json")  # of a run folder, by commands


def check_outputs(
    outputs: Sequence[str | None], inputs: Iterable[str], data: Iterable[Path] = ()
) -> None:
    """`UserError` if a file to be written, None for none, is one of `inputs` or of `data`.

    An input may be a run folder, whose own files count. Also for two outputs that are one file,
    and for one that cannot be written: that is said before the work and not after it.
    """
    given = [Path(output) for output in outputs if output is not None]
    for number, output in enumerate(given):
        check_writable(output)
        if any(one.absolute() == output.absolute() or _same(one, output) for one in given[:number]):
            raise UserError(f"{output} is given for two outputs: choose another for one of them")
    if not any(output.exists() for output in given):
        return
    read = [*(file for path in map(Path, inputs) for file in _files(path)), *data]
    for output in given:
        if any(_same(output, file) for file in read):
            raise UserError(f"{output} is what is read and would be overwritten: choose another")


def beside(output: str) -> TextIO:
    """Where to say something about an output just written: not into it, nor where a pipe reads."""
    written = os.stat(output)
    try:
        shown = os.path.samestat(written, os.fstat(sys.stdout.fileno()))
    except (OSError, ValueError, AttributeError):  # no file at all, or closed
        shown = False
    return sys.stderr if shown or is_special(output) else sys.stdout


def _files(path: Path) -> Iterator[Path]:
    yield path
    for pattern in READ:
        yield from path.glob(pattern)


def _same(one: Path, other: Path) -> bool:
    try:
        return one.samefile(other)
    except OSError:  # one of them is not there
        return False
