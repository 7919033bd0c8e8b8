"""The parts of the report, each a piece of HTML from collected values."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
from torch import nn

from qsdformer.analysis.energy import COST_MODELS, KINDS, cost_model
from qsdformer.analysis.export import energy_text
from qsdformer.analysis.information import histogram_entropy, mean_firing_rate, qkv_histograms
from qsdformer.analysis.ledger import Ledger
from qsdformer.analysis.report import svg
from qsdformer.analysis.report.collect import (
    SCORE,
    AttentionMap,
    Membranes,
    Run,
)
from qsdformer.analysis.report.svg import Axes, escape
from qsdformer.analysis.shares import parts_of, shares
from qsdformer.nn.config import Bits
from qsdformer.nn.quantizers import quantized_layers
from qsdformer.nn.taps import spiking_neurons
from qsdformer.recipes.tasks import MEASURES

KIB = 1024
Cell = tuple[str, float | None]  # text, and the number to sort by


def figure(name: str, title: str, body: str, caption: str = "") -> str:
    """A titled figure."""
    below = f"<figcaption>{escape(caption)}</figcaption>" if caption else ""
    return f'<figure data-figure="{name}"><h3>{escape(title)}</h3>{body}{below}</figure>'


def section(title: str, *parts: str, grid: bool = True) -> str:
    """A headed section."""
    inside = "".join(parts)
    body = f'<div class="grid">{inside}</div>' if grid else inside
    return f"<section><h2>{escape(title)}</h2>{body}</section>"


def table(headings: Sequence[str], rows: Sequence[Sequence[str | Cell]], label: str) -> str:
    """A table that sorts by any column; numeric cells carry the number to sort by."""
    head = "".join(f"<th><button>{escape(h)}</button></th>" for h in headings)
    body = "".join(f"<tr>{''.join(_cell(c) for c in row)}</tr>" for row in rows)
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(label)}"><table>'
        f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _cell(value: str | Cell) -> str:
    if isinstance(value, str):
        return f"<td>{escape(value)}</td>"
    text, number = value
    return f'<td data-value="{"" if number is None else repr(float(number))}">{escape(text)}</td>'


def common_bits(model: nn.Module) -> Bits:
    """The bits that most layers' weights have, or "ternary"; None for full precision."""
    bits = Counter(layer.coding for layer in quantized_layers(model).values())
    return bits.most_common(1)[0][0] if bits else None


def wat(model: nn.Module) -> str:
    """The network as papers write it: weight bits, activation bits, binary time steps."""
    neurons, bits = spiking_neurons(model).values(), common_bits(model)
    if not neurons:
        return "ANN, fp32" if bits is None else f"ANN, {bits}-bit weights"
    steps = max(neuron.time_steps * neuron.levels for neuron in neurons)
    return f"{bits or 32}-1-{steps}"


def cards(run: Run) -> str:
    """The numbers to take home."""
    ledger = run.ledger
    values = {measure: f"{score:.2%}" for measure, score in run.scores.items()}
    if run.analysis is not None:
        measured = run.analysis.measured
        values |= {
            "of images": f"{measured.images:,}",
            "mean firing rate of q, k, v": f"{mean_firing_rate(measured.histograms):.3f}",
            "synaptic operations an image": _short(ledger.synaptic_operations),
        }
    values |= {
        "MACs on real input": _short(ledger.macs),
        "energy, bit-aware": energy_text(ledger.total(cost_model("bit-aware"))),
        "energy, as in papers": energy_text(ledger.total(cost_model("papers"))),
        "parameters": _short(ledger.parameters),
        "packed": f"{ledger.packed_bytes / KIB:,.0f} KiB",
        "smaller than fp32": f"{ledger.float_bytes / ledger.packed_bytes:.1f}×",
    }
    items = (
        f'<div class="card"><b>{v}</b><span>{escape(k)}</span></div>' for k, v in values.items()
    )
    return f'<div class="cards">{"".join(items)}</div>'


def curves(runs: Sequence[Run]) -> str:
    """Loss, and each task's measure, over epochs; nothing if no run has a metrics.csv."""
    figures = []
    losses = {
        f"{r.name} {k.removesuffix('_loss')}": r.curves[k]
        for r in runs
        for k in ("train_loss", "val_loss")
        if r.curves[k]
    }
    if losses:
        figures.append(figure("loss", "Loss", svg.lines(losses, "epoch", "loss")))
    for task in dict.fromkeys(run.subject.task for run in runs):
        scored = [run for run in runs if run.subject.task == task and run.curves[SCORE]]
        scores = {run.name: [(e, 100 * a) for e, a in run.curves[SCORE]] for run in scored}
        if scores:
            name, word = MEASURES[task].name, MEASURES[task].word
            axis = "top-1 (%)" if word == "accuracy" else f"{word} (%)"
            chart = svg.lines(scores, "epoch", axis)
            figures.append(figure(name, f"Evaluation images: {word}", chart))
    return section("Training", *figures) if figures else ""


def lacking(runs: Sequence[Run]) -> str:
    """What the energies of some of the runs do not have, in words; nothing if they have all."""
    return " ".join(
        f"Energies, operations and rates of {run.name} are without its {run.ledger.left_out}; "
        "scores and sizes are of the whole network."
        for run in runs
        if run.ledger.left_out
    )


def lacking_note(runs: Sequence[Run], mark: str = "") -> str:
    """The same as a paragraph."""
    text = lacking(runs)
    return f'<p class="soft">{escape(mark + text)}</p>' if text else ""


def run_table(runs: Sequence[Run]) -> str:
    """One line a run, a column for each measure that any of them has."""
    measures = list(dict.fromkeys(measure for run in runs for measure in run.scores))
    rows: list[list[str | Cell]] = []
    for run in runs:
        ledger = run.ledger
        rate = None if run.analysis is None else mean_firing_rate(run.analysis.measured.histograms)
        energies = [ledger.total(model) for model in COST_MODELS.values()]
        mark = " *" if ledger.left_out else ""
        rows.append(
            [
                run.name,
                run.images,
                run.weights.partition(",")[0],
                wat(run.subject.model),
                *(_score_cell(run.scores.get(measure)) for measure in measures),
                (f"{ledger.parameters:,}", ledger.parameters),
                (f"{ledger.packed_bytes / KIB:,.0f} KiB", ledger.packed_bytes),
                ("–" if rate is None else f"{rate:.3f}", rate),
                *((energy_text(e) + mark, e) for e in energies),
            ]
        )
    headings = [
        "run",
        "images",
        "weights",
        "W-A-T",
        *measures,
        "parameters",
        "packed",
        "rate q, k, v",
        *COST_MODELS,
    ]
    shown = table(headings, rows, "runs") + lacking_note(runs, "* ")
    return section("Accuracy, size and energy", shown, grid=False)


def membrane_figures(
    histograms: Mapping[str, Membranes], other: tuple[str, Mapping[str, Membranes]] | None
) -> str:
    """Membrane potentials before q, k, v's neurons, with the firing window; nothing without.

    Those of the `other` run are drawn in units of its own window, as many times wider or narrower.
    """
    if not histograms:
        return ""
    figures = []
    for letter, own in histograms.items():
        series = {"before rectification": own.before, "after, trained": own.after}
        if other is not None and letter in other[1]:
            theirs = other[1][letter]
            times = "" if theirs.unit == own.unit else f", × {own.unit / theirs.unit:.4g}"
            series[f"{other[0]}, trained{times}"] = theirs.after
        top = max(float(h.max()) for h in series.values())
        low, high = own.range
        axes = Axes((low, high), (0, 100 * top), "membrane potential", "share (%)")
        shown = (own.window[0], min(own.window[1], high))
        axes.box(shown, (0, 100 * top), "window", "firing window")
        for i, (name, histogram) in enumerate(series.items()):
            step = (high - low) / len(histogram)
            points = [(low + (j + 0.5) * step, 100 * v) for j, v in enumerate(histogram.tolist())]
            axes.line(points, i, name)
        body = axes.render(f"membrane potential of {letter}") + svg.legend(list(series))
        figures.append(figure(f"membrane-{letter}", f"{letter}, all blocks", body))
    note = (
        "<p class='soft'>Shaded: the window in which the spike count follows the potential. "
        "Before: the same potentials with the norm's learned scale and shift taken out. "
        "× n: a run whose neurons have another window, its potentials times n.</p>"
    )
    return section("Membrane potentials and the firing window", *figures) + note


def count_figures(run: Run) -> str:
    """Spike counts of q, k, v and their entropies; nothing for a network without these."""
    assert run.analysis is not None
    histograms = qkv_histograms(run.analysis.measured.histograms)
    if not histograms:
        return ""
    levels = max(len(h) for h in histograms.values()) - 1
    series = {
        f"{name}: {histogram_entropy(h):.2f} bit": (h / h.sum()).tolist()
        for name, h in histograms.items()
    }
    chart = svg.bars([str(c) for c in range(levels + 1)], series, "spike count", "share")
    most = np.log2(levels + 1)
    together = figure("counts", "Spike counts of q, k, v", chart, f"At most {most:.2f} bit.")
    blocks: dict[str, list[float]] = {letter: [] for letter in histograms}
    for name, histogram in run.analysis.measured.histograms.items():
        blocks[name.rpartition(".")[2][0]].append(histogram_entropy(histogram))
    names = [str(i + 1) for i in range(max(map(len, blocks.values())))]
    chart = svg.bars(names, blocks, "transformer block", "entropy (bit)")
    return section("Information", together, figure("entropy", "Entropy by block", chart))


def rate_figure(run: Run) -> str:
    """Firing rate of every layer."""
    assert run.analysis is not None
    chart = svg.rate_bars({short_name(n): r for n, r in run.analysis.rates.items()})
    return figure("rates", "Firing rate of each neuron layer", chart)


def raster_figure(rasters: Mapping[str, np.ndarray]) -> str:
    """Spikes of one image over virtual time."""
    chart = svg.raster({short_name(n).rpartition(".")[0] or n: s for n, s in rasters.items()})
    caption = (
        "One image, some neurons of five layers from first to last. Columns are the T·D binary "
        "steps; a count of c fires in the first c steps of its time step."
    )
    return figure("raster", "Spikes over virtual time", chart, caption)


def ledger_section(run: Run) -> str:
    """Energy by kind and in total, the twins where there are any, and every row."""
    ledger = run.ledger
    parts = {name: ledger.by_kind(model) for name, model in COST_MODELS.items()}
    left_out = {"post"} - {row.kind for row in ledger.rows}
    titled = {
        n: {KINDS[k]: e for k, e in kinds.items() if k not in left_out}
        for n, kinds in parts.items()
    }
    captions = {n: f"{n}: {energy_text(ledger.total(m))}" for n, m in COST_MODELS.items()}
    bars, lacks = svg.stacked(titled, captions), lacking([run])
    by_kind = figure("ledger", "Where the energy of an image goes", bars, lacks)
    models = "".join(
        f"<li><b>{escape(n)}</b>: {escape(m.title)}</li>" for n, m in COST_MODELS.items()
    )
    twin = ""
    if run.twins:
        bars = _twin_bars([ledger, *run.twins])
        twin = figure("twins", "The same network as an ANN, bit-aware", bars, lacks)
    note = f"<details><summary>Cost models</summary><ul>{models}</ul></details>"
    parts_table = share_section(run)
    return section("Energy ledger", by_kind, twin) + note + ledger_table(ledger) + parts_table


def share_section(run: Run) -> str:
    """Backbone, neck and heads of a dense network; nothing for others."""
    if run.analysis is None or not parts_of(run.analysis.network):
        return ""
    found = shares(run.analysis.network, run.ledger, list(COST_MODELS.values()))
    rows: list[list[str | Cell]] = []
    for s in found:
        numbers = [s.parameters, s.packed_bytes, s.additions, s.macs]
        rows.append(
            [
                s.part,
                *((f"{n:,.0f}", float(n)) for n in numbers),
                *((energy_text(e), e) for e in s.energy.values()),
            ]
        )
    headings = ["part", "parameters", "packed bytes", "additions", "MACs", *COST_MODELS]
    shown = table(headings, rows, "backbone, neck and heads")
    return section("Backbone, neck and heads", shown, grid=False)


def _twin_bars(ledgers: Sequence[Ledger]) -> str:
    model = cost_model("bit-aware")
    totals = [ledger.total(model) for ledger in ledgers]
    parts, longest = [], max(totals)
    for i, (ledger, total) in enumerate(zip(ledgers, totals, strict=True)):
        y, width = i * 40, (svg.WIDTH - 4) * total / longest
        name = "spiking" if i == 0 else ledger.name.removeprefix(ledgers[0].name).strip()
        ratio = "" if i == 0 else f" ({total / totals[0]:.2f} × spiking)"
        text = f"{name.split()[-1]}: {energy_text(total)}{ratio}"
        parts.append(f'<text x="2" y="{y + 13}">{escape(text)}</text>')
        parts.append(
            f'<rect class="bar s{i}" x="0" y="{y + 18}" width="{max(1.0, width):.1f}" height="14">'
            f"<title>{escape(text)}</title></rect>"
        )
    return svg.svg(len(ledgers) * 40, parts, "energy of the network and its ANN twins")


def ledger_table(ledger: Ledger) -> str:
    """Every row of the ledger."""
    charged = [ledger.energies(model) for model in COST_MODELS.values()]
    rows: list[list[str | Cell]] = []
    for i, row in enumerate(ledger.rows):
        bits = "" if not row.weights else str(row.weight_bits or "fp32")
        rows.append(
            [
                row.name,
                KINDS[row.kind],
                (f"{row.dense_macs:,}" if row.dense_macs else "", row.dense_macs or None),
                ("" if row.rate is None else f"{row.rate:.3f}", row.rate),
                (f"{row.count:,.0f}", row.count),
                (f"{row.estimate:,.0f}" if row.estimate else "", row.estimate or None),
                ("" if row.deviation is None else f"{row.deviation:+.1%}", row.deviation),
                bits,
                *((energy_text(column[i]) if column[i] else "", column[i]) for column in charged),
            ]
        )
    headings = ["operation", "kind", "MACs", "rate", "exact count", "papers' estimate"]
    headings += ["deviation", "bits", *COST_MODELS]
    return table(headings, rows, "energy ledger")


def attention_section(maps: Sequence[AttentionMap]) -> str:
    """Sample images with where attention looks; nothing for a network without attention."""
    if not maps:
        return ""
    cells = []
    for item in maps:
        shown = [f"<span>{svg.picture(item.image)}{escape(item.label)}</span>"]
        for title, values in item.maps.items():
            shown.append(f"<span>{svg.picture(values, colour=True)}{escape(title)}</span>")
        cells.append(f"<div>{''.join(shown)}</div>")
    caption = "q·k of each token, mean over heads and query tokens; light is much."
    body = f'<div class="maps">{"".join(cells)}</div>'
    return section(
        "Attention", figure("attention", "Where attention looks", body, caption), grid=False
    )


def pareto(runs: Sequence[Run]) -> str:
    """Each measure against size and energy, of the runs that are compared by it, at least two."""
    alike: dict[str, list[Run]] = {}
    for run in runs:
        alike.setdefault(run.measure, []).append(run)
    return "".join(_pareto(name, same) for name, same in alike.items() if len(same) > 1)


def _pareto(measure: str, runs: Sequence[Run]) -> str:
    named = {run.name: (run.ledger, 100 * run.scores[measure]) for run in runs}
    size = {n: (ledger.packed_bytes / KIB, share) for n, (ledger, share) in named.items()}
    model = cost_model("bit-aware")
    energy = {n: (ledger.total(model) / 1e6, share) for n, (ledger, share) in named.items()}
    axis = f"{measure} (%)"
    return section(
        f"Size and energy against {measure}",
        figure("pareto-size", "Size", svg.scatter(size, "packed (KiB)", axis)),
        figure(
            "pareto-energy", "Energy", svg.scatter(energy, "bit-aware (µJ)", axis), lacking(runs)
        ),
    )


def short_name(name: str) -> str:
    """A module name short enough for a chart."""
    for long, short in (("stages.", ""), ("blocks.", ""), ("attention.", "attn."), ("_neuron", "")):
        name = name.replace(long, short)
    return name


def _score_cell(score: float | None) -> Cell:
    return "–" if score is None else f"{score:.2%}", score


def _short(value: float) -> str:
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.2f} {unit}"
    return f"{value:.0f}"
