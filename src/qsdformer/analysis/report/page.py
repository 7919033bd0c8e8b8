"""The whole report from runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

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
from qsdformer.nn.config import ModelConfig

BATCH_SIZE = 128


def build(
    paths: Sequence[str],
    keys: Mapping[str, str],
    limit: int | None = None,
    device: torch.device | str = "cpu",
) -> str:
    """The report on the runs at `paths` as one HTML page; the first must be spiking.

    Everything is measured on the evaluation images, or the first `limit` of them, on `device`.
    Raises `UserError` for runs that cannot be read and for a first run without neurons.
    """
    runs = [
        collect(path, keys, limit=limit, batch_size=BATCH_SIZE, device=device) for path in paths
    ]
    if runs[0].analysis is None:
        raise UserError(
            f"{paths[0]} is an ANN and has no spiking neurons: give a spiking run first"
        )
    return page(runs)


def page(runs: Sequence[Run]) -> str:
    """The page about `runs`, the first of them in detail."""
    run = runs[0]
    config = run.subject.model.config
    data = run.subject.data
    body = [
        f"<h1>{escape(run.name)}</h1>",
        f'<p class="soft">{escape(description(config))} on {escape(data.config.name)}</p>',
        sections.cards(run),
        sections.curves(runs),
        sections.run_table(runs),
        sections.pareto(runs),
        *_inside(runs),
    ]
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<title>{escape(run.name)} – qsdformer report</title><link rel="icon" href="data:,">'
        f"<style>{STYLE}</style></head><body><main>{''.join(body)}</main>"
        f"<script>{SCRIPT}</script></body></html>\n"
    )


def description(config: ModelConfig) -> str:
    """A model in a line."""
    bits = "full-precision" if config.weight_bits is None else f"{config.weight_bits}-bit"
    whole = ", fully spike-driven" if config.fully_spiking else ""
    return (
        f"{sections.wat(config)}: {bits} weights, {config.neuron} neurons with D = "
        f"{config.levels}, T = {config.time_steps}{whole}; dims "
        f"{', '.join(map(str, config.dims))}, depth {config.depth}"
    )


def _inside(runs: Sequence[Run]) -> list[str]:
    run = runs[0]
    model, data = run.subject.model, run.subject.data
    images, labels = samples(data.val_dataloader())
    second = next((r for r in runs[1:] if r.subject.model.config.is_spiking), None)
    other = None
    if second is not None:
        theirs, _ = samples(second.subject.data.val_dataloader())
        other = second.name, membranes(second.subject.model, theirs)
    window = (0.0, 1.0)
    if model.config.neuron == "lif":
        window = (model.config.threshold, float("inf"))
    maps = attention_maps(model, images[:SAMPLES], labels[:SAMPLES], data.info)
    return [
        sections.membrane_figures(membranes(model, images), other, window),
        sections.count_figures(run),
        sections.section(
            "Spikes",
            sections.rate_figure(run),
            sections.raster_figure(spike_raster(model, images[0])),
        ),
        sections.attention_section(maps),
        sections.ledger_section(run),
    ]
