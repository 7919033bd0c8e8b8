"""What accidents and malice do to files, for tests of their readers."""

from __future__ import annotations

import random
from typing import Any

ODD_VALUES: tuple[Any, ...] = (
    *(-1, 0, 1, 2, 7, 255, 65536, 2**31, 10**12, 2**64, -(2**63), 0.5, 1e308),
    *(True, None, "", "x", "\0", [], [0], [[]], {}, {"a": 1}),
)


def damaged(data: bytes, rng: random.Random) -> bytes:
    """What accidents do: a flipped bit, changed bytes, a cut, a hole, a repetition, junk."""
    kind = rng.randrange(6)
    at = rng.choice((rng.randrange(len(data)), rng.randrange(200)))
    if kind == 0:
        return data[:at] + bytes([data[at] ^ (1 << rng.randrange(8))]) + data[at + 1 :]
    if kind == 1:
        return data[:at] + rng.randbytes(rng.randint(1, 16)) + data[at + 16 :]
    if kind == 2:
        return data[:at]
    if kind == 3:
        return data[:at] + data[at + rng.randint(1, 300) :]
    if kind == 4:
        return data[:at] + data[at : at + rng.randint(1, 300)] + data[at:]
    return data + rng.randbytes(rng.randint(1, 50))


def change(place: Any, rng: random.Random) -> None:
    """Replace, remove or copy one value somewhere below `place`."""
    while isinstance(place, (dict, list)) and place:
        keys = list(place) if isinstance(place, dict) else list(range(len(place)))
        key = rng.choice(keys)
        if not isinstance(place[key], (dict, list)) or rng.random() < 0.15:
            kind = rng.randrange(5)
            if kind == 0:
                del place[key]
            elif kind == 1:
                place[key] = place[rng.choice(keys)]
            elif kind == 2 and type(place[key]) is int:
                place[key] += rng.choice((-1, 1, 8))
            else:
                place[key] = rng.choice(ODD_VALUES)
            return
        place = place[key]
