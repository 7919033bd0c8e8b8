"""`qsd recipes`."""

from __future__ import annotations

import argparse

from qsdformer.recipes import first_line, packaged_grids, packaged_recipes


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """No arguments."""


def run(options: argparse.Namespace) -> int:
    """Print each packaged recipe's name and first line, and then those of the grids."""
    recipes, grids = packaged_recipes(), packaged_grids()
    width = max(map(len, (*recipes, *grids)))
    for heading, files in (("qsd train RECIPE", recipes), ("qsd ablate GRID", grids)):
        print(f"{heading}:")
        for name, file in files.items():
            print(f"  {name:{width}}  {first_line(file)}")
    return 0
