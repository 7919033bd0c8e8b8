"""Downloading a dataset so that no half of a file is ever found."""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from qsdformer.errors import UserError, one_line


def download_into(
    folder: Path, title: str, fetch: Callable[[Path], list[Path]], otherwise: str
) -> Path:
    """Move the files that `fetch` puts into a temporary folder and returns to `folder`.

    A failure is a `UserError` that names the data set by `title` and ends in what to do
    `otherwise`. Returns `folder`.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with (
            tempfile.TemporaryDirectory(prefix=".download-", dir=folder) as temporary,
            contextlib.redirect_stdout(sys.stderr),  # torchvision prints the mirrors it tries
        ):
            for path in fetch(Path(temporary)):
                os.replace(path, folder / path.name)
    except (OSError, RuntimeError) as error:
        raise UserError(
            f"cannot download {title} into {folder}: {one_line(error, None)}; check the network, "
            f"{otherwise}"
        ) from error
    return folder


def cache_folder(name: str) -> Path:
    """Where a data set is downloaded to if no folder is given."""
    return Path("~/.cache/qsdformer").expanduser() / name
