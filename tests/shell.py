"""Lines of a page, run as a reader would paste them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path


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
