"""Named files out of a folder or a tar archive, which is never unpacked to disk."""

from __future__ import annotations

import os
import tarfile
import zlib
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from qsdformer.data.base import bad_file
from qsdformer.errors import UserError

# Six times the largest file of the data sets read here; a crafted one may claim anything.
LARGEST = 2**30  # bytes
_TAR_ERRORS = (tarfile.TarError, OSError, EOFError, zlib.error, ValueError)


def read_files(place: Path, names: Collection[str]) -> dict[str, bytes]:
    """The content of each file; `place` is a folder, or an archive that has them in any folder.

    Raises `UserError` naming the file or archive if one is missing, too large or damaged.
    """
    if place.is_file():
        found = _from_archive(place, names)
        missing = sorted(set(names) - set(found))
        if missing:
            raise bad_file(place, f"it lacks {missing[0]} ({len(missing)} such)")
        return found
    return {name: _from_folder(place / name) for name in names}


def file_names(archive: Path) -> set[str]:
    """The names, without folders, of the files in an archive, up to where it is damaged.

    Empty if it is no archive.
    """
    found: set[str] = set()
    try:
        with tarfile.open(archive) as tar:
            for member in tar:
                if member.isfile():
                    found.add(os.path.basename(member.name))
    except _TAR_ERRORS:
        pass
    return found


def _from_folder(path: Path) -> bytes:
    try:
        if not path.is_file():
            raise bad_file(path, "there is no such file")
        if path.stat().st_size > LARGEST:
            raise bad_file(path, "it is far too large")
        return path.read_bytes()
    except OSError as error:
        raise bad_file(path, error.strerror or str(error)) from error


def _from_archive(archive: Path, names: Collection[str]) -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    with _tar_errors(archive), tarfile.open(archive) as tar:
        for member in tar:
            name = os.path.basename(member.name)
            if name not in names or name in found or not member.isfile():
                continue
            if member.size > LARGEST:
                raise bad_file(archive, f"{name} in it is far too large")
            file = tar.extractfile(member)
            assert file is not None  # it is for regular files
            content = file.read()
            if len(content) != member.size:
                raise bad_file(archive, f"it ends within {name}")
            found[name] = content
            if len(found) == len(names):
                break
    return found


@contextmanager
def _tar_errors(archive: Path) -> Iterator[None]:
    try:
        yield
    except UserError:
        raise
    except _TAR_ERRORS as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise bad_file(archive, f"truncated or damaged ({reason})") from error
