"""The one exception type that a user, rather than a programmer, is meant to read."""

from __future__ import annotations


class UserError(ValueError):
    """Bad input: the message is one line saying what is wrong and what to do about it.

    The command line prints the message without a traceback and exits with status 2.
    """
