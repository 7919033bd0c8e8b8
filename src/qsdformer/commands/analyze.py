"""`qsd analyze CKPT...`."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from qsdformer.analysis.energy import COST_MODELS, CostModel, cost_model
from qsdformer.commands.arguments import add_execution_arguments, add_limit
from qsdformer.commands.outputs import check_outputs
from qsdformer.commands.recipe_keys import add_recipe_keys, given_keys
from qsdformer.errors import UserError
from qsdformer.files import write_json
from qsdformer.terminal import say, table_console

if TYPE_CHECKING:
    from rich.console import Console

    from qsdformer.analysis.ledger import Ledger
    from qsdformer.analysis.subject import Analysis

NAMED = 4  # neurons of a kind that the summary names
AFTER_PRODUCT = ("attention_neuron", "mask_neuron")  # what attention_norm comes before


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `qsd analyze`."""
    parser.add_argument(
        "checkpoints",
        metavar="CKPT",
        nargs="+",
        help="checkpoints of spiking models; with several, ratios and the distortion of spike "
        "information are against the first, such as a network with fp32 weights",
    )
    parser.add_argument(
        "--cost-model",
        action="append",
        default=[],
        metavar="NAME",
        help=f"one of {', '.join(COST_MODELS)}; may be repeated (default: all)",
    )
    parser.add_argument(
        "--twins",
        action="store_true",
        help="also show each model as an fp32 ANN and as a quantised ANN (default: off)",
    )
    add_limit(parser, "measure")
    parser.add_argument("--csv", metavar="FILE", help="write the ledgers' rows (default: off)")
    parser.add_argument("--json", metavar="FILE", help="write everything (default: off)")
    add_execution_arguments(parser)
    add_recipe_keys(parser, section="data")


def run(options: argparse.Namespace) -> int:
    """Measure every checkpoint, print the tables, write the files asked for."""
    from qsdformer.analysis.export import write_csv
    from qsdformer.analysis.subject import analyze, load_subject
    from qsdformer.analysis.twins import twins
    from qsdformer.devices import pick_device

    keys = given_keys(options)
    check_outputs([options.csv, options.json], options.checkpoints)
    models = [cost_model(name) for name in options.cost_model or COST_MODELS]
    device = pick_device(options.device)
    # All are loaded before the first is measured, so that a mistake shows at once.
    subjects = [load_subject(path, keys, options.batch_size) for path in options.checkpoints]
    for subject in subjects if options.twins else ():
        if subject.found.heads:
            raise UserError(
                f"--twins: {subject.name} has heads for regions, whose twins are not known; leave "
                "it out"
            )
    console = table_console()
    analyses, ledgers = [], []
    for subject in subjects:
        with console.status(f"measuring {subject.name}"):
            analysis = analyze(subject, limit=options.limit, device=device)
        analyses.append(analysis)
        ledgers.append(analysis.ledger)
        if options.twins:
            ledgers += twins(
                subject.name,
                subject.model,
                analysis.measured,
                analysis.network,
                analysis.left_out,
            )
    _print(console, analyses, ledgers, models)
    if options.csv:
        write_csv(options.csv, ledgers, models)
    if options.json:
        write_json(options.json, _values(analyses, ledgers, models))
    return 0


def _print(
    console: Console,
    analyses: Sequence[Analysis],
    ledgers: Sequence[Ledger],
    models: Sequence[CostModel],
) -> None:
    from qsdformer.analysis.export import (
        comparison_table,
        energy_table,
        neuron_table,
        operation_table,
    )
    from qsdformer.analysis.shares import parts_of, share_table, shares

    for analysis in analyses:
        console.print(neuron_table(analysis))
        console.print(operation_table(analysis.ledger))
        console.print(energy_table(analysis.ledger, models))
        if parts_of(analysis.network):
            console.print(share_table(shares(analysis.network, analysis.ledger, models)))
        say(console, _summary(analysis))
    if len(ledgers) > 1:
        console.print(comparison_table(ledgers, models))
    for analysis in analyses[1:]:
        if found := analysis.distortions_from(analyses[0]):
            shown = ", ".join(f"{name} {bits:.4f}" for name, bits in found.items())
            text = f"spike information distortion of {analysis.name} from {analyses[0].name}"
            say(console, f"{text}, bits: {shown}")
    for model in models:
        say(console, f"{model.name}: {model.title}")


def _summary(analysis: Analysis) -> str:
    ledger = analysis.ledger
    exact = sum(row.count for row in ledger.rows if row.rate is not None)
    estimate = sum(row.estimate for row in ledger.rows if row.rate is not None)
    off = f"{estimate / exact - 1:+.1%}" if exact else "no spikes"
    entropies = ", ".join(f"{name} {bits:.2f}" for name, bits in analysis.entropies.items())
    accuracy = analysis.measured.accuracy
    top1 = "" if accuracy is None else f"top-1 {accuracy:.2%} of "
    lacking = f"without its {analysis.left_out}: " if analysis.left_out else ""
    images = f"{top1}{analysis.measured.images:,} images"
    return (
        f"{lacking}{analysis.name} on {analysis.data_name}: {images}\n"
        f"synaptic operations an image: {exact:,.0f} exact, {estimate:,.0f} as papers estimate "
        f"({off}); MACs on real input: {ledger.macs:,.0f}\n"
        f"entropy in bits: {entropies}\n"
        f"{_at_the_ends(analysis)}"
        f"parameters: {ledger.parameters:,}; packed {ledger.packed_bytes / 1024:,.0f} KiB, "
        f"{ledger.float_bytes / ledger.packed_bytes:.1f} times smaller than in fp32"
    )


def _at_the_ends(analysis: Analysis) -> str:
    """Lines that name the neurons whose counts say next to nothing; none where there are none."""
    from qsdformer.analysis.subject import SATURATED, SILENT

    text = _named(f"saturated, firing rate {SATURATED} or more", analysis.saturated)
    text += _named(f"silent, firing rate below {SILENT}", analysis.silent)
    after_product = any(name.endswith(AFTER_PRODUCT) for name in analysis.saturated)
    config = getattr(analysis.model, "config", None)
    if after_product and getattr(config, "attention_norm", None) is False:
        text += "--attention_norm true trains with a norm before the neuron of attention\n"
    return text


def _named(what: str, neurons: Mapping[str, float]) -> str:
    """A line of at most `NAMED` neurons with their firing rates; none for none."""
    if not neurons:
        return ""
    parts = [f"{name} {rate:.3f}" for name, rate in neurons.items()][:NAMED]
    if len(neurons) > NAMED:
        parts.append(f"and {len(neurons) - NAMED} more")
    return f"{what}: {', '.join(parts)}\n"


def _values(
    analyses: Sequence[Analysis], ledgers: Sequence[Ledger], models: Sequence[CostModel]
) -> dict[str, object]:
    from qsdformer.analysis.export import constants, ledger_values

    return {
        "constants": constants(),
        "cost_models": {model.name: model.title for model in models},
        "models": [
            {**_model_values(one, models), "distortion_bits": one.distortions_from(analyses[0])}
            for one in analyses
        ],
        "ledgers": [ledger_values(ledger, models, ledgers[0]) for ledger in ledgers],
    }


def _model_values(analysis: Analysis, models: Sequence[CostModel]) -> dict[str, object]:
    from qsdformer.analysis.export import analysis_values
    from qsdformer.analysis.shares import parts_of, share_values, shares

    values = analysis_values(analysis)
    if parts_of(analysis.network):
        found = shares(analysis.network, analysis.ledger, models)
        values["parts"] = share_values(found)
    return values
