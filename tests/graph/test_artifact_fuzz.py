"""Mutated artifacts: refused in one line, or equal to what was exported; never a crash.

A few hundred mutants by default; QSD_FUZZ_MUTANTS=10000 makes more.
"""

from __future__ import annotations

import json
import os
import random

import pytest
from mutants import change, damaged

from graph.random_graphs import random_graph
from qsdformer.errors import UserError
from qsdformer.graph.artifact import from_bytes, to_bytes
from qsdformer.graph.container import sign
from qsdformer.graph.integer import IntegerGraph

MUTANTS = int(os.environ.get("QSD_FUZZ_MUTANTS", "500"))


def forged(data: bytes, rng: random.Random) -> bytes:
    """What malice does: a changed header, or changed bytes, with a right checksum."""
    start = 8 + int.from_bytes(data[:8], "little")
    if rng.random() < 0.2:
        at = rng.randrange(120, len(data))
        return sign(data[:at] + bytes([rng.randrange(256)]) + data[at + 1 :])
    header = json.loads(data[8:start])
    description = json.loads(header["__metadata__"]["qsdformer"])
    for _ in range(rng.randint(1, 3)):
        change(rng.choice((description, description.get("ops"), header)), rng)
    if isinstance(header.get("__metadata__"), dict):
        header["__metadata__"]["qsdformer"] = json.dumps(description)
    text = json.dumps(header, separators=(",", ":")).encode()
    return sign(len(text).to_bytes(8, "little") + text + data[start:])


def error_of(data: bytes) -> str | None:
    """What the reader says of `data`; None if it reads it. Any other exception is a crash."""
    try:
        from_bytes(data, "model.qsd")
    except UserError as error:
        return str(error)
    return None


@pytest.mark.parametrize("mutate", [damaged, forged])
def test_no_mutant_crashes_the_reader(small_graph: IntegerGraph, mutate):
    # Files of one network as it is trained, and of many small ones with every operation.
    files = [to_bytes(random_graph(seed)) for seed in range(20)] + [to_bytes(small_graph)] * 20
    rng = random.Random(0)
    refused = 0
    for number in range(MUTANTS // 2):
        data = files[number % len(files)]
        mutant = mutate(data, rng)
        if mutant == data:
            continue
        message = error_of(mutant)
        if message is None:
            # A forger may write a different graph, an accident may not.
            assert mutate is forged, number
            continue
        refused += 1
        assert message.startswith("model.qsd: "), number
        assert "\n" not in message, number
        assert len(message) < 600, number
    assert refused > 0.5 * MUTANTS / 2


def test_every_single_flipped_byte_is_noticed(small_graph: IntegerGraph):
    data = to_bytes(small_graph)
    rng = random.Random(1)
    places = range(len(data)) if MUTANTS >= 10_000 else rng.sample(range(len(data)), 300)
    for at in places:
        mutant = data[:at] + bytes([data[at] ^ rng.randint(1, 255)]) + data[at + 1 :]
        with pytest.raises(UserError):
            from_bytes(mutant)
