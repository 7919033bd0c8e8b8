"""What docs/cifar10.md says of its networks is what the kept rows in docs/results say."""

from __future__ import annotations

import csv
import math
import re
import shutil
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from statistics import fmean, stdev

import pytest
import torch
from shell import pasted
from torch import Tensor, nn

from qsdformer.experiments.ablation import finished_rows
from qsdformer.experiments.ablation_report import (
    Row,
    accuracies,
    markdown,
    paired_difference,
    paired_differences,
    read_rows,
    with_gaps,
)
from qsdformer.experiments.grid import Grid, digest, load_grid, with_output
from qsdformer.models.building import build
from qsdformer.nn.neurons import IELIF, spike_count
from qsdformer.recipes.recipe import load_recipe

RESULTS = Path(__file__).parents[2] / "docs" / "results"
PAGE = (RESULTS.parent / "cifar10.md").read_text(encoding="utf-8")
README = (RESULTS.parents[1] / "README.md").read_text(encoding="utf-8")


def section(heading: str) -> str:
    """What the page says under a heading, up to the next one of its level or above."""
    after = PAGE.split(f"\n{heading}\n")[1]
    return re.split(rf"\n#{{2,{heading.index(' ')}}} ", after)[0]


def readme_row(start: str) -> str:
    """The one line of the README that begins so."""
    (line,) = (one for one in README.splitlines() if one.startswith(start))
    return line


def table_lines(grid: Grid, rows: list[Row]) -> list[str]:
    """The lines of the table and of the comparisons that `qsd ablate` makes of rows."""
    return [line for line in markdown(grid, with_gaps(grid, rows)).splitlines() if line]


def mean_value(rows: list[Row], variant: str, key: str = "accuracy") -> float:
    """The mean of a column over the seeds of a variant."""
    return fmean(float(row[key]) for row in rows if row["variant"] == variant)


def with_sd(values: Iterable[float]) -> str:
    """Mean and standard deviation, as the texts have them."""
    found = list(values)
    return f"{fmean(found):.1f} ± {stdev(found):.1f}"


def mean_sd(rows: list[Row], variant: str) -> str:
    """Accuracy of a variant over its seeds, as the texts have it."""
    return with_sd(accuracies(rows, variant).values())


def interval(difference: tuple[float, float, int]) -> str:
    """The 95 % interval of a `paired_difference`, as the texts have it."""
    mean, half, _ = difference
    return f"{mean - half:.1f} to {mean + half:.1f}".replace("-", "−")


def closed(rows: list[Row]) -> str:
    """The share of the gap from direct 4-bit LIF to the ANN that the best student closes."""
    low, best, top = (fmean(accuracies(rows, n).values()) for n in ("lif-4bit", "fgd-10", "ann"))
    return f"{(best - low) / (top - low):.0%}".replace("%", " %")


@pytest.mark.parametrize(
    ("name", "columns", "lines"),
    [  # speeds are left out of all three
        ("ablation-cifar10-spikformer", 9, 2 + 18 + 15),
        ("ablation-cifar10", 9, 2 + 11 + 10),
        ("ablation-cifar10-gap", 5, 2 + 27 + 6),
    ],
)
def test_the_tables_of_a_grid_are_those_of_their_rows(
    name: str, columns: int, lines: int, tmp_path: Path
) -> None:
    grid, kept = load_grid(name), RESULTS / f"{name}.csv"
    rows = read_rows(kept)
    assert {row["digest"] for row in rows} == {digest(grid, row["variant"]) for row in rows}
    shutil.copy(kept, tmp_path / "results.csv")
    going_on = with_output(grid, str(tmp_path), {"data.root": "elsewhere"})
    assert len(finished_rows(going_on)) == len(rows)
    page = PAGE.splitlines()
    found = table_lines(grid, rows)
    assert len(found) == lines
    for line in found:
        shown = "|".join(line.split("|")[: columns + 1]) + "|" if line.startswith("|") else line
        assert shown in page


@pytest.mark.slow
def test_the_figure_of_the_remedies_is_drawn_from_their_rows(tmp_path: Path) -> None:
    (lines,) = re.findall(r"^```\n(mkdir .*?)^```", PAGE, re.DOTALL | re.MULTILINE)
    (tmp_path / "docs").symlink_to(RESULTS.parent)
    assert "3 cells, 3 finished already" in pasted(lines, tmp_path)
    output = tmp_path / "runs/ablation-cifar10-spikformer"
    assert not list(output.glob("cells/*"))
    kept = RESULTS / "ablation-cifar10-spikformer.csv"
    assert len(read_rows(output / "results.csv")) == len(read_rows(kept))
    assert (output / "results.png").stat().st_size > 10_000


def test_what_the_page_says_of_the_first_remedies_is_that_of_their_rows() -> None:
    rows = read_rows(RESULTS / "ablation-cifar10-spikformer.csv")
    direct, full, plain, best, ann = (
        accuracies(rows, name) for name in ("lif-4bit", "lif-fp32", "plain", "fgd-10", "ann")
    )
    by_seed = [f"{value:+.1f}".replace("-", "−") for value in paired_differences(direct, full)]
    cost, gained = (paired_difference(direct, other) for other in (full, plain))
    assert f"(fp32 − 4 bits: {cost[0]:.1f} points, 95 % interval {interval(cost)}; by" in PAGE
    assert "by seed {}, {} and {}; the paper's 6.1 lies outside".format(*by_seed) in PAGE
    assert cost[0] + cost[1] < 6.1
    assert f"is {gained[0]:.1f} points above direct 4-bit LIF" in PAGE
    assert f"do not tell from 0 ({interval(gained)})" in PAGE
    counts, rectified = (accuracies(rows, name) for name in ("ielif-fp32", "rectified"))
    cost = paired_difference(rectified, counts)
    assert f"With IE-LIF four bits cost {cost[0]:.1f} points ({interval(cost)};" in PAGE
    ahead = fmean(best.values()) - fmean(counts.values())
    assert f"4-bit network is {ahead:.1f} points better than the untaught one in fp32" in PAGE
    gap = fmean(ann.values()) - fmean(direct.values())
    left = paired_differences(best, ann)
    assert (
        f"recover {closed(rows)} of the gap between direct 4-bit LIF and the ANN ({gap:.1f}" in PAGE
    )
    assert f"of which {with_sd(left)} (sd) points remain" in PAGE


def test_what_another_processor_gave_is_that_of_its_rows() -> None:
    rows = read_rows(RESULTS / "cifar10-spikformer-xeon.csv")
    (paragraph,) = (line for line in PAGE.splitlines() if line.startswith("**On another processor"))
    shown = []
    for name in ("ann", "lif-4bit", "plain", "rectified", "ielif-fp32", "fgd-10"):
        assert len(accuracies(rows, name)) == (2 if name == "lif-4bit" else 3)
        shown.append(mean_sd(rows, name))
    assert re.findall(r"[0-9.]+ ± [0-9.]+", paragraph) == shown
    by_bits, half, n = paired_difference(*(accuracies(rows, f"lif-{b}") for b in ("4bit", "fp32")))
    assert n == 1
    assert math.isnan(half)
    assert f"in fp32 {by_bits:.1f} more" in paragraph


def test_how_far_spikes_are_distorted_is_that_of_its_rows() -> None:
    with (RESULTS / "distortion-cifar10-spikformer.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    found: dict[str, list[float]] = {}
    for row in rows:
        found.setdefault(row["variant"], []).append(float(row["distortion"]))
    assert all(len(values) % 9 == 0 for values in found.values())  # blocks and features
    quantised = found["rectified"]
    few = sum(value < 0.005 for value in quantised)
    assert f"are at most {max(found['lif-4bit']):.3f} bits (Jensen-Shannon)" in PAGE
    assert f"counts are at most {max(quantised):.2f} bits from the fp32 network's" in PAGE
    assert f"{few} of {len(quantised)} less than 0.005" in PAGE
    moved = (f"{min(found[name]):.2f} to {max(found[name]):.2f}" for name in ("plain", "fgd-10"))
    assert "It moves their counts by {} bits, distillation by {}.".format(*moved) in PAGE


def test_the_rates_in_attention_are_those_of_their_rows() -> None:
    with (RESULTS / "cifar10-spikformer-attention-rates.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    shown = {
        "not rectified": "plain",
        "rectified": "rectified",
        "published start, not rectified": "plain-published",
        "published start, rectified": "rectified-published",
        "published start, rectified + FGD, weight 10": "fgd-10-published",
        "published start, rectified + logits": "logits-published",
    }
    sums = {}
    for label, variant in shown.items():
        own = [row for row in rows if row["variant"] == variant]
        seeds = {row["seed"] for row in own}
        assert len(own) == 3 * len(seeds)  # blocks
        kinds = ("rate_q", "rate_k", "rate_v")
        cells = [f"{fmean(float(r[k]) for r in own):.2f}" for k in (*kinds, "rate_attention")]
        assert f"\n| {label} | {len(seeds)} | {' | '.join(cells)} |\n" in PAGE
        products = (math.prod(float(row[kind]) for kind in kinds) for row in own)
        sums[variant] = f"{48 * fmean(products):.1f}"  # of attention, by the rates alone
    published = sums["plain-published"], sums["rectified-published"]
    assert "{} without rectification and {} with it".format(*published) in PAGE
    (scaled,) = read_rows(RESULTS / "cifar10-spikformer-scale.csv")
    smaller = {"data.root": "elsewhere", "model.attention_scale": "0.0078125"}  # as the page says
    grid = with_output(load_grid("ablation-cifar10-spikformer"), "out", smaller)
    assert scaled["digest"] == digest(grid, scaled["variant"])
    eighths = read_rows(RESULTS / "ablation-cifar10-spikformer.csv")
    eighth, normed = (accuracies(eighths, n)[0] for n in ("rectified-published", "rectified"))
    one_seed = f"**{float(scaled['accuracy']):.1%}** ({eighth:.1f} with 1/8, {normed:.1f} with the"
    assert one_seed.replace("%**", " %**") in PAGE


def test_what_is_said_of_metaspikeformer_is_that_of_its_rows() -> None:
    rows = read_rows(RESULTS / "ablation-cifar10.csv")
    text = section("### On Meta-SpikeFormer")
    found = partial(accuracies, rows)
    above, taught, rectified = (
        paired_difference(found(a), found(b))
        for a, b in (("ann", "fgd-10"), ("rectified", "fgd-10"), ("plain", "rectified"))
    )
    assert f"{above[0]:.1f} points above it (95 % interval {interval(above)})" in text
    assert f"**, {taught[0]:.1f} points ({interval(taught)})" in text
    nothing = f"{rectified[0]:.1f} points, from nothing ({interval(rectified)})"
    assert nothing in text
    left = paired_differences(found("rectified"), found("ann"))
    assert f"gap, {with_sd(left)} (sd), nothing is left" in text
    host = read_rows(RESULTS / "ablation-cifar10-spikformer.csv")
    behind = 100 * (mean_value(host, "ann") - mean_value(rows, "ann"))
    assert f"can learn ({mean_sd(rows, 'ann')} %, {behind:.0f} points below Spikformer" in text
    bits = [
        f"{fmean(mean_value(rows, name, f'entropy_{k}') for k in 'qkv'):.2f}"
        for name in ("plain", "rectified")
    ]
    assert "from {} to {} bits".format(*bits) in text

    with (RESULTS / "distortion-cifar10-metaspikeformer.csv").open(newline="") as file:
        distortions = [float(row["distortion"]) for row in csv.DictReader(file)]
    assert len(distortions) % 9 == 0  # 3 blocks of q, k and v
    assert f"at most {max(distortions):.3f} bits (Jensen-Shannon; " in text
    shown = {
        "In accuracy it costs {} points (95 % interval {}), where": ("lif-4bit", "lif-fp32"),
        "IE-LIF is {} points ({}) above direct LIF": ("lif-4bit", "plain"),
        "above direct LIF, rectified {} ({}).": ("lif-4bit", "rectified"),
        "with fp32 weights it is {} points less accurate ({})": ("ielif-fp32", "rectified"),
        "of weight 1 is worth {} points ({}) on membrane": ("rectified", "fgd"),
        "and {} ({}) on counts": ("rectified", "fgd-counts"),
        "logits alone {} ({}).": ("rectified", "logits"),
        "as much as weight 10 here, {} ({}):": ("rectified", "fgd-3"),
        "the two are {} points apart ({}).": ("fgd-3", "fgd-10"),
    }
    for wanted, pair in shown.items():
        difference = paired_difference(*map(found, pair))
        seeds = "" if difference[2] == 3 else f"; n = {difference[2]}"
        value = f"{difference[0]:.1f}".replace("-0.0", "0.0").replace("-", "−")
        assert wanted.format(value, interval(difference) + seeds) in text, wanted
    assert f"of `ablation-cifar10` {len(rows)} of 60" in PAGE


def test_what_closes_the_gap_is_that_of_its_rows() -> None:
    rows = read_rows(RESULTS / "ablation-cifar10-gap.csv")
    page = section("## Closing the gap on Spikformer")
    found = partial(accuracies, rows)
    gaps = sorted(paired_differences(found("fgd-10-together"), found("ann")))
    assert f"is {with_sd(gaps)} points (sd) below its ANN" in page
    assert "({:.1f}, {:.1f} and {:.1f})".format(*gaps) in page
    shown = {
        "from FGD alone ({} points more, 95 % interval {})": ("fgd-10", "fgd-10-together"),
        "the student {} points better (95 % interval {})": ("fgd-10", "fgd-10-from-ann"),
        "by {} points untaught ({};": ("rectified", "double-rate"),
        "before neurons rectified, by {} points ({}: no more": ("rectified", "rectify-all"),
        "in place of a cosine's, by {} points ({}), but not": ("rectified", "linear-rate"),
    }
    for text, pair in shown.items():
        difference = paired_difference(*map(found, pair))
        assert text.format(f"{difference[0]:.1f}", interval(difference)) in page
    worse = [
        found(name)[0] - found(f"{name}-linear{rate}")[0]
        for name, rate in (("fgd-10-together", ""), ("ann", "-rate"))
    ]
    said = "it is {:.1f} points worse than with a cosine's, and the ANN {:.1f} (one seed)"
    assert said.format(*worse) in page
    left = paired_difference(found("fgd-10-from-ann"), found("ann"))
    assert f", {left[0]:.1f} below an ANN of as many epochs ({interval(left)})" in page
    faster = found("fgd-10-double-rate")[0] - found("fgd-10")[0]
    assert f"and {faster:.1f} taught (one seed)" in page
    for name, text in {
        "half-rate": "half of it loses {}, one seed",
        "from-full-precision": "two in full precision lose {} points",
        "from-eight-levels": "two with D = 8 {}",
        "from-ann": "two as an ANN {}.",
    }.items():
        lost = paired_difference(found(name), found("rectified"))
        assert lost[2] == 1
        assert text.format(f"{lost[0]:.1f}") in page
    for text, names in {
        "({} against {} %, one seed)": ("ann-double-rate", "ann"),
        "from an ANN of 9 epochs ({} %) and its logits the student has {} %": (
            "ann-long",
            "fgd-10-long",
        ),
        "from one twice as wide ({} %) {},": ("ann-wide", "fgd-10-wide"),
        "from that of 3 epochs {} with logits and {} without": ("fgd-10-logits", "fgd-10"),
        "surrogate ({} %) and averaged weights ({})": ("rect-surrogate", "ema"),
    }.items():
        assert text.format(*(f"{found(name)[0]:.1f}" for name in names)) in page
    rates = [mean_value(rows, name, "firing_rate") for name in ("rectify-all", "rectified")]
    assert "a firing rate of {:.2f} against {:.2f}".format(*rates) in page
    pairs = ("rectify-all", "rectified", "fgd-10-together", "fgd-10")
    work = [mean_value(rows, name, "additions") / 1e6 for name in pairs]
    assert "{:.1f} million additions against {:.1f} (".format(*work[:2]) in page
    assert "twice the rate {:.1f} against {:.1f})".format(*work[2:]) in page


def test_a_norm_before_each_neuron_learns_its_firing_window() -> None:
    torch.manual_seed(0)
    recipe = load_recipe("cifar10-spikformer-tiny")
    model = build(recipe.model.config(in_channels=3, num_classes=10))
    normed: list[Tensor] = []  # all kept, so that no two lie at one address
    read: list[Tensor] = []
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.register_forward_hook(lambda module, given, found: normed.append(found))
        if isinstance(module, IELIF):
            module.register_forward_pre_hook(lambda module, given: read.append(given[0]))
    model(torch.randn(2, 3, 32, 32))
    assert len(read) == sum(isinstance(module, IELIF) for module in model.modules())
    addresses = {x.data_ptr() for x in normed}
    assert all(x.data_ptr() in addresses for x in read)

    # So scale and offset of its norm are the window of a neuron that has it from 0 to 1.
    x, low, width = torch.randn(1000), 0.25, 2.0
    scale, offset = 1 / width, -low / width
    assert torch.equal(spike_count(x * scale + offset, 4), spike_count(x - low, 4, window=width))


def test_what_other_step_sizes_to_begin_with_are_worth_is_that_of_their_rows() -> None:
    rows = read_rows(RESULTS / "cifar10-step-sizes.csv")
    page = section("## Closing the gap on Spikformer")
    bases = {"rectified": "ablation-cifar10-spikformer", "bits-2": "ablation-cifar10-bits"}
    for variant, name in bases.items():
        given = {"data.root": "elsewhere", "model.start_from": "runs/start-0.ckpt"}
        grid = with_output(load_grid(name), "out", given)
        own = [row for row in rows if row["variant"] == variant and int(row["seed"]) == 0]
        assert {row["digest"] for row in own} == {digest(grid, variant)}
    for label, sign, text in (
        ("4 bits, least error", -1, "loses {} points at 4 bits (95 % interval {})"),
        ("2 bits, least error", -1, "**{} at 2 bits** ({})"),
        ("4 bits, twice as large", 1, "it gains {} ({})"),
    ):
        chosen = [row for row in rows if row["label"] == label]
        variant = chosen[0]["variant"]
        base = accuracies(read_rows(RESULTS / f"{bases[variant]}.csv"), variant)
        found = paired_difference(*(base, accuracies(chosen, variant))[::sign])
        assert found[2] == 3
        assert text.format(f"{found[0]:.1f}", interval(found)) in page


def test_two_processors_of_a_kind_train_the_same_networks() -> None:
    rows = read_rows(RESULTS / "ablation-cifar10-gap.csv")
    here = {(row["variant"], row["seed"], row["digest"]): row for row in rows}
    others = read_rows(RESULTS / "cifar10-gap-zen5.csv")
    assert [row["variant"] for row in others] == ["ann", "fgd-10-from-ann", "double-rate"]
    measured = ("accuracy", "firing_rate", "active_groups", "additions")
    measured += tuple(f"{kind}_{name}" for kind in ("entropy", "rate") for name in "qkv")
    for row in others:
        same = here[row["variant"], row["seed"], row["digest"]]
        assert [row[key] for key in measured] == [same[key] for key in measured]


def test_what_bits_levels_and_activity_are_worth_is_that_of_their_rows() -> None:
    grid = load_grid("ablation-cifar10-bits")
    rows = read_rows(RESULTS / "ablation-cifar10-bits.csv")
    assert {row["digest"] for row in rows} == {digest(grid, row["variant"]) for row in rows}
    page = section("## Bits, levels and activity on Spikformer")
    compared = [line for line in table_lines(grid, rows) if line.startswith("- ")]
    assert len(compared) == len(grid.compare)
    assert set(compared) <= set(page.splitlines())

    mean = partial(mean_value, rows)
    pairs = [("levels-1", "rectified"), ("levels-2", "rectified"), ("rectified", "levels-8")]
    pairs += [("bits-3", "rectified"), ("bits-2", "rectified"), ("ternary", "bits-2")]
    pairs += [("bits-2", "bits-2-fgd"), ("rectified", "group-40"), ("rectified", "group-25")]
    pairs += [("group-10", "rectified")]
    for low, high in pairs:
        found = paired_difference(*(accuracies(rows, name) for name in (low, high)))
        told = rf" {found[0]:.1f}(?: points[a-z ]*)? \((?:95 % interval )?{interval(found)}\)"
        assert re.search(told, page), (low, high)
    shares = [
        f"{100 * mean(n, 'uj_twin_skip') / mean(n, 'uj_bit_aware'):.0f}"
        for n in ("rectified", "levels-8", "group-40", "group-25", "group-10")
    ]
    assert "takes less**: {} % of the energy at D = 4, {} at D = 8".format(*shares[:2]) in page
    assert "({}, {} and {} % where the penalty is on".format(*shares[2:]) in page
    left = [f"{100 * mean(f'group-{n}', 'active_groups'):.0f}" for n in (40, 25, 10)]
    assert "{}, {} and {} % of the groups stay active".format(*left) in page
    seeds = [f"{value:.1f}" for value in sorted(accuracies(rows, "group-10").values())]
    assert "({} against {} and {} %)".format(*seeds) in page
    by_accuracy = sorted((n for n in grid.names if n != "ann"), key=mean)
    assert by_accuracy[-1] == "bits-2-fgd"
    assert f"**Two taught bits ({100 * mean('bits-2-fgd'):.1f} %) are worth more than" in page


def test_what_spikes_cost_the_architectures_is_that_of_their_rows() -> None:
    rows = read_rows(RESULTS / "ablation-cifar10-architectures.csv")

    mean = partial(mean_value, rows)

    def below(variant: str, ann: str) -> str:
        return f"{100 * (mean(ann) - mean(variant)):.1f}"

    counts = [below(n, f"{n}-ann") for n in ("meta", "e", "sdt", "spikformer")]
    binary = [below(f"{n}-lif", f"{n}-ann") for n in ("sdt", "spikformer")]
    worth = [below(f"{n}-lif", n) for n in ("sdt", "spikformer")]
    energies = [mean(n, "uj_bit_aware") for n in ("sdt-lif", "sdt", "spikformer-lif", "spikformer")]
    less = [1 - energies[i] / energies[i + 1] for i in (0, 2)]
    assert "**Spikes cost the four {}, {}, {} and {} points**".format(*counts) in PAGE
    assert "SDT v1 and Spikformer {} and {}:".format(*binary) in PAGE
    assert "of one step are worth {} and {} points".format(*worth) in PAGE
    assert f"and {100 * less[0]:.0f} and {100 * less[1]:.0f} % less bit-aware energy" in PAGE
    found = partial(accuracies, rows)
    close = paired_difference(found("spikformer"), found("sdt"))
    assert f"({close[0]:.1f} points above it, 95 % interval {interval(close)})" in PAGE
    published = paired_difference(found("e-counts"), found("e"))
    cost = f"cost it {published[0]:.1f} points in 3 epochs** (95 % interval {interval(published)})"
    assert cost in PAGE
    times = mean("e", "additions") / mean("e-counts", "additions")
    assert f"come back, for {times:.1f} times the additions" in PAGE
    ahead = [
        100 * (mean(f"{a}{kind}") - mean(f"{b}{kind}"))
        for a in ("sdt", "spikformer")
        for b in ("meta", "e")
        for kind in ("", "-ann")
    ]
    assert f"are {min(ahead):.0f} to {max(ahead):.0f} points above Meta-SpikeFormer and E" in PAGE
    kinds = [(mean(n, "additions") / 1e6, mean(n, "uj_bit_aware")) for n in ("sdt", "spikformer")]
    (few, little), (many, much) = kinds
    assert f"with {few:.1f} million additions in place of {many:.1f}" in PAGE
    assert f"and {little:.2f} µJ in place of {much:.2f}" in PAGE


def test_the_networks_of_two_million_parameters_are_those_of_their_rows() -> None:
    with (RESULTS / "cifar10-small.csv").open(newline="", encoding="utf-8") as file:
        ann, *spiking = list(csv.DictReader(file))[:4]
    cells = [f"{float(ann['accuracy']):.2%}"[:-1], ann["minutes"], "–", f"{ann['macs_m']} (MACs)"]
    assert f"| ANN fp32 | {' | '.join(cells)} | {ann['bit_aware_uj']} |" in PAGE
    for row in spiking:
        cells = [f"{float(row['accuracy']):.2%}"[:-1], row["minutes"]]
        cells += [f"{int(row['packed_kib']):,}", row["additions_m"], row["bit_aware_uj"]]
        assert f" | {' | '.join(cells)} |" in PAGE, row["network"]


def test_the_networks_of_the_original_pixels_are_those_of_their_rows() -> None:
    text = section("### On the original pixels")
    with (RESULTS / "cifar10-small.csv").open(newline="", encoding="utf-8") as file:
        rows = {row["network"]: row for row in csv.DictReader(file)}
    ann, student = (
        rows[f"{name}, original pixels"] for name in ("ANN fp32", "4 bits, IE-LIF D = 4")
    )
    accuracy = {name: 100 * float(row["accuracy"]) for name, row in rows.items()}
    best, taught = accuracy[ann["network"]], accuracy[student["network"]]
    work = f"{ann['macs_m']} (MACs) | {ann['bit_aware_uj']}"
    assert f"| ANN fp32, 30 epochs | {best:.2f} | {ann['minutes']} | – | {work} |" in text
    sparse, two_bits = (
        rows[f"… original pixels, and {what}"] for what in ("a penalty on active groups", "2 bits")
    )
    for row in (student, sparse, two_bits):
        cells = [f"{accuracy[row['network']]:.2f}", row["minutes"], f"{int(row['packed_kib']):,}"]
        cells += [row["additions_m"], row["bit_aware_uj"]]
        assert f" | {' | '.join(cells)} |" in text
    minutes = int(ann["minutes"]) + int(student["minutes"])
    assert taught >= 90
    assert minutes <= 180
    assert f"{taught:.2f} % after {minutes} minutes of both cores, teacher included, " in text
    assert f"{best - taught:.1f} points below its ANN" in text
    costs = (best - accuracy["ANN fp32"], taught - accuracy["4 bits, IE-LIF D = 4"])
    assert "cost the ANN {:.1f} points and the 4-bit network {:.1f}**".format(*costs) in text
    assert f"cost an ANN of 2 M parameters {costs[0]:.1f} points" in PAGE
    with (RESULTS / "cifar10-original-pixels.csv").open(newline="", encoding="utf-8") as file:
        crossed = list(csv.DictReader(file))
    for row in crossed:
        cells = [row["learned_from"], row["network"], row["jpeg"], row["original"] or "–"]
        assert f"| {' | '.join(cells)} |" in text
    changes = [float(row["original"]) - float(row["jpeg"]) for row in crossed[1:]]
    assert all(0 < change < 1 for change in changes[:3])
    assert f"loses {min(changes[3:]):.1f} to {max(changes[3:]):.1f} on the files" in text
    less = 1 - float(sparse["additions_m"]) / float(student["additions_m"])
    lost = [taught - accuracy[row["network"]] for row in (sparse, two_bits)]
    assert f"takes {100 * less:.0f} % of the additions for {lost[0]:.1f} points, two" in text
    assert f"half of the bytes for {lost[1]:.1f}, where" in text
    line = readme_row("| CIFAR-10, Spike-driven Transformer v1")
    assert f"images {taught:.1f} % (1,059 kB" in line
    assert f"ANN {best:.1f} %, {minutes} minutes of both cores" in line


def test_what_bfloat16_costs_is_as_the_page_says() -> None:
    with_it, without = (
        accuracies(read_rows(RESULTS / f"{name}.csv"), "rectified")
        for name in ("cifar10-spikformer-bf16", "ablation-cifar10-spikformer")
    )
    mean, half, n = paired_difference(without, with_it)
    page = " ".join(PAGE.split())
    low, high = (f"{value:+.1f}".replace("-", "−") for value in (mean - half, mean + half))
    assert n == 3
    assert f"95 % interval of the difference {low} to {high} points" in page
    for found in (with_it, without):
        values = [f"{found[seed]:.2f}" for seed in range(3)]
        assert f"{values[0]}, {values[1]} and {values[2]} %" in page


def test_the_readme_says_of_the_remedies_what_the_page_says() -> None:
    rows = read_rows(RESULTS / "ablation-cifar10-spikformer.csv")
    line = readme_row("| the remedies on CIFAR-10")
    named = {"direct 4-bit LIF": "lif-4bit", "IE-LIF": "plain", "rectified": "rectified"}
    named |= {"(weight 10)": "fgd-10", "fp32 ANN": "ann", "in fp32": "lif-fp32"}
    for label, variant in named.items():
        assert f"{label} {mean_sd(rows, variant)}" in line, label
    assert f"and {closed(rows)} of the gap from direct LIF to the ANN is closed" in line
    gained = paired_difference(accuracies(rows, "lif-4bit"), accuracies(rows, "plain"))
    assert f"(IE-LIF over LIF by {gained[0]:.1f}, 95 % interval {interval(gained)})" in line


def test_the_readme_says_of_the_gap_what_the_rows_say() -> None:
    spikformer, meta = (
        partial(accuracies, read_rows(RESULTS / f"ablation-{name}.csv"))
        for name in ("cifar10-gap", "cifar10")
    )
    line = readme_row("| what closes the gap")
    gaps = {
        name: paired_differences(found(name), found("ann"))
        for found, names in ((spikformer, ("fgd-10-together", "fgd-10")), (meta, ("rectified",)))
        for name in names
    }
    gaps["untaught"] = paired_differences(spikformer("rectified"), spikformer("ann"))
    shown = {name: with_sd(gap) for name, gap in gaps.items()}
    lowest, highest = (f(gaps["fgd-10-together"]) for f in (min, max))
    assert f"rectified: {shown['fgd-10-together']} points (sd) below its ANN" in line
    assert f"by seed {lowest:.1f} to {highest:.1f} (1.5" in line
    assert f"FGD alone {shown['fgd-10']}, untaught {shown['untaught']})" in line
    above = paired_difference(meta("ann"), meta("fgd-10"))
    assert f"10: {above[0]:.1f} points above its ANN (95 % interval {interval(above)})" in line
    assert f"untaught {shown['rectified']} below" in line


def test_the_readme_says_of_bits_and_activity_what_the_rows_say() -> None:
    rows = read_rows(RESULTS / "ablation-cifar10-bits.csv")
    line = readme_row("| bits and spike activity")
    assert f"taught 2-bit network {mean_sd(rows, 'bits-2-fgd')} %" in line
    assert (
        f"(untaught {mean_sd(rows, 'bits-2')}, in fp32 {mean_sd(rows, 'full-precision')})" in line
    )
    for share, sign in ((40, 1), (25, 1), (10, -1)):
        pair = (accuracies(rows, name) for name in ("rectified", f"group-{share}")[::sign])
        found = paired_difference(*pair)
        assert f"{found[0]:.1f} points ({interval(found)})" in line, share
    spiking, skipping = (
        mean_value(rows, "rectified", f"uj_{k}") for k in ("bit_aware", "twin_skip")
    )
    assert f"takes {100 * skipping / spiking:.0f} % of its energy" in line
