"""Writing files so that a crash, a full disk or a missing permission never leaves half of one."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from qsdformer.errors import UserError

PARTIAL = ".partial"  # the suffix of a file that is being written
# Every artifact has these bytes after the 8 of its header's length.
ARTIFACT_PREFIX = b'{"__metadata__":{"sha256":"'
ARTIFACT_PREFIX_AT = 8


@contextlib.contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path beside `path` that takes its place once the block has succeeded.

    The temporary file is removed if the block fails. An operating-system error while writing
    becomes a `UserError` that names `path`; what stood there before is left as it was.
    """
    target = Path(path)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(PARTIAL, f".{target.name}.", target.parent)
        os.close(handle)
    except OSError as error:
        raise _cannot_write(target, error) from error
    temporary = Path(name)
    try:
        yield temporary
        temporary.chmod(0o666 & ~_umask())
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(target)
    except OSError as error:
        raise _cannot_write(target, error) from error
    finally:
        temporary.unlink(missing_ok=True)


def check_writable(path: str | os.PathLike[str]) -> None:
    """`UserError` if `path` could not be written now; nothing is left or made."""
    target = Path(path)
    try:
        if target.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        folder = target.absolute().parent
        while not os.path.lexists(folder):
            folder = folder.parent
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise _cannot_write(target, error) from error


def is_partial(path: Path) -> bool:
    """Whether a file is one that `atomic_path` was writing."""
    return path.name.startswith(".") and path.name.endswith(PARTIAL)


def remove_partial(folder: Path) -> None:
    """Remove what killed processes were writing in `folder`; nobody else may be writing there."""
    for path in folder.iterdir():
        if is_partial(path):
            path.unlink(missing_ok=True)


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write `text` to `path`, whole or not at all."""
    with atomic_path(path) as temporary:
        # File names that are not UTF-8 have no other text than their bytes' numbers.
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    """Write `value` to `path` as indented JSON, whole or not at all."""
    write_text(path, json.dumps(value, indent=2) + "\n")


def exported_kind(path: str | os.PathLike[str]) -> str | None:
    """ ".qsd" or ".onnx" for a file that begins as those of `qsd export` do, whatever its name."""
    try:
        with Path(path).open("rb") as file:
            return kind_of_bytes(file.read(64))
    except OSError:
        return None


def kind_of_bytes(head: bytes) -> str | None:
    """`exported_kind` of a file that begins with `head`, 64 bytes or more."""
    if head[ARTIFACT_PREFIX_AT:].startswith(ARTIFACT_PREFIX):
        return ".qsd"
    return ".onnx" if head.startswith(b"\x08") and b"qsdformer" in head[:16] else None


def _cannot_write(path: Path, error: OSError) -> UserError:
    reason = error.strerror or str(error)
    return UserError(f"cannot write {path}: {reason}; free some space or choose another folder")


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
