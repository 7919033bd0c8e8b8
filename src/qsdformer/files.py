"""Writing files so that a crash, a full disk or a missing permission never leaves half of one."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from qsdformer.errors import UserError

PARTIAL = ".partial"  # the suffix of a file that is being written
# Every artifact has these bytes after the 8 of its header's length.
ARTIFACT_PREFIX = b'{"__metadata__":{"sha256":"'
ARTIFACT_PREFIX_AT = 8
ADVICE = {
    errno.ENOSPC: "free some space or choose another folder",
    errno.EDQUOT: "free some space or choose another folder",
    errno.EISDIR: "name a file in it",
    errno.ENAMETOOLONG: "choose a shorter name",
}


@contextlib.contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path beside `path` that takes its place once the block has succeeded.

    The temporary file is removed if the block fails. An operating-system error while writing
    becomes a `UserError` that names `path`; what stood there before is left as it was. A link
    stays one: the file that it leads to is written. A device or pipe is written to.
    """
    target = Path(path)
    special = _is_special(target)
    if not special:
        target = Path(os.path.realpath(target))
    try:
        if not special:
            target.parent.mkdir(parents=True, exist_ok=True)
        folder = None if special else target.parent
        handle, name = tempfile.mkstemp(PARTIAL, f".{target.name}.", folder)
        os.close(handle)
    except OSError as error:
        raise _cannot_write(Path(path), error) from error
    temporary = Path(name)
    try:
        yield temporary
        if special:
            with temporary.open("rb") as source, target.open("wb", buffering=0) as sink:
                shutil.copyfileobj(source, sink)
            return
        temporary.chmod(0o666 & ~_umask())
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(target)
    except OSError as error:
        raise _cannot_write(Path(path), error) from error
    finally:
        temporary.unlink(missing_ok=True)


def check_writable(path: str | os.PathLike[str]) -> None:
    """`UserError` if `path` could not be written now; nothing is left or made."""
    target = Path(path)
    try:
        if target.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        if _is_special(target):
            if not os.access(target, os.W_OK):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
            return
        target = Path(os.path.realpath(target))
        folder = target.parent
        while not os.path.lexists(folder):
            folder = folder.parent
        with tempfile.NamedTemporaryFile(suffix=PARTIAL, prefix=f".{target.name}.", dir=folder):
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
    """ ".qsd" or ".onnx" for a file that begins as those of `qsd export` do, whatever its name.

    `UserError` for a device or pipe, which cannot be read twice.
    """
    if _is_special(Path(path)):
        raise UserError(f"{path} is no file but a device or a pipe: give a file")
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
    advice = ADVICE.get(error.errno or 0, "choose another folder")
    return UserError(f"cannot write {path}: {reason}; {advice}")


def _is_special(path: Path) -> bool:
    """Whether there is something at `path` that is neither a file nor a folder."""
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError):  # not there, or no possible name
        return False
    return not (stat.S_ISREG(mode) or stat.S_ISDIR(mode))


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
