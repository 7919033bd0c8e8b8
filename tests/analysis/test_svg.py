from __future__ import annotations

import re
from itertools import pairwise

import pytest

from qsdformer.analysis.report import svg

TICK = re.compile(r'<text class="mid" x="([\d.]+)"[^>]*>([^<]*)</text>')


def horizontal_ticks(chart: str) -> dict[str, float]:
    """The text of each tick below the chart, and where its middle is."""
    return {text: float(x) for x, text in TICK.findall(chart)}


@pytest.mark.parametrize("epochs", range(1, 101))
def test_curves_of_any_number_of_epochs_have_whole_ticks(epochs: int) -> None:
    points = [(float(e), 2.5 / e) for e in range(1, epochs + 1)]
    ticks = horizontal_ticks(svg.lines({"loss": points}, "epoch", "loss"))
    assert all(text.isdecimal() for text in ticks)
    assert min(epochs, 2) <= len(ticks) <= 8


@pytest.mark.parametrize("ratio", [1.0, 1.01, 1.5, 3, 5, 6, 8, 20, 100, 3000])
@pytest.mark.parametrize("smallest", [0.0123, 0.9, 340, 2030, 31_000])
def test_ticks_of_a_size_are_round_numbers_inside_the_chart(smallest: float, ratio: float) -> None:
    points = {"a": (smallest, 98.1), "b": (smallest * ratio, 99.2)}
    ticks = horizontal_ticks(svg.scatter(points, "packed (KiB)", "top-1 (%)"))
    assert 3 <= len(ticks) <= 8
    assert not any("e" in text for text in ticks)
    spans = sorted((x - 3.5 * len(text), x + 3.5 * len(text)) for text, x in ticks.items())
    assert spans[0][0] >= 0
    assert spans[-1][1] <= svg.WIDTH
    assert all(end <= begin for (_, end), (begin, _) in pairwise(spans))


def test_ticks_close_together_differ() -> None:
    assert list(svg.ticks_of(98.001, 98.003).values()) == [
        "98.001",
        "98.0015",
        "98.002",
        "98.0025",
        "98.003",
    ]
