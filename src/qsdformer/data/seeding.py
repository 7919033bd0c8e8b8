"""Random numbers of libraries that draw from global generators, tied to one image's key."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator

import numpy as np
import torch


@contextlib.contextmanager
def keep_random_state() -> Iterator[None]:
    """Put back the state of the three global generators that timm's transforms draw from."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])  # noqa: NPY002
        torch.set_rng_state(states[2])


def seed_everything(key: int) -> None:
    """Seed those generators; use it inside `keep_random_state`."""
    random.seed(key)
    np.random.seed(key % 2**32)  # noqa: NPY002
    # Not torch.manual_seed: that would also reset the generators of GPUs.
    torch.default_generator.manual_seed(key % 2**63)
