"""The recipes that come with the package, one YAML file each; the first line says what it is."""

from __future__ import annotations

from pathlib import Path

FOLDER = Path(__file__).parent
GRID_PREFIX = "ablation"


def packaged_recipes() -> dict[str, Path]:
    """The recipes' files by name."""
    return {name: file for name, file in _files().items() if not name.startswith(GRID_PREFIX)}


def packaged_grids() -> dict[str, Path]:
    """The files of the ablations that come with the package, by name."""
    return {name: file for name, file in _files().items() if name.startswith(GRID_PREFIX)}


def _files() -> dict[str, Path]:
    return {file.stem: file for file in sorted(FOLDER.glob("*.yaml"))}


def first_line(recipe: Path) -> str:
    """What a recipe says of itself in its first line, a comment."""
    with recipe.open(encoding="utf-8") as file:
        return file.readline().strip("# \n")
