"""A model as a graph of named operations: the one definition of what it computes, in which order.

The graph comes from the modules' own forward (`tracer.py`). Each `Step` says what it is (`kind`),
which steps it reads, and how its value lies in memory. Readers give every kind a meaning of their
own: binary spikes, symbolic integers, a list of operations, or simply the real numbers.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from torch import Tensor, nn

from qsdformer.errors import UserError
from qsdformer.graph.reading import read
from qsdformer.graph.steps import Step, Traced
from qsdformer.graph.tracer import called, record

BATCH = 2  # images to trace with where no number is given: not 1, which reshapes could drop
# What makes logits, and what may follow it.
HEADS = ("conv", "linear")
AFTER_HEAD = ("time_sum", "spatial_sum", "view", "norm", "scale", "shift", "add")


def trace(model: nn.Module, shape: Sequence[int]) -> Traced:
    """The graph of `model`, in eval mode, for images of `shape`.

    `shape` is (B, C, H, W), or (T, B, C, H, W) for frames. The model may be on any device, meta
    included; its weights are read only when steps are run. Raises `UserError`, one line that
    names the module, for a model in training mode, a forward that decides by the values of
    tensors or keeps a state, and for what is not supported.
    """
    recorded, root = record(model, tuple(shape))
    return read(recorded, root, tuple(shape))


class Tracings:
    """The graphs of a model for the shapes of images that it meets, each traced once."""

    def __init__(
        self, model: nn.Module, tracing: Callable[[nn.Module, Sequence[int]], Traced] = trace
    ) -> None:
        self.model = model
        self._tracing = tracing
        self._known: dict[tuple[int, ...], Traced] = {}

    def of(self, images: Tensor) -> Traced:
        """The graph for images of this shape."""
        shape = tuple(images.shape)
        if shape not in self._known:
            self._known[shape] = self._tracing(self.model, shape)
        return self._known[shape]


def plain_config(model: nn.Module) -> dict[str, Any]:
    """A model's configuration as plain values; empty for a model without one.

    A user's model may have a `config` of any kind: what JSON does not hold is left out.
    """
    config: Any = getattr(model, "config", None)
    if isinstance(config, type) or not hasattr(config, "to_dict"):
        return {}
    try:
        values = config.to_dict()
        json.dumps(values, allow_nan=False)
    except (TypeError, ValueError):
        return {}
    return values if isinstance(values, dict) else {}


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """The model in eval mode inside the block, every module as it was after it."""
    modes = {m: m.training for m in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training


def has_logits(traced: Traced) -> bool:
    """Whether the model returns one tensor, and a layer made one number for each class of it."""
    step = next(iter(traced.outputs.values()))
    origin = step
    while origin.kind in AFTER_HEAD:
        origin = origin.inputs[0]
    return len(traced.outputs) == 1 and step.tokens == 1 and origin.kind in HEADS


def logits_step(traced: Traced) -> Step:
    """The one output, (B, classes); `UserError` for a model with others."""
    if not has_logits(traced):
        raise UserError("the model has no classification head: give a whole classifier")
    (step,) = traced.outputs.values()
    if step.time != 1:
        raise UserError(
            f"{called(step.name)}: the result still has {step.time} time steps: take their mean, "
            "with TimeMean for instance"
        )
    return step
