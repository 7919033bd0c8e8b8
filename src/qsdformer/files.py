"""Writing files so that a crash, a full disk or a missing permission never leaves half of one."""

from __future__ import annotations

import contextlib
import csv
import errno
import io
import json
import os
import shutil
import stat
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
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
def atomic_path(
    path: str | os.PathLike[str], advice: str = "choose another folder"
) -> Iterator[Path]:
    """Yield a temporary path beside `path` that takes its place once the block has succeeded.

    The temporary file is removed if the block fails. An operating-system error while writing
    becomes a `UserError` that names `path` and ends with `advice`, unless its reason has another;
    what stood there before is left as it was. A link stays one: the file that it leads to is
    written. A device or pipe is written to.
    """
    finish, target = _take_place, Path(os.path.realpath(path))
    folder = target.parent
    if is_special(path):
        finish, target, folder = _copy, Path(path), Path(tempfile.gettempdir())
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(PARTIAL, f".{target.name}.", folder)
        os.close(handle)
    except OSError as error:
        raise _cannot_write(path, error, advice) from error
    temporary = Path(name)
    try:
        yield temporary
        finish(temporary, target)
    except OSError as error:
        raise _cannot_write(path, error, advice) from error
    finally:
        temporary.unlink(missing_ok=True)


def check_writable(path: str | os.PathLike[str]) -> None:
    """`UserError` if `path` could not be written now; nothing is left or made."""
    target = Path(path)
    try:
        if target.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        if is_special(target):
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
        raise _cannot_write(path, error) from error


def at_home(path: str | os.PathLike[str]) -> Path:
    """A path in which ~ is the home folder; ~name of nobody is a folder called so."""
    return Path(os.path.expanduser(path))


def is_special(path: str | os.PathLike[str]) -> bool:
    """Whether there is something at `path` that is neither a file nor a folder."""
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError):  # not there, or no possible name
        return False
    return not (stat.S_ISREG(mode) or stat.S_ISDIR(mode))


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


def write_csv(
    path: str | os.PathLike[str],
    columns: Sequence[str],
    rows: Iterable[Mapping[str, Any]],
    *,
    line_end: str = "\r\n",
) -> None:
    """Write rows, by column, to `path` as CSV, whole or not at all."""
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator=line_end)
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, text.getvalue())


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    """Write `value` to `path` as indented JSON, whole or not at all."""
    write_text(path, json.dumps(value, indent=2) + "\n")


def exported_kind(path: str | os.PathLike[str]) -> str | None:
    """ ".qsd" or ".onnx" for a file that begins as those of `qsd export` do, whatever its name.

    `UserError` for a device or pipe, which cannot be read twice.
    """
    if is_special(path):
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


def _take_place(temporary: Path, target: Path) -> None:
    temporary.chmod(0o666 & ~_umask())
    with temporary.open("rb+") as file:
        os.fsync(file.fileno())
    temporary.replace(target)


def _copy(temporary: Path, target: Path) -> None:
    with temporary.open("rb") as source, target.open("wb", buffering=0) as sink:
        shutil.copyfileobj(source, sink)


def _cannot_write(
    path: str | os.PathLike[str], error: OSError, advice: str = "choose another folder"
) -> UserError:
    reason = error.strerror or str(error)
    advice = ADVICE.get(error.errno or 0, advice)
    return UserError(f"cannot write {os.fspath(path)}: {reason}; {advice}")


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
