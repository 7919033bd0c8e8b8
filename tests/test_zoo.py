"""The trained networks that the project keeps: each file runs, and its card knows it."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from qsdformer.graph.artifact import load_artifact
from qsdformer.graph.check import check_graph
from qsdformer.runtimes import native

ZOO = Path(__file__).parents[1] / "zoo"
FILES = sorted(ZOO.glob("*.qsd"))
LARGEST = 2_000_000  # bytes


def test_the_zoo_is_not_empty_and_lists_every_file():
    index = (ZOO / "README.md").read_text(encoding="utf-8")
    assert FILES
    assert re.findall(r"\[([\w-]+\.qsd)\]", index) == [path.name for path in FILES]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_card_says_how_large_the_file_is_and_how_to_repeat_its_figure(path: Path):
    card = path.with_suffix(".md").read_text(encoding="utf-8")
    assert f"{path.stat().st_size:,} bytes" in card
    assert path.stat().st_size < LARGEST
    assert f"qsd eval zoo/{path.name} --data.root" in card
    assert "--data.split test" in card
    for word in ("data", "recipe", "commit", "**Limits.**"):
        assert word in card


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
@pytest.mark.skipif(not native.available(), reason="the native engine was not built")
def test_the_native_engine_gives_the_integers_of_the_reference(path: Path):
    graph = load_artifact(path)
    check_graph(graph)
    height, width = graph.preprocessing.sides
    shape = (1, graph.preprocessing.channels, height, width)
    image = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    found, expected = native.load(path).run_outputs(image), graph.run_outputs(image)
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        assert np.array_equal(found[name], values), name
