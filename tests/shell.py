"""Lines of a page, run as a reader would paste them, and scripts of benchmarks/."""

from __future__ import annotations

import contextlib
import io
import os
import runpy
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple
from unittest import mock

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


def pasted(lines: str, folder: Path) -> str:
    """What lines of shell print in `folder`, with `qsd` and `python` of this environment.

    The first line that fails ends them and fails the test.
    """
    paths = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    done = subprocess.run(
        ["bash", "-e", "-c", lines],
        cwd=folder,
        env={**os.environ, "PATH": paths},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


class Done(NamedTuple):
    """How a script has ended, and what it has printed."""

    code: object  # its status, or the message that it ended with
    stdout: str
    stderr: str


def benchmark(name: str, *arguments: object) -> Done:
    """Run a script of benchmarks/ in this process, which has imported PyTorch already."""
    out, err, code = io.StringIO(), io.StringIO(), None
    with (
        mock.patch.object(sys, "argv", [name, *map(str, arguments)]),
        mock.patch.object(sys, "path", [str(BENCHMARKS), *sys.path]),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        try:
            runpy.run_path(str(BENCHMARKS / name), run_name="__main__")
        except SystemExit as end:
            code = end.code
    return Done(code or 0, out.getvalue(), err.getvalue())
