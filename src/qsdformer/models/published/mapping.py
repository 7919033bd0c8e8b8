"""What a family says of its published checkpoints, and helpers to say it."""

from __future__ import annotations

import argparse
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from qsdformer.errors import UserError
from qsdformer.models.base import SpikingTransformer

# (our key, published key, kind); kind is "conv", "step" (a step size) or "plain".
Pair = tuple[str, str, str]

# What the published networks with LIF neurons and weights in full precision have in common.
LIF: dict[str, Any] = {
    "weight_bits": None,
    "stem_bits": None,
    "head_bits": None,
    "neuron": "lif",
    "levels": 1,
    "tau": 2.0,
    "threshold": 1.0,
    "rectify": "none",
    "residual_gain": 1.0,
}

_NORM = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")


@dataclass(frozen=True, kw_only=True)
class Told:
    """What is known of a checkpoint's network besides its tensors.

    `given` are the caller's arguments, None where they give nothing; `saved` are the training
    script's arguments, where the file has them.
    """

    path: str
    given: Mapping[str, Any]
    saved: argparse.Namespace | None = None

    def find(self, name: str, *saved_names: str) -> Any:
        """The caller's value, else the file's under one of `saved_names`, else None."""
        if self.given.get(name) is not None:
            return self.given[name]
        values = (getattr(self.saved, saved, None) for saved in saved_names)
        return next((value for value in values if value is not None), None)

    def need(self, name: str, *saved_names: str, example: str) -> Any:
        """As `find`; a `UserError` that asks for the value where neither has it."""
        value = self.find(name, *saved_names)
        if value is None:
            option = f"--{name.replace('_', '-')}"
            raise UserError(
                f"{self.path}: the file does not tell {name}: give it, {example} ({option})"
            )
        return value

    def ignore(self, network: str, *names: str) -> None:
        """A warning for arguments that say nothing about this network, and change nothing."""
        for name in names:
            if self.given.get(name) not in (None, False):
                warnings.warn(
                    f"{self.path}: {name} is ignored: {network} has no such choice", stacklevel=4
                )


class State:
    """A published state dict whose tensors are asked for by name and number of dimensions."""

    def __init__(self, tensors: Mapping[str, Any], path: str) -> None:
        self.tensors = tensors
        self.path = path

    def shape(self, key: str, *dimensions: int) -> torch.Size:
        """The shape of a tensor; `UserError` where it is missing or has other dimensions."""
        value = self.tensors.get(key)
        if not isinstance(value, Tensor):
            raise UserError(f"{self.path}: missing key {key!r}")
        if value.dim() not in dimensions:
            raise UserError(f"{self.path}: key {key!r} has shape {tuple(value.shape)}")
        if 0 in value.shape:
            raise UserError(f"{self.path}: key {key!r} is empty, of shape {tuple(value.shape)}")
        return value.shape

    def dims(self, key: str) -> int | None:
        """The number of dimensions of a tensor; None where it is missing."""
        value = self.tensors.get(key)
        return value.dim() if isinstance(value, Tensor) else None

    def has(self, pattern: str) -> bool:
        """Whether a key matches the pattern from its start to its end."""
        return any(re.fullmatch(pattern, key) for key in self.tensors)

    def count(self, pattern: str) -> int:
        """How many different beginnings of keys match the pattern."""
        return len({m.group() for key in self.tensors if (m := re.match(pattern, key))})


@dataclass(frozen=True, kw_only=True)
class Published:
    """How to read one published program's checkpoints.

    `recognises` tells whether a state dict is of this network. `fields` gives the configuration's
    fields from it and from what is told; `pairs` all tensors of a model; `ignored` matches keys
    that the network of a state dict holds and never uses; `finish` may correct the loaded model.
    """

    name: str
    recognises: Callable[[State], bool]
    fields: Callable[[State, Told], dict[str, Any]]
    config: Callable[..., Any]
    pairs: Callable[[Any, State], Iterable[Pair]]
    ignored: Callable[[State], re.Pattern[str]] = lambda state: re.compile(r"$^")
    finish: Callable[[SpikingTransformer, State, Mapping[str, str]], None] | None = None


def conv(ours: str, theirs: str, *, bias: bool = False) -> Iterator[Pair]:
    """A convolution or linear layer in full precision."""
    yield f"{ours}.weight", f"{theirs}.weight", "conv"
    if bias:
        yield f"{ours}.bias", f"{theirs}.bias", "plain"


def norm(ours: str, theirs: str) -> Iterator[Pair]:
    """A batch norm."""
    for name in _NORM:
        yield f"{ours}.{name}", f"{theirs}.{name}", "plain"
