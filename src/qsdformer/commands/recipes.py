"""`qsd recipes`."""

from __future__ import annotations

import argparse

from qsdformer.recipes import first_line, packaged_grids, packaged_recipes


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """No arguments."""


def run(options: argparse.Namespace) -> int:
    """Print each packaged recipe's name and first line, those for `qsd ablate` last."""
    files = {**packaged_recipes(), **packaged_grids()}
    width = max(map(len, files))
    for name, file in files.items():
        print(f"{name:{width}}  {first_line(file)}")
    return 0
