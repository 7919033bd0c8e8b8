"""Shared by tests of the native engine."""

from __future__ import annotations

import pytest

from qsdformer.errors import UserError
from qsdformer.graph.integer import IntegerGraph
from qsdformer.runtimes import native

SETS = ("avx512vnni", "avxvnni", "avx2", "portable")


@pytest.fixture(params=SETS)
def isa(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, small_graph: IntegerGraph
) -> str:
    """Each instruction set that this processor has, for the models that the test makes."""
    monkeypatch.setenv("QSD_NATIVE_ISA", request.param)
    try:
        found = native.of_graph(small_graph).isa
    except UserError as error:
        if "instruction set" not in str(error):
            raise
        pytest.skip(f"this processor has no {request.param}")
    assert found == request.param
    return found
