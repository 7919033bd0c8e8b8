"""The run folder: one run at a time uses it, and what is in it decides where that run begins."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qsdformer.errors import UserError
from qsdformer.files import is_partial, remove_partial
from qsdformer.models import checkpoint
from qsdformer.recipes.derived import FROM_TEACHER
from qsdformer.recipes.recipe import Recipe
from qsdformer.training.checkpointing import BEST, LAST

TEACHER = "teacher"  # folder, in the student's, of a teacher that had to be trained
RESULT = "result.json"
LOCK = ".lock"
# What a run writes before its first checkpoint: worth nothing without one.
BEGINNINGS = ("recipe.yaml", "metrics.csv", "tensorboard")
# What is left of a finished one: its result, and a grid's row of it.
SPENT = (RESULT, "row.json")
# What a run writes, and all that --overwrite may remove.
RUN_FILES = (BEST, LAST, RESULT, *BEGINNINGS)

_held: set[int] = set()  # descriptors of this process's locks


@dataclass(frozen=True)
class Point:
    """A checkpoint that a run goes on from, and what is in it."""

    path: Path
    content: dict[str, Any]

    @property
    def header(self) -> dict[str, Any]:
        """Our own part of the checkpoint."""
        return self.content[checkpoint.KEY]

    def drop_tensors(self) -> None:
        """Let go of weights and optimiser state, which Lightning reads from the file again."""
        for name in ("state_dict", "optimizer_states"):
            self.content.pop(name, None)

    def is_elsewhere(self, folder: Path) -> bool:
        """Whether it lies in another run's folder."""
        return self.path.parent.resolve() != folder.resolve()

    @property
    def epochs(self) -> int:
        """Epochs that were trained to their end; one that was left in the middle does not count."""
        try:
            progress = self.content["loops"]["fit_loop"]["epoch_progress"]["current"]
            return int(progress["processed"])
        except (KeyError, TypeError):
            return int(self.header["extra"].get("epoch", 0))

    @property
    def in_epoch(self) -> bool:
        """Whether it was left within an epoch."""
        try:
            loop = self.content["loops"]["fit_loop"]
            progress, batches = loop["epoch_progress"]["current"], loop["epoch_loop.batch_progress"]
            return bool(
                progress["started"] > progress["processed"] and not batches["is_last_batch"]
            )
        except (KeyError, TypeError):
            return False


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the run folder, made if missing, for this process alone.

    The lock goes with the process, however it ends. Files that a killed run was writing are
    removed at the start, and folders made here at the end if nothing came into them. Raises
    `UserError` if another run holds the folder or it cannot be used.
    """
    made = _make(folder)
    try:
        descriptor = _lock(folder / LOCK)
        try:
            remove_partial(folder)
            yield
        finally:
            _unlock(folder / LOCK, descriptor)
    finally:
        with contextlib.suppress(OSError):
            for path in made:
                path.rmdir()


def _make(folder: Path) -> list[Path]:
    """Make a folder; returns it and the parents that were missing, innermost first."""
    missing = [path for path in (folder, *folder.parents) if not os.path.lexists(path)]
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _cannot_use(folder, error) from error
    return missing


def _lock(path: Path) -> int | None:
    """An open descriptor that holds the lock; None where the file system has no locks."""
    while True:
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            raise _cannot_use(path.parent, error) from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(descriptor)
            raise UserError(
                f"another run is at work in {path.parent}: wait for its end, or choose another "
                "folder with --output"
            ) from error
        except OSError:
            os.close(descriptor)
            return None
        if os.fstat(descriptor).st_nlink:
            _held.add(descriptor)
            return descriptor
        os.close(descriptor)  # its holder removed the file while we waited to open it


def _unlock(path: Path, descriptor: int | None) -> None:
    path.unlink(missing_ok=True)
    if descriptor is not None:
        _held.discard(descriptor)
        os.close(descriptor)


def _forget_locks() -> None:
    """In a forked child, such as a loader process that outlives a killed run by seconds."""
    for descriptor in _held:
        os.close(descriptor)
    _held.clear()


os.register_at_fork(after_in_child=_forget_locks)


def going_on(folder: Path, resume: str | os.PathLike[str] | bool) -> Point | None:
    """Where a run goes on: at the checkpoint given, or at the folder's own; None: from the start.

    The folder's own is last.ckpt, or best.ckpt of a run that ended before the first last.ckpt.
    """
    if resume is False:
        return None
    own = [folder / LAST, folder / BEST]
    paths = own if resume is True else [Path(resume)]
    path = next((path for path in paths if path.exists()), None)
    if path is None and resume is not True:
        raise UserError(f"nothing to resume: there is no {paths[0]}; start over with --overwrite")
    return None if path is None else Point(path, checkpoint.read(path))


def check_free(folder: Path, *, spent: bool = False) -> None:
    """`UserError` for a folder with anything but the beginnings of a run without a checkpoint.

    What is left of a finished run whose checkpoints were removed is in the way as well, unless it
    is `spent`: known to be of the run that starts.
    """
    try:
        names = {path.name for path in folder.iterdir() if not is_partial(path)}
    except OSError as error:
        raise _cannot_use(folder, error) from error
    if names & {BEST, LAST}:
        way = "go on with --resume, start over with --overwrite"
    else:
        way = "start over with --overwrite"
    if names - {*BEGINNINGS, TEACHER, LOCK, *(SPENT if spent else ())}:
        raise UserError(
            f"the run folder {folder} is not empty: {way}, or choose another with --output"
        )


def check_beginnings(recipe: Recipe, folder: Path) -> None:
    """`UserError` unless the checkpoints that a new run begins with or learns from will be there.

    Those of the run folder will not: it is emptied first.
    """
    distill, start = recipe.distill, recipe.model.start_from
    if start not in (None, FROM_TEACHER) and not Path(start).exists():
        raise UserError(f"model.start_from: no checkpoint {start}: check the path")
    used = {"model.start_from": start, "distill.teacher": distill and distill.teacher}
    own = [folder / name for name in RUN_FILES if (folder / name).is_file()]
    for key, given in used.items():
        if given and Path(given).is_file() and any(path.samefile(given) for path in own):
            raise UserError(
                f"{key}: {given} is of the run folder {folder}, which --overwrite would empty: "
                "choose another with --output"
            )


def clear(folder: Path) -> None:
    """Remove a run's files, and no others."""
    try:
        for name in RUN_FILES:
            path = folder / name
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
    except OSError as error:
        raise _cannot_use(folder, error) from error


def _cannot_use(folder: Path, error: OSError) -> UserError:
    reason = error.strerror or str(error)
    return UserError(f"cannot write to {folder}: {reason}; choose another folder with --output")
