"""Ablations: a declared grid of variants x seeds, trained and measured cell by cell.

A finished cell is a row, and is not run again unless another one needs a checkpoint of it that is
gone; an interrupted one goes on from its last checkpoint. Cells run in processes of their own;
`ablation_report` shows the rows.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch.distributed as dist
from rich.console import Console

from qsdformer.data.config import DataConfig
from qsdformer.errors import UserError
from qsdformer.experiments.ablation_measure import evaluation_data, measure
from qsdformer.experiments.ablation_report import (
    EVALUATED,
    MEASURED,
    Row,
    check_row,
    read_rows,
    write_report,
    write_rows,
)
from qsdformer.experiments.grid import (
    Cell,
    Grid,
    Variant,
    cell_checkpoint,
    cell_folder,
    cell_recipe,
    cell_values,
    cells_before,
    cells_folder,
    digest,
)
from qsdformer.files import write_json
from qsdformer.recipes.recipe import parse_data
from qsdformer.terminal import say
from qsdformer.training.once import train_once
from qsdformer.training.run import is_worker
from qsdformer.training.stopping import STOPPED

POLL_SECONDS = 0.2
STOP_SECONDS = 30  # for a cell to end its step, or its validation, and save


def run_cell(grid: Grid, cell: Cell, console: Console | None = None) -> Row | None:
    """Train and measure one cell in this process; leaves row.json in its folder.

    Of several processes the first alone measures; the others return None.
    """
    recipe = cell_recipe(grid, cell)
    finished = train_once(recipe, console=console)
    if is_worker(recipe):
        return None
    if dist.is_available() and dist.is_initialized():  # what follows is for one process, all images
        dist.destroy_process_group()
    row: Row = {
        "variant": cell.variant,
        "label": _label(grid, cell.variant),
        "seed": cell.seed,
        "accuracy": finished.score,
        "digest": digest(grid, cell.variant),
        MEASURED: grid.measure_images,
        **measure(recipe, finished.path, grid.measure_images),
    }
    write_json(_row_file(grid, cell), row)
    return row


def _label(grid: Grid, variant: str) -> str:
    """What a report calls a variant."""
    return grid.variant(variant).label or variant


def _row_file(grid: Grid, cell: Cell) -> Path:
    """Written when a cell is trained and measured: where it is, so is the last checkpoint."""
    return cell_folder(grid.output, cell) / "row.json"


def _read_row(file: Path) -> Row:
    """`UserError` for a damaged file."""
    try:
        row: Row = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{file} is damaged: remove it, and its cell is measured again") from error
    check_row(row if isinstance(row, dict) else {}, str(file))
    return row


def cells_to_run(grid: Grid, cells: Sequence[Cell], finished: Collection[Cell]) -> list[Cell]:
    """Of `cells`, those without a row, and those with one that these need and that left no files.

    `cells` come after those they need (`wanted_cells`), and so do the ones returned.
    """
    wanted: set[Cell] = set()
    for cell in reversed(cells):
        if cell not in finished:
            wanted.add(cell)
        if cell in wanted:
            wanted.update(one for one in cells_before(grid, cell) if not _is_there(grid, one))
    return [cell for cell in cells if cell in wanted]


def _is_there(grid: Grid, cell: Cell) -> bool:
    """Whether a cell is trained and measured, and others can learn or start from it."""
    return _row_file(grid, cell).exists() and cell_checkpoint(grid.output, cell).exists()


def finished_rows(grid: Grid) -> dict[Cell, Row]:
    """The rows of finished cells, from results.csv, the cells' folders, and grids to reuse.

    A cell that was trained once more, to teach, keeps the row that it has in results.csv. Raises
    `UserError` if one was made by another recipe than the grid now has.
    """
    files = sorted(cells_folder(grid.output).glob("*/row.json"))
    rows = [*map(_read_row, files), *read_rows(Path(grid.output) / "results.csv")]
    found: dict[Cell, Row] = {}
    for row in rows:
        cell = Cell(str(row["variant"]), int(row["seed"]))
        if cell.variant not in grid.names:
            continue
        if row.get("digest") != digest(grid, cell.variant):
            raise UserError(
                f"{grid.output} has a result of {cell} by another recipe: choose another output, "
                f"or remove its row and the folder {cell_folder(grid.output, cell)}"
            )
        if not _measured_alike(grid, row):
            raise UserError(
                f"{grid.output} has a result of {cell} measured on {row[MEASURED]} images: set "
                f"measure_images to that (it is {grid.measure_images}), or choose another output"
            )
        found[cell] = {**row, "label": _label(grid, cell.variant)}
    return {**_reused_rows(grid), **found}


def _measured_alike(grid: Grid, row: Row) -> bool:
    """Whether a row, unless it is so old that it says none, has the grid's `measure_images`."""
    return float(row.get(MEASURED) or grid.measure_images) == grid.measure_images


def _reused_rows(grid: Grid) -> dict[Cell, Row]:
    """Rows of the grids in `reuse` that trained, under whatever name, what this grid's cells do.

    Those that were measured on another number of images are left alone.
    """
    by_digest: dict[str, list[Variant]] = {}
    for variant in grid.variants if grid.reuse else ():
        by_digest.setdefault(digest(grid, variant.name), []).append(variant)
    return {
        Cell(variant.name, int(row["seed"])): {
            **row,
            "variant": variant.name,
            "label": _label(grid, variant.name),
        }
        for folder in grid.reuse
        for row in read_rows(Path(folder) / "results.csv")
        for variant in by_digest.get(row.get("digest", ""), ())
        if _measured_alike(grid, row)
    }


def run_grid(
    grid: Grid,
    cells: Sequence[Cell],
    command: Sequence[str],
    *,
    jobs: int = 1,
    environment: Mapping[str, str] | None = None,
    console: Console | None = None,
) -> list[Row]:
    """Run the cells that are not finished, `jobs` at a time, and write the results.

    `command` plus "--cell VARIANT SEED" runs one cell in a process, which has this one's
    environment and `environment`. With more than one job each process has one thread. Raises
    `UserError` naming cells that failed, after all others.
    """
    console = console or Console()
    for cell in cells:
        cell_recipe(grid, cell)
    rows = finished_rows(grid)
    pending = cells_to_run(grid, cells, rows)
    if pending:
        _check_images(grid, rows.values(), [cell.variant for cell in pending])
    say(console, f"{len(cells)} cells, {len(cells) - len(pending)} finished already")
    write_rows(grid, rows.values())
    failed: list[Cell] = []
    running: dict[Cell, subprocess.Popen[bytes]] = {}
    variables = {**os.environ, **(environment or {})}
    if jobs > 1:
        variables["OMP_NUM_THREADS"] = "1"
    with _hearing_sigterm(), _stopping(running):
        while pending or running:
            for cell in _ready(grid, pending, running, failed, jobs):
                running[cell] = _start(grid, cell, command, variables)
            for cell in _ended(running):
                if running.pop(cell).returncode == 0:
                    rows = finished_rows(grid)
                    write_rows(grid, rows.values())
                    _tell(console, cell, rows[cell], len(pending) + len(running))
                else:
                    failed.append(cell)
                    say(console, f"{cell} failed: {_last_line(_log(grid, cell))}")
    if finished := finished_rows(grid):
        write_report(grid, finished.values())
    if failed:
        first = _log(grid, failed[0])
        begun = first.is_file()
        reason = _last_line(first).removeprefix("qsd: error: ") if begun else "it needs others"
        raise UserError(f"{len(failed)} cells failed, first {failed[0]}: {reason}; see {first}")
    return list(rows.values())


def _check_images(grid: Grid, rows: Iterable[Row], pending: Sequence[str]) -> None:
    """`UserError` if rows were measured on other images than their variants are now.

    Images that no variant in `pending` is measured on are left alone: they need not be here.
    """
    pairs = {
        (str(row["variant"]), int(float(row[EVALUATED]))) for row in rows if row.get(EVALUATED)
    }
    names = dict.fromkeys([*pending, *(name for name, _ in pairs)])
    images = {name: _evaluated(grid, name) for name in names}
    for data, variant in {images[name]: name for name in pending}.items():
        recipe = cell_recipe(grid, Cell(variant, 0))
        before = {count for name, count in pairs if images[name] == data}
        if before and (others := before - {now := evaluation_data(recipe, 1).eval_size}):
            raise UserError(
                f"{grid.output} has results on {min(others):,} evaluation images, but the data has "
                f"{now:,}: give the images they were measured on, or choose another output"
            )


def _evaluated(grid: Grid, variant: str) -> DataConfig:
    """The data of a variant, apart from how many images it trains on."""
    data = parse_data(cell_values(grid, Cell(variant, 0)))
    assert isinstance(data, DataConfig)
    return dataclasses.replace(data, train_limit=None)


def _ready(
    grid: Grid,
    pending: list[Cell],
    running: Mapping[Cell, subprocess.Popen[bytes]],
    failed: list[Cell],
    jobs: int,
) -> list[Cell]:
    """Take cells off `pending`, up to `jobs` in all, that need none that runs or is to come."""
    ready: list[Cell] = []
    for cell in list(pending):
        needed = cells_before(grid, cell)
        if any(one in failed for one in needed):
            pending.remove(cell)
            failed.append(cell)
        elif len(running) + len(ready) < jobs and not any(
            one in pending or one in running or one in ready for one in needed
        ):
            pending.remove(cell)
            ready.append(cell)
    return ready


def _start(
    grid: Grid, cell: Cell, command: Sequence[str], environment: Mapping[str, str]
) -> subprocess.Popen[bytes]:
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


@contextlib.contextmanager
def _hearing_sigterm() -> Iterator[None]:
    """SIGTERM as SystemExit, so that cells do not go on without this process."""

    def leave(signum: int, frame: Any) -> None:
        raise SystemExit(STOPPED)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def _stopping(running: Mapping[Cell, subprocess.Popen[bytes]]) -> Iterator[None]:
    """Ends what still runs at the end; SIGTERM lets a cell save where it is."""
    try:
        yield
    finally:
        for process in running.values():
            process.terminate()
        for process in running.values():
            try:
                process.wait(timeout=STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()


def _log(grid: Grid, cell: Cell) -> Path:
    return cells_folder(grid.output) / f"{cell}.log"


def _last_line(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return lines[-1] if lines else "no output"


def _tell(console: Console, cell: Cell, row: Row, left: int) -> None:
    say(
        console,
        f"{cell}: accuracy {float(row['accuracy']):.2%} in {float(row['seconds']):,.0f} s, "
        f"{left} left",
    )


def cell_command(recipe: str) -> list[str]:
    """The command line that `run_grid` completes."""
    # The modules of the current folder are none of ours (-P), where the command itself was not
    # started from there.
    here = {"", os.getcwd()} & set(sys.path)
    return [sys.executable, *([] if here else ["-P"]), "-m", "qsdformer", "ablate", recipe]
