"""Shared by tests of the native engine."""

from __future__ import annotations

import pytest

from qsdformer.errors import UserError
from qsdformer.graph.integer import IntegerGraph
from qsdformer.runtimes import native

# Instruction sets, and whether sums are made by active groups alone; not all sets can do that.
SETS = ("avx512vnni", "avx512vnni by events", "avxvnni", "avx2", "portable")


@pytest.fixture(params=SETS)
def isa(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, small_graph: IntegerGraph
) -> str:
    """Each instruction set that this processor has, for the models that the test makes."""
    name, _, events = request.param.partition(" by ")
    monkeypatch.setenv("QSD_NATIVE_ISA", name)
    monkeypatch.setenv("QSD_NATIVE_EVENTS", "always" if events else "never")
    try:
        found = native.of_graph(small_graph).isa
    except UserError as error:
        if "instruction set" not in str(error):
            raise
        pytest.skip(f"this processor has no {name}")
    assert found == name
    return found
