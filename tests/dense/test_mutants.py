"""Mutated artifacts of dense networks: refused in one line, or another network; never a crash."""

from __future__ import annotations

import random

import pytest
from graph.test_artifact_fuzz import MUTANTS, error_of, forged
from mutants import damaged

from dense.networks import detection_config, info_of, segmentation_config, settled
from qsdformer.errors import UserError
from qsdformer.graph.artifact import to_bytes
from qsdformer.runtimes import native
from qsdformer.tasks.deployment import deployable, lowered

CONFIGS = (
    segmentation_config(),
    detection_config(),
    detection_config(detector="mask_rcnn"),
)


@pytest.fixture(scope="module")
def files() -> list[bytes]:
    size = (32, 48)
    graphs = (lowered(deployable(settled(c), info_of(size)), info_of(size)) for c in CONFIGS)
    return [to_bytes(graph) for graph in graphs]


def native_error(data: bytes) -> str | None:
    try:
        native.NativeModel(data)
    except UserError as error:
        return str(error)
    return None


@pytest.mark.parametrize("mutate", [damaged, forged])
def test_no_mutant_of_a_dense_network_crashes_a_reader(files, mutate):
    rng = random.Random(0)
    refused = both = 0
    for number in range(MUTANTS // 4):
        data = files[number % len(files)]
        mutant = mutate(data, rng)
        if mutant == data:
            continue
        message = error_of(mutant)
        if message is None:
            assert mutate is forged, number
        else:
            refused += 1
            assert message.startswith("model.qsd: "), number
            assert "\n" not in message, number
            assert len(message) < 700, number
        if native.available():
            found = native_error(mutant)
            assert found is None or message is not None, (number, found)
            both += found is not None
    assert refused > 0.3 * MUTANTS / 4
    assert both > 0 or not native.available()
