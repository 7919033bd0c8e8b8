"""The whole report from runs."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import nn

from qsdformer.analysis.report import sections
from qsdformer.analysis.report.assets import SCRIPT, STYLE
from qsdformer.analysis.report.collect import (
    SAMPLES,
    Run,
    attention_maps,
    collect,
    membranes,
    samples,
    spike_raster,
)
from qsdformer.analysis.report.svg import escape
from qsdformer.errors import UserError
from qsdformer.nn.config import bits_text
from qsdformer.nn.taps import spiking_neurons


def build(
    paths: Sequence[str],
    keys: Mapping[str, str],
    limit: int | None = None,
    device: torch.device | str = "cpu",
    more: Callable[[Run], str] = lambda run: "",
) -> str:
    """The report on the runs at `paths` as one HTML page; the first must be spiking.

    Everything is measured on the evaluation images, or the first `limit` of them, on `device`.
    `more` makes further HTML about the first run.
    Raises `UserError` for runs that cannot be read and for a first run without neurons.
    """
    runs = [collect(path, keys, limit=limit, device=device) for path in paths]
    counts = Counter(run.name for run in runs)
    runs = [  # runs of one name are told apart by where they are
        dataclasses.replace(run, name=path) if counts[run.name] > 1 else run
        for run, path in zip(runs, paths, strict=True)
    ]
    if runs[0].analysis is None:
        raise UserError(
            f"{paths[0]} is an ANN and has no spiking neurons: give a spiking run first"
        )
    return page(runs, more(runs[0]))


def page(runs: Sequence[Run], more: str = "") -> str:
    """The page about `runs`, the first of them in detail, with `more` HTML at its end."""
    run = runs[0]
    body = [
        f"<h1>{escape(run.name)}</h1>",
        f'<p class="soft">{escape(description(run.subject.model))} on {escape(run.images)}; '
        f"weights: {escape(run.weights)}</p>",
        sections.lacking_note([run]),
        sections.cards(run),
        sections.curves(runs),
        sections.run_table(runs),
        sections.pareto(runs),
        *_inside(runs),
        more,
    ]
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<title>{escape(run.name)} – qsdformer report</title><link rel="icon" href="data:,">'
        f"<style>{STYLE}</style></head><body><main>{''.join(body)}</main>"
        f"<script>{SCRIPT}</script></body></html>\n"
    )


def description(model: nn.Module) -> str:
    """A model in a line; a configuration may add a `summary` of its own."""
    bits = sections.common_bits(model)
    weights = "full-precision" if bits is None else bits_text(bits)
    neurons = list(spiking_neurons(model).values())
    kinds = "/".join(sorted({type(neuron).__name__.lower() for neuron in neurons})) or "real"
    levels, steps = (
        max((getattr(n, name) for n in neurons), default=1) for name in ("levels", "time_steps")
    )
    line = (
        f"{sections.wat(model)}: {weights} weights, {kinds} neurons with D = {levels}, T = {steps}"
    )
    summary = getattr(getattr(model, "config", None), "summary", None)
    return line if summary is None else line + summary()


def _inside(runs: Sequence[Run]) -> list[str]:
    run = runs[0]
    model, data = run.subject.model, run.subject.data
    images, labels = samples(run.subject.batches())
    labels = labels[:SAMPLES] if run.subject.task == "classification" else None
    second = next((r for r in runs[1:] if spiking_neurons(r.subject.model)), None)
    other = None
    if second is not None:
        theirs, _ = samples(second.subject.batches())
        other = second.name, membranes(second.subject.model, theirs)
    maps = attention_maps(model, images[:SAMPLES], labels, data.info)
    return [
        sections.membrane_figures(membranes(model, images), other),
        sections.count_figures(run),
        sections.section(
            "Spikes",
            sections.rate_figure(run),
            sections.raster_figure(spike_raster(model, images[0])),
        ),
        sections.attention_section(maps),
        sections.ledger_section(run),
    ]
