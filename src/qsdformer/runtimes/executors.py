"""The ways to execute a trained network, behind one interface, for `qsd verify` and `qsd bench`.

An executor takes uint8 pixels (B, C, H, W) and gives real logits (B, classes), or of a network
without logits its real outputs (T*B, C, H, W) by name; and, if asked and able to, the spike counts
of every neuron. Others join by `register`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from qsdformer.data.preprocessing import Preprocessing
from qsdformer.errors import UserError
from qsdformer.graph.integer import IntegerGraph
from qsdformer.graph.ops import Array
from qsdformer.graph.spikes import trace_quantised
from qsdformer.graph.trace import Tracings
from qsdformer.runtimes.binary import multi_bit_of, run_binary_of

Results = Array | dict[str, Array]
Output = tuple[Results, dict[str, Array] | None]
# Runs pixels; with collect=False it leaves the counts out and need not spend time on them.
Run = Callable[[Array, bool], Output]


class Factory(Protocol):
    """Prepares an executor of a model and its integer graph; None if its runtime is missing."""

    def __call__(self, model: nn.Module, graph: IntegerGraph) -> Run | None: ...


@dataclass(frozen=True, kw_only=True)
class Executor:
    """A named way of execution, and what is promised of it against multi-bit evaluation."""

    name: str
    factory: Factory
    equal_counts: bool = False  # every spike count is the same, where D and T are powers of two
    of_graph: bool = False  # needs the integer graph only, so that artifacts can be run
    # Least share of equal top-1 classes over 1,000 images or more; `promised` says it for 16 bits.
    agreement: float | None = None
    exact: bool = False  # every count and result is that of the executor `integer`


# The most that graphs with 16-bit membranes are held to: 98.8 % of classes were the same on
# Fashion-MNIST (README, benchmarks/membrane_formats.py).
AGREEMENT_16_BITS = 0.98
EXECUTORS: dict[str, Executor] = {}
REFERENCE = "multi-bit"
INTEGER = "integer"  # the reference where there is only an artifact


def register(executor: Executor) -> None:
    """Add a way of execution; ValueError if its name is taken."""
    if executor.name in EXECUTORS:
        raise ValueError(f"an executor named {executor.name!r} is registered already")
    EXECUTORS[executor.name] = executor


def promised(executor: Executor, membrane_bits: int) -> float | None:
    """The least share of equal classes that `executor` is held to on a graph; None for no promise.

    Membranes of 16 bits are coarser than those of evaluation, and move more counts.
    """
    if executor.agreement is None or membrane_bits > 16:
        return executor.agreement
    return min(executor.agreement, AGREEMENT_16_BITS)


def normalised(pixels: Array, pre: Preprocessing) -> Tensor:
    """Pixels (B, C, H, W) uint8 as the float model takes them."""
    mean, std = (torch.tensor(v).view(-1, 1, 1) for v in (pre.mean, pre.std))
    return (torch.from_numpy(pixels) / 255.0 - mean) / std


def to_pixels(images: Tensor, pre: Preprocessing) -> Array:
    """The inverse of `normalised`, rounded to whole pixel values; whole numbers are pixels.

    Raises `UserError` for whole numbers beyond 0..255, and floats that are not finite.
    """
    if images.dtype == torch.uint8:
        return images.cpu().numpy()
    if not images.is_floating_point():
        if images.numel() and not (images.min() >= 0 and images.max() <= 255):
            raise UserError("images of whole numbers must be pixels, 0 to 255")
        return images.to(torch.uint8).cpu().numpy()
    if not images.isfinite().all():
        raise UserError("there are values in the images that are not finite")
    mean, std = (torch.tensor(v, dtype=torch.float64).view(-1, 1, 1) for v in (pre.mean, pre.std))
    values = (images.double().cpu() * std + mean) * 255.0
    return values.round().clamp(0, 255).to(torch.uint8).numpy()


_shared: ContextVar[Tracings | None] = ContextVar("tracings", default=None)


@contextlib.contextmanager
def one_tracing(model: nn.Module) -> Iterator[None]:
    """Executors of `model` that are prepared inside the block trace each shape once for all."""
    token = _shared.set(Tracings(model, trace_quantised))
    try:
        yield
    finally:
        _shared.reset(token)


def _multi_bit(model: nn.Module, graph: IntegerGraph) -> Run:
    tracings = _shared.get() or Tracings(model)

    def run(pixels: Array, collect: bool) -> Output:
        images = normalised(pixels, graph.preprocessing).to(_device(model))
        if collect:
            outputs, counts = multi_bit_of(tracings.of(images), images)
            found = {name: _array(c) for name, c in counts.items()}
            return _results(graph, outputs, tracings, images), found
        with torch.no_grad():
            return _results(graph, named_outputs(model(images)), tracings, images), None

    return run


def _binary(model: nn.Module, graph: IntegerGraph) -> Run:
    tracings = _shared.get() or Tracings(model, trace_quantised)

    def run(pixels: Array, collect: bool) -> Output:
        images = normalised(pixels, graph.preprocessing).to(_device(model))
        result = run_binary_of(tracings.of(images), images)
        counts = {name: _array(c) for name, c in result.counts.items()}
        return _results(graph, result.outputs, tracings, images), counts

    return run


def _integer(model: nn.Module, graph: IntegerGraph) -> Run:
    def run(pixels: Array, collect: bool) -> Output:
        values, counts = graph.reference.run_results(pixels, collect=collect)
        return graph.real_results(values), counts if collect else None

    return run


def named_outputs(found: Any) -> dict[str, Tensor]:
    """What a model returned by the names that its trace gives it."""
    if isinstance(found, Tensor):
        return {"output": found}
    if isinstance(found, dict):
        return {str(name): value for name, value in found.items()}
    return {f"output{i}": value for i, value in enumerate(found)}


def _results(
    graph: IntegerGraph, outputs: dict[str, Tensor], tracings: Tracings, images: Tensor
) -> Results:
    """A model's outputs as executors give them: logits (B, classes), or maps (B, C, H, W)."""
    if graph.class_names:
        (logits,) = outputs.values()
        return _array(logits.flatten(1))
    steps = tracings.of(images).outputs  # which axes mean what; logits need no trace for that
    return {
        name: _array(steps[name].channels_first(value).reshape(-1, *steps[name].size))
        for name, value in outputs.items()
    }


def _device(model: nn.Module) -> torch.device:
    return next(model.parameters()).device


def _array(x: Tensor) -> Array:
    return x.detach().cpu().numpy()


register(Executor(name=REFERENCE, factory=_multi_bit))
register(Executor(name="binary spikes", factory=_binary, equal_counts=True))
register(Executor(name=INTEGER, factory=_integer, agreement=0.999, of_graph=True))
