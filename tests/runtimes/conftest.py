"""Shared by tests of the native engine."""

from __future__ import annotations

import pytest

from qsdformer.errors import UserError
from qsdformer.graph.integer import IntegerGraph
from qsdformer.runtimes import native

# Instruction sets, and whether sums are made by the active groups alone, of each pixel or of each
# tile; not all sets can do that.
SETS = (
    "amx",
    "amx by events",
    "amx by tiles",
    "avx512vnni",
    "avx512vnni by events",
    "avx512vnni by tiles",
    "avxvnni",
    "avx2",
    "avx2 by tiles",
    "portable",
)


@pytest.fixture(params=SETS)
def isa(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, small_graph: IntegerGraph
) -> str:
    """Each instruction set that this processor has, for the models that the test makes."""
    name, _, events = request.param.partition(" by ")
    monkeypatch.setenv("QSD_NATIVE_ISA", name)
    monkeypatch.setenv(
        "QSD_NATIVE_EVENTS", {"events": "always", "tiles": "tiles"}.get(events, "never")
    )
    try:
        found = native.of_graph(small_graph).isa
    except UserError as error:
        if "instruction set" not in str(error):
            raise
        pytest.skip(f"this processor has no {name}")
    assert found == name
    return found
