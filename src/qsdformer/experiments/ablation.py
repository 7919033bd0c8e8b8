"""Ablations: a declared grid of variants x seeds, trained and measured cell by cell.

A finished cell is a row, and is never run again; an interrupted one goes on from its last
checkpoint. Cells run in processes of their own; `ablation_report` shows the rows.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console

from qsdformer.commands.process import ALLOCATOR, RESTARTED
from qsdformer.errors import UserError
from qsdformer.experiments.ablation_report import Row, read_rows, write_report, write_rows
from qsdformer.files import write_json
from qsdformer.parsing import load_yaml, one_of, parse_section
from qsdformer.recipes import packaged_grids
from qsdformer.recipes.recipe import Recipe, parse_recipe, recipe_values, resolve_key, with_keys

POLL_SECONDS = 0.2
DISTILL = "distill."


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One line of an ablation: what it changes in the grid's recipe, and whether it distils."""

    name: str
    label: str = ""
    overrides: dict[str, Any] = field(default_factory=dict)  # recipe keys -> values
    distill: dict[str, Any] | None = None  # keys of the distill section; none: no teacher


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
    known = packaged_grids()
    path = known.get(name, Path(name))
    if not path.is_file():
        raise UserError(f"no ablation {name!r}: neither a file nor {one_of(known, name)}")
    values = load_yaml(path.read_text(encoding="utf-8"), f"ablation {name}")
    if not isinstance(values, dict) or not isinstance(values.get("variants"), list):
        raise UserError(f"ablation {name}: must be a mapping with recipe, reference and variants")
    for number, variant in enumerate(values["variants"]):
        parse_section(Variant, f"variants[{number}]", variant)
    return parse_section(Grid, "ablation", {"output": f"runs/{path.stem}", **values})


def cell_folder(grid: Grid, cell: Cell) -> Path:
    """Where a cell is trained."""
    return Path(grid.output) / "cells" / str(cell)


def teacher_cell(grid: Grid, cell: Cell) -> Cell | None:
    """The cell whose checkpoint teaches this one, if any: a variant's name may be the teacher."""
    distill = grid.variant(cell.variant).distill
    if distill is None:
        return None
    name = {**grid.distill, **distill}.get("teacher", grid.reference)
    return Cell(name, cell.seed) if name in grid.names else None


def cell_values(grid: Grid, cell: Cell) -> dict[str, Any]:
    """A cell's recipe as plain, unchecked values."""
    variant = grid.variant(cell.variant)
    keys = {**grid.overrides, **variant.overrides}
    values = recipe_values(grid.recipe)
    for level in (grid.overrides, variant.overrides):
        values = with_keys(values, {k: json.dumps(v) for k, v in level.items()})
    if any(key.startswith(DISTILL) for key in map(_path, keys)):
        raise UserError(f"variant {cell.variant}: put distill keys into a distill section")
    values.pop("distill", None)  # the recipe's: here each variant says for itself
    if variant.distill is not None:
        values["distill"] = {**grid.distill, **variant.distill}
        teacher = teacher_cell(grid, cell)
        if teacher is not None:
            values["distill"]["teacher"] = str(cell_folder(grid, teacher) / "last.ckpt")
    return {**values, "seed": cell.seed, "output": str(cell_folder(grid, cell))}


def cell_recipe(grid: Grid, cell: Cell) -> Recipe:
    """A cell's recipe, checked."""
    try:
        return parse_recipe(cell_values(grid, cell))
    except UserError as error:
        raise UserError(f"variant {cell.variant}: {error}") from error


def _path(key: str) -> str:
    return resolve_key(key).path


def digest(grid: Grid, variant: str) -> str:
    """A short code for what a variant trains, apart from seed and folders; kept in its rows."""
    values = cell_values(grid, Cell(variant, 0))
    values.pop("output")
    teacher = teacher_cell(grid, Cell(variant, 0))
    if teacher is not None:
        values["distill"]["teacher"] = digest(grid, teacher.variant)
    text = json.dumps(values, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def run_cell(grid: Grid, cell: Cell, console: Console | None = None) -> Row:
    """Train and measure one cell in this process; leaves row.json in its folder."""
    from qsdformer.experiments.ablation_measure import measure
    from qsdformer.training.once import train_once

    recipe = cell_recipe(grid, cell)
    finished = train_once(recipe, console=console)
    variant = grid.variant(cell.variant)
    row: Row = {
        "variant": cell.variant,
        "label": variant.label or cell.variant,
        "seed": cell.seed,
        "accuracy": finished.accuracy,
        "digest": digest(grid, cell.variant),
        **measure(recipe, finished.path, grid.measure_images),
    }
    write_json(cell_folder(grid, cell) / "row.json", row)
    return row


def finished_rows(grid: Grid) -> dict[Cell, Row]:
    """The rows of finished cells, from results.csv, the cells' folders, and grids to reuse.

    Raises `UserError` if one was made by another recipe than the grid now has.
    """
    rows = read_rows(Path(grid.output) / "results.csv")
    for file in sorted((Path(grid.output) / "cells").glob("*/row.json")):
        rows.append(json.loads(file.read_text(encoding="utf-8")))
    found: dict[Cell, Row] = {}
    for row in rows:
        cell = Cell(str(row["variant"]), int(row["seed"]))
        if cell.variant not in grid.names:
            continue
        if row["digest"] != digest(grid, cell.variant):
            raise UserError(
                f"{grid.output} has a result of {cell} by another recipe: choose another output, "
                f"or remove its row and the folder {cell_folder(grid, cell)}"
            )
        found[cell] = row
    return {**_reused_rows(grid), **found}


def _reused_rows(grid: Grid) -> dict[Cell, Row]:
    """Rows of the grids in `reuse` that trained, under whatever name, what this grid's cells do."""
    by_digest: dict[str, list[Variant]] = {}
    for variant in grid.variants if grid.reuse else ():
        by_digest.setdefault(digest(grid, variant.name), []).append(variant)
    return {
        Cell(variant.name, int(row["seed"])): {
            **row,
            "variant": variant.name,
            "label": variant.label or variant.name,
        }
        for folder in grid.reuse
        for row in read_rows(Path(folder) / "results.csv")
        for variant in by_digest.get(row["digest"], ())
    }


def wanted_cells(grid: Grid, only: Sequence[str] = (), seeds: Sequence[int] = ()) -> list[Cell]:
    """The cells asked for, seed by seed in the grid's order, each after the one it learns from."""
    for name in only:
        grid.variant(name)
    names = [name for name in grid.names if not only or name in only]
    cells: list[Cell] = []
    for seed in seeds or grid.seeds:
        for name in names:
            cell = Cell(name, seed)
            chain = [cell]
            while (teacher := teacher_cell(grid, chain[-1])) is not None and teacher not in chain:
                chain.append(teacher)
            cells += [one for one in reversed(chain) if one not in cells]
    return cells


def run_grid(
    grid: Grid,
    cells: Sequence[Cell],
    command: Sequence[str],
    *,
    jobs: int = 1,
    console: Console | None = None,
) -> list[Row]:
    """Run the cells that are not finished, `jobs` at a time, and write the results.

    `command` plus "--cell VARIANT SEED" runs one cell in a process. With more than one job each
    process has one thread. Raises `UserError` naming cells that failed, after all others.
    """
    console = console or Console()
    for cell in cells:
        cell_recipe(grid, cell)
    rows = finished_rows(grid)
    pending = [cell for cell in cells if cell not in rows]
    console.print(f"{len(cells)} cells, {len(cells) - len(pending)} finished already")
    write_rows(grid, rows.values())
    failed: list[Cell] = []
    running: dict[Cell, subprocess.Popen[bytes]] = {}
    try:
        while pending or running:
            _start_ready(grid, pending, running, failed, command, jobs)
            for cell in _ended(running):
                if running.pop(cell).returncode == 0:
                    rows = finished_rows(grid)
                    write_rows(grid, rows.values())
                    _tell(console, cell, rows[cell], len(pending) + len(running))
                else:
                    failed.append(cell)
                    console.print(f"{cell} failed: {_last_line(_log(grid, cell))}")
    finally:
        _stop(running.values())
    write_report(grid, finished_rows(grid).values())
    if failed:
        first = _log(grid, failed[0])
        raise UserError(f"{len(failed)} cells failed, first {failed[0]}: see {first}")
    return list(rows.values())


def _start_ready(
    grid: Grid,
    pending: list[Cell],
    running: dict[Cell, subprocess.Popen[bytes]],
    failed: list[Cell],
    command: Sequence[str],
    jobs: int,
) -> None:
    """Start cells, up to `jobs`, whose teacher is neither still to come nor running."""
    for cell in list(pending):
        teacher = teacher_cell(grid, cell)
        if teacher in failed:
            pending.remove(cell)
            failed.append(cell)
        elif len(running) < jobs and teacher not in pending and teacher not in running:
            pending.remove(cell)
            running[cell] = _start(grid, cell, command, jobs)


def _start(grid: Grid, cell: Cell, command: Sequence[str], jobs: int) -> subprocess.Popen[bytes]:
    environment = {**os.environ, **ALLOCATOR, RESTARTED: "1"}
    if jobs > 1:
        environment["OMP_NUM_THREADS"] = "1"
    log = _log(grid, cell)
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as file:
        return subprocess.Popen(
            [*command, "--cell", cell.variant, str(cell.seed)],
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            env=environment,
        )


def _ended(running: Mapping[Cell, subprocess.Popen[bytes]]) -> list[Cell]:
    ended = [cell for cell, process in running.items() if process.poll() is not None]
    if not ended and running:
        time.sleep(POLL_SECONDS)
    return ended


def _stop(processes: Iterable[subprocess.Popen[bytes]]) -> None:
    """Interrupt what still runs; its last checkpoint stays."""
    for process in processes:
        process.send_signal(signal.SIGINT)
    for process in processes:
        try:
            process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            process.kill()


def _log(grid: Grid, cell: Cell) -> Path:
    return Path(grid.output) / "cells" / f"{cell}.log"


def _last_line(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return lines[-1] if lines else "no output"


def _tell(console: Console, cell: Cell, row: Row, left: int) -> None:
    console.print(
        f"{cell}: accuracy {float(row['accuracy']):.2%} in {float(row['seconds']):,.0f} s, "
        f"{left} left",
        highlight=False,
    )


def with_output(grid: Grid, output: str | None, overrides: Mapping[str, str]) -> Grid:
    """The grid with another output folder and more recipe keys, as YAML texts, for all cells."""
    values = {key: load_yaml(text, f"the value of --{key}") for key, text in overrides.items()}
    distill = {k.removeprefix(DISTILL): v for k, v in values.items() if k.startswith(DISTILL)}
    others = {k: v for k, v in values.items() if not k.startswith(DISTILL)}
    return dataclasses.replace(
        grid,
        output=output or grid.output,
        overrides={**grid.overrides, **others},
        distill={**grid.distill, **distill},
    )


def cell_command(recipe: str) -> list[str]:
    """The command line that `run_grid` completes."""
    return [sys.executable, "-m", "qsdformer", "ablate", recipe]
