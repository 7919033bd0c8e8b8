"""Errors: the one type that a user is meant to read, and the check that configurations share."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """Bad input: the message is one line saying what is wrong and what to do about it.

    The command line prints the message without a traceback and exits with status 2.
    """


def require(config: object, name: str, ok: bool, allowed: str) -> None:
    """ValueError saying what field `name` of `config` holds and what is allowed, unless `ok`."""
    if not ok:
        raise ValueError(f"{name}={getattr(config, name)!r}: must be {allowed}")


def did_you_mean(given: str, names: Iterable[str], prefix: str = "", cutoff: float = 0.5) -> str:
    """A question for the nearest of `names`, which are shown with `prefix`; empty if none is near.

    `cutoff` is the least likeness, in [0, 1].
    """
    close = difflib.get_close_matches(given, list(names), n=1, cutoff=cutoff)
    return f"did you mean {prefix}{close[0]}?" if close else ""


def one_line(error: object, longest: int | None = 200) -> str:
    """What an error or a value says, on one line and cut to `longest` characters."""
    return " ".join(str(error).split())[:longest]


def shown_value(value: object) -> str:
    """A value of a file that may be forged, briefly: a list in it could stand for millions."""
    plain = value is None or isinstance(value, (int, float, str))
    return one_line(repr(value), 40) if plain else type(value).__name__


def is_out_of_memory(error: BaseException) -> bool:
    """Whether Python, NumPy or PyTorch, on the CPU or a GPU, could not get the memory it wanted."""
    text = str(error)
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or ("DefaultCPUAllocator" in text and "memory" in text)
    )
