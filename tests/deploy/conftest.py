"""Shared by the deployment tests: small models whose neurons fire, and one graph."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest

from deploy.helpers import info_for
from qsdformer.backbone import MetaSpikeFormer
from qsdformer.deploy.graph import IntegerGraph
from qsdformer.deploy.lowering import lower


@pytest.fixture(scope="session")
def lively(
    make_model: Callable[..., MetaSpikeFormer], settle: Callable[..., MetaSpikeFormer]
) -> Callable[..., MetaSpikeFormer]:
    """Makes small models in eval mode whose neurons fire."""
    made: dict[str, MetaSpikeFormer] = {}

    def make(**fields: Any) -> MetaSpikeFormer:
        key = repr(sorted(fields.items()))
        if key not in made:
            made[key] = settle(make_model(**fields))
        return copy.deepcopy(made[key])

    return make


@pytest.fixture(scope="session")
def small_graph(lively: Callable[..., MetaSpikeFormer]) -> IntegerGraph:
    """The integer graph of a small published-variant model with 3-bit weights."""
    model = lively(weight_bits=3)
    return lower(model, info_for(model))
