"""An ablation's results: one CSV with a row a cell, one Markdown table, one figure."""

from __future__ import annotations

import csv
import io
import math
import statistics
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from scipy.stats import t as student_t  # type: ignore[import-untyped]

from qsdformer.errors import UserError
from qsdformer.experiments.figures import new_figure
from qsdformer.experiments.grid import Grid
from qsdformer.files import atomic_path, write_text

Row = dict[str, Any]
EVALUATED = "evaluation_images"  # how many the accuracy is of
MEASURED = "measured_images"  # how many entropies, rates and work are of; not in older rows

COLUMNS = (
    "variant",
    "label",
    "seed",
    "accuracy",
    "gap",  # points below the reference of the same seed
    "entropy_q",
    "entropy_k",
    "entropy_v",
    "rate_q",
    "rate_k",
    "rate_v",
    "firing_rate",
    "active_groups",
    "packed_bytes",
    "parameters",
    "additions",  # an image, that spikes cause
    "macs",  # an image, on real inputs
    "uj_papers",  # microjoules an image, by cost model (analysis/energy.py)
    "uj_papers_inner",
    "uj_bit_aware",
    "uj_memory",
    "uj_twin",  # bit-aware, of the quantised ANN of equal bits and levels
    "uj_twin_skip",  # ... that skips zeros
    "images_per_second",
    "seconds",
    "epochs",
    "threads",
    EVALUATED,
    MEASURED,
    "digest",
)
TEXTS = ("variant", "label", "digest")  # columns; the others are numbers
CONFIDENCE = 0.95


def read_rows(path: Path) -> list[Row]:
    """The rows of a results.csv; none if it does not exist. Values are text.

    `UserError` for a file of another kind, or a row without what every row has.
    """
    if not path.is_file():
        return []
    try:
        text = path.read_text(encoding="utf-8-sig")
        rows: list[Row] = list(csv.DictReader(io.StringIO(text, newline="")))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"cannot read {path}, the results of a grid: {error}") from error
    for number, row in enumerate(rows, start=1):
        check_row(row, f"{path}, row {number}")
    return rows


def check_row(row: Mapping[str, Any], where: str) -> None:
    """`UserError` for a row without a variant, a seed and its accuracy."""
    lacking = [key for key in ("variant", "seed", "accuracy") if not str(row.get(key, ""))]
    if lacking:
        raise UserError(
            f"{where}: there is no {lacking[0]}: it is no result of qsd ablate; remove it"
        )
    try:
        int(row["seed"])
        for key in COLUMNS:
            if key not in TEXTS:
                _number(row, key)
    except (TypeError, ValueError) as error:
        raise UserError(f"{where}: {error}: restore or remove it") from error


def write_rows(grid: Grid, rows: Iterable[Row]) -> None:
    """Write results.csv, whole or not at all: variants in the grid's order, then seeds.

    Rows that are there of variants that the grid no longer has stay as they are, at the end.
    """
    path = Path(grid.output) / "results.csv"
    order = {name: number for number, name in enumerate(grid.names)}
    ordered = sorted(rows, key=lambda r: (order[r["variant"]], int(r["seed"])))
    others = [row for row in read_rows(path) if row["variant"] not in order]
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    for row in [*with_gaps(grid, ordered), *others]:
        writer.writerow({key: _short(value) for key, value in row.items()})
    write_text(path, text.getvalue())


def with_gaps(grid: Grid, rows: list[Row]) -> list[Row]:
    """The rows with `gap`: points of accuracy below the reference cell of the same seed."""
    best = {int(r["seed"]): _number(r, "accuracy") for r in rows if r["variant"] == grid.reference}
    done = []
    for row in rows:
        reference = best.get(int(row["seed"]))
        accuracy = _number(row, "accuracy")
        gap = "" if reference is None or accuracy is None else 100 * (reference - accuracy)
        done.append({**row, "gap": gap})
    return done


def write_report(grid: Grid, rows: Iterable[Row]) -> None:
    """Write results.md and results.png beside results.csv."""
    rows = with_gaps(grid, list(rows))
    write_text(Path(grid.output) / "results.md", markdown(grid, rows))
    draw(grid, rows, Path(grid.output) / "results.png")


def markdown(grid: Grid, rows: list[Row]) -> str:
    """The table, mean and standard deviation over n seeds (speed: median), and compared pairs."""
    heads = ["variant", "n", "accuracy % ± sd", "gap ± sd", "q / k / v entropy, bits"]
    heads += ["firing rate", "active groups", "packed KiB", "training images/s"]
    recovered = _recovered(grid, rows)
    if recovered:
        heads.insert(4, "gap recovered %")
    lines = ["| " + " | ".join(heads) + " |", "|---|" + "---:|" * (len(heads) - 1)]
    for name in grid.names:
        own = [row for row in rows if row["variant"] == name]
        if not own:
            continue
        entropies = [_mean_sd(own, f"entropy_{f}", digits=2, sd=False) for f in "qkv"]
        cells = [
            str(own[0]["label"]),
            str(len(own)),
            _mean_sd(own, "accuracy", scale=100, digits=2),
            _mean_sd(own, "gap", digits=2),
            " / ".join(entropies) if entropies[0] != "–" else "–",
            _mean_sd(own, "firing_rate", digits=3, sd=False),
            _mean_sd(own, "active_groups", digits=3, sd=False),
            _mean_sd(own, "packed_bytes", scale=1 / 1024, digits=0, sd=False),
            _median(own, "images_per_second"),
        ]
        if recovered:
            cells.insert(4, recovered.get(name, "–"))
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join([*lines, *_comparisons(grid, rows)]) + "\n"


def paired_differences(a: dict[int, float], b: dict[int, float]) -> list[float]:
    """b - a for every seed that both have, in the order of seeds."""
    return [b[seed] - a[seed] for seed in sorted(set(a) & set(b))]


def paired_difference(a: dict[int, float], b: dict[int, float]) -> tuple[float, float, int]:
    """Mean of b - a over common seeds, the half width of its 95 % t-interval, and their number.

    The half width is NaN for fewer than two seeds.
    """
    differences = paired_differences(a, b)
    n = len(differences)
    if n < 2:
        return (differences[0] if n else math.nan), math.nan, n
    quantile = float(student_t.ppf(0.5 + CONFIDENCE / 2, n - 1))
    half = quantile * statistics.stdev(differences) / math.sqrt(n)
    return statistics.mean(differences), half, n


def draw(grid: Grid, rows: list[Row], path: Path) -> None:
    """Accuracy of each variant: a dot a seed, the mean, and its standard deviation as a bar."""
    values = {name: list(accuracies(rows, name).values()) for name in grid.names}
    values = {name: v for name, v in values.items() if v}
    figure = new_figure(path, (8, 0.42 * len(values) + 1.2))
    if figure is None:
        return
    axes = figure.subplots()
    for y, own in enumerate(values.values()):
        deviation = statistics.stdev(own) if len(own) > 1 else 0.0
        axes.errorbar(statistics.mean(own), y, xerr=deviation, fmt="o", color="C0", capsize=4)
        axes.plot(own, [y + 0.22] * len(own), ".", color="0.6")
    labels = {row["variant"]: str(row["label"]) for row in rows}
    axes.set_yticks(range(len(values)), [labels[name] for name in values])
    axes.invert_yaxis()
    axes.grid(axis="x", alpha=0.4)
    figure.supxlabel("accuracy (%): mean, standard deviation, and each seed in grey", size="medium")
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=130)


def accuracies(rows: list[Row], variant: str) -> dict[int, float]:
    """Accuracy in percent by seed."""
    return {int(r["seed"]): 100 * float(r["accuracy"]) for r in rows if r["variant"] == variant}


def _recovered(grid: Grid, rows: list[Row]) -> dict[str, str]:
    """Share of the baseline's gap to the reference that each variant makes up for, in percent."""
    if grid.baseline is None:
        return {}
    top, bottom = accuracies(rows, grid.reference), accuracies(rows, grid.baseline)
    seeds = set(top) & set(bottom)
    shares = {}
    for name in grid.names:
        own = accuracies(rows, name)
        common = seeds & set(own)
        gap = sum(top[s] - bottom[s] for s in common)
        if gap > 0 and name not in (grid.reference, grid.baseline):
            shares[name] = f"{100 * sum(own[s] - bottom[s] for s in common) / gap:.0f}"
    return shares


def _comparisons(grid: Grid, rows: list[Row]) -> list[str]:
    labels = {row["variant"]: str(row["label"]) for row in rows}
    lines = []
    for a, b in grid.compare:
        mean, half, n = paired_difference(accuracies(rows, a), accuracies(rows, b))
        if n >= 2:
            lines.append(
                f"- {labels[b]} − {labels[a]}: {mean:+.2f} points, 95 % interval "
                f"{mean - half:+.2f} to {mean + half:+.2f} (n = {n}, paired by seed)"
            )
    return ["", *lines] if lines else []


def _mean_sd(rows: list[Row], key: str, *, scale: float = 1.0, digits: int, sd: bool = True) -> str:
    values = [scale * v for row in rows if (v := _number(row, key)) is not None]
    if not values:
        return "–"
    text = f"{statistics.mean(values):.{digits}f}"
    return f"{text} ± {statistics.stdev(values):.{digits}f}" if sd and len(values) > 1 else text


def _median(rows: list[Row], key: str) -> str:
    """Of a speed, so that a cell that was paused or had to share its core does not count."""
    values = [v for row in rows if (v := _number(row, key)) is not None]
    return f"{statistics.median(values):,.0f}" if values else "–"


def _number(row: Mapping[str, Any], key: str) -> float | None:
    value = row.get(key)
    return None if value in (None, "") else float(value)


def _short(value: Any) -> Any:
    return float(f"{value:.6g}") if isinstance(value, float) else value
