"""A grid as declared: variants and seeds over one recipe, and the recipe of each cell."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qsdformer.errors import UserError
from qsdformer.parsing import load_yaml, one_of, parse_section
from qsdformer.recipes import packaged_grids
from qsdformer.recipes.derived import (
    incidental,
    reaches_teacher,
    with_start_shape,
    with_teacher_keys,
)
from qsdformer.recipes.reading import nearby, read_named, recipe_values, refuse_idle, with_home
from qsdformer.recipes.recipe import (
    Recipe,
    given_value,
    parse_recipe,
    resolve_key,
    with_values,
)

DISTILL = "distill."


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One line of an ablation: what it changes in the grid's recipe, and whether it distils."""

    name: str
    label: str = ""
    overrides: dict[str, Any] = field(default_factory=dict)  # recipe keys -> values
    distill: dict[str, Any] | None = None  # keys of the distill section; none: no teacher
    start_from: str | None = None  # the variant whose weights, of the same seed, it goes on with

    def __post_init__(self) -> None:
        if "/" in self.name or self.name[:1] in ("", "-", "."):
            raise ValueError(
                f"name={self.name!r}: must be a folder's name: one without / that does not begin "
                "with - or ."
            )


@dataclass(frozen=True, kw_only=True)
class Grid:
    """A grid of variants and seeds over one recipe; every cell has the same budget."""

    recipe: str  # a packaged recipe or a file
    variants: tuple[Variant, ...]
    seeds: tuple[int, ...] = (0,)
    output: str = "runs/ablation"
    overrides: dict[str, Any] = field(default_factory=dict)  # of every variant
    distill: dict[str, Any] = field(default_factory=dict)  # of every variant that distils
    reference: str  # the variant that gaps are measured to, and the teacher of the same seed
    baseline: str | None = None  # the variant whose gap to the reference is to be recovered
    compare: tuple[tuple[str, str], ...] = ()  # pairs whose difference is given with an interval
    reuse: tuple[str, ...] = ()  # output folders of other grids: the same cell is not run again
    measure_images: int = 2000  # of the evaluation set, for entropies and rates

    def __post_init__(self) -> None:
        names = [variant.name for variant in self.variants]
        twice = [name for name in names if names.count(name) > 1]
        if twice:
            raise ValueError(f"variants: {twice[0]!r} is there twice, names must differ")
        for name in (self.reference, self.baseline, *(n for pair in self.compare for n in pair)):
            if name is not None and name not in names:
                raise ValueError(f"variants: there is no {name!r}; must be {one_of(names, name)}")
        for variant in self.variants:
            if variant.start_from is not None and variant.start_from not in names:
                raise ValueError(
                    f"variants: {variant.name} starts from {variant.start_from!r}, which is not "
                    f"there; must be {one_of(names, variant.start_from)}"
                )
        for name in names:
            self._check_order(name, ())
        if not self.seeds or len(set(self.seeds)) != len(self.seeds):
            raise ValueError(f"seeds={list(self.seeds)}: must be at least one, all different")
        if self.measure_images < 1:
            raise ValueError(f"measure_images={self.measure_images}: must be at least 1")

    def variant(self, name: str) -> Variant:
        """The variant of this name."""
        for variant in self.variants:
            if variant.name == name:
                return variant
        raise UserError(f"no variant {name!r}: must be {one_of(self.names, name)}")

    def variants_before(self, name: str) -> list[str]:
        """The variants whose checkpoints one needs: its teacher's, and that which it starts from.

        A teacher that is not a variant (a recipe, a file) is not among them.
        """
        variant = self.variant(name)
        needed = [variant.start_from]
        if variant.distill is not None:
            needed.append(teacher_name(self, variant.distill))
        return [one for one in needed if one in self.names]

    def _check_order(self, name: str, above: tuple[str, ...]) -> None:
        if name in above:
            raise ValueError(f"variants: {' needs '.join((*above, name))}: none could come first")
        for needed in self.variants_before(name):
            self._check_order(needed, (*above, name))

    @property
    def names(self) -> list[str]:
        """The variants' names, in order."""
        return [variant.name for variant in self.variants]


@dataclass(frozen=True, order=True)
class Cell:
    """One variant with one seed."""

    variant: str
    seed: int

    def __str__(self) -> str:
        return f"{self.variant}-s{self.seed}"


def load_grid(name: str) -> Grid:
    """A packaged grid by name, or one from a YAML file."""
    text, stem = read_named(name, "ablation", packaged_grids())
    values = load_yaml(text, f"ablation {name}")
    if not isinstance(values, dict) or not isinstance(values.get("variants"), list):
        raise UserError(f"ablation {name}: must be a mapping with recipe, reference and variants")
    for number, variant in enumerate(values["variants"]):
        parse_section(Variant, f"variants[{number}]", variant)
    grid = parse_section(Grid, "ablation", {"output": f"runs/{stem}", **values})
    folders = tuple(map(os.path.expanduser, grid.reuse))
    output, recipe = os.path.expanduser(grid.output), nearby(name, grid.recipe)
    return dataclasses.replace(grid, output=output, recipe=recipe, reuse=folders)


def cells_folder(output: str | Path) -> Path:
    """Where the cells of a grid are trained, by the grid's `output`."""
    return Path(output) / "cells"


def cell_folder(output: str | Path, cell: Cell) -> Path:
    """Where a cell is trained."""
    return cells_folder(output) / str(cell)


def cell_checkpoint(output: str | Path, cell: Cell) -> Path:
    """The last checkpoint of a cell, for those that learn or start from it."""
    return cell_folder(output, cell) / "last.ckpt"


def teacher_name(grid: Grid, distill: Mapping[str, Any]) -> str:
    """Who teaches a variant with these keys of its own: a variant, or what a recipe may name."""
    return str({**grid.distill, **distill}.get("teacher", grid.reference))


def cells_before(grid: Grid, cell: Cell) -> list[Cell]:
    """The cells whose checkpoints this one needs."""
    return [Cell(name, cell.seed) for name in grid.variants_before(cell.variant)]


def cell_values(grid: Grid, cell: Cell) -> dict[str, Any]:
    """A cell's recipe as plain, unchecked values."""
    variant = grid.variant(cell.variant)
    keys = {**grid.overrides, **variant.overrides}
    values = recipe_values(grid.recipe)
    for level in (grid.overrides, variant.overrides):
        values = with_values(values, level)
    own = {"seed", "output"}.intersection(map(_path, keys))
    if own:
        raise UserError(f"{min(own)} is the cell's own: leave it out of overrides")
    if any(key.startswith(DISTILL) for key in map(_path, keys)):
        raise UserError("put distill keys into a distill section")
    values.pop("distill", None)  # the recipe's: here each variant says for itself
    if variant.distill is not None:
        teacher = teacher_name(grid, variant.distill)
        if teacher in grid.names:
            teacher = str(cell_checkpoint(grid.output, Cell(teacher, cell.seed)))
        values["distill"] = {**grid.distill, **variant.distill, "teacher": teacher}
    values = with_teacher_keys(values, {_path(key): value for key, value in keys.items()})
    return with_home({**values, "seed": cell.seed, "output": str(cell_folder(grid.output, cell))})


def cell_recipe(grid: Grid, cell: Cell) -> Recipe:
    """A cell's recipe, checked; `UserError` for one of another task than classification.

    What a cell starts from has the shape that its own keys give.
    """
    start = grid.variant(cell.variant).start_from
    try:
        values = with_start_shape(cell_values(grid, cell))
        if start is not None:
            path = str(cell_checkpoint(grid.output, Cell(start, cell.seed)))
            values["model"] = {**(values.get("model") or {}), "start_from": path}
        recipe = parse_recipe(values)
        if not recipe.model.ann:  # which may be declared with the keys of what it is compared to
            refuse_idle(values, map(_path, grid.variant(cell.variant).overrides))
        if recipe.task != "classification":
            raise UserError(f"task={recipe.task}: must be classification, all that is measured")
        return recipe
    except UserError as error:
        raise UserError(f"variant {cell.variant}: {error}") from error


def _path(key: str) -> str:
    return resolve_key(key).path


def digest(grid: Grid, variant: str) -> str:
    """A short code for what a variant trains, apart from seed and folders; kept in its rows.

    Rows that were kept go on elsewhere: where the data lie is no part of it, unless only that says
    which data they are, and neither is what is done in another way with the same result.
    """
    values = cell_values(grid, Cell(variant, 0))
    values.pop("output")
    others = incidental(values["data"])
    for path in others:
        section, key = path.split(".")
        values.get(section, {}).pop(key, None)
    own = grid.variant(variant)
    if own.distill is not None:
        handed = values["distill"].pop("teacher_keys", None)
        if isinstance(handed, dict):
            handed = {path: value for path, value in handed.items() if path not in others}
        if handed not in (None, "none", {}):
            values["distill"]["teacher_keys"] = handed
    if own.distill is not None and (teacher := teacher_name(grid, own.distill)) in grid.names:
        values["distill"]["teacher"] = digest(grid, teacher)
    if own.start_from is not None:
        values["start_from"] = digest(grid, own.start_from)
    text = json.dumps(values, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def wanted_cells(grid: Grid, only: Sequence[str] = (), seeds: Sequence[int] = ()) -> list[Cell]:
    """The cells asked for, seed by seed in the grid's order, each after those it needs."""
    for name in only:
        grid.variant(name)
    names = [name for name in grid.names if not only or name in only]
    cells: list[Cell] = []

    def add(cell: Cell) -> None:
        for before in cells_before(grid, cell):
            add(before)
        if cell not in cells:
            cells.append(cell)

    for seed in seeds or grid.seeds:
        for name in names:
            add(Cell(name, seed))
    return cells


def with_output(grid: Grid, output: str | None, overrides: Mapping[str, str]) -> Grid:
    """The grid with another output folder and more recipe keys, as YAML texts, for all cells.

    Keys that reach a teacher (data, budget, machine) hold for every cell, also where a variant
    sets them itself; the others are for cells whose variant does not.
    """
    values = dict(given_value(key, text) for key, text in overrides.items())
    distill = {k.removeprefix(DISTILL): v for k, v in values.items() if k.startswith(DISTILL)}
    others = {k: v for k, v in values.items() if not k.startswith(DISTILL)}
    if distill and all(variant.distill is None for variant in grid.variants):
        raise UserError(f"--{DISTILL}{min(distill)}: no variant of this grid has a teacher")
    forced = {k: v for k, v in others.items() if reaches_teacher(k)}
    variants = []
    for variant in grid.variants:
        own = {k: v for k, v in variant.overrides.items() if _path(k) not in forced}
        variants.append(dataclasses.replace(variant, overrides=own))
    try:
        return dataclasses.replace(
            grid,
            output=os.path.expanduser(output or grid.output),
            overrides={**grid.overrides, **others},
            distill={**grid.distill, **distill},
            variants=tuple(variants),
        )
    except ValueError as error:  # such as a teacher that learns from its student
        raise UserError(f"ablation: {error}") from error
