"""A model as a graph of named operations: the one definition of what it computes, in which order.

The graph comes from the modules' own forward (`tracer.py`). Each `Step` says what it is (`kind`),
which steps it reads, and how its value lies in memory. Readers give every kind a meaning of their
own: binary spikes, symbolic integers, a list of operations, or simply the real numbers.

Legend: T time steps, B batch, C channels, H x W grid, N = H*W tokens. A value's axes are written
as letters, "nchw" for instance, where n is T*B, time slowest; "tb" is n split in two, "p" the grid
as one axis of tokens.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import Tensor, nn
from torch.utils._pytree import tree_map

from qsdformer.errors import UserError
from qsdformer.graph.tracer import called, record

Kind = Literal[
    "image",
    "conv",
    "conv_transpose",
    "linear",
    "border_conv",
    "norm",
    "scale",
    "shift",
    "neuron",
    "attention",
    "add",
    "multiply",
    "repeat",
    "time_sum",
    "spatial_sum",
    "max_pool",
    "avg_pool",
    "plane_pool",
    "upsample",
    "concat",
    "view",
]

BATCH = 2  # images to trace with where no number is given: not 1, which reshapes could drop
# What makes logits, and what may follow it.
HEADS = ("conv", "linear")
AFTER_HEAD = ("time_sum", "spatial_sum", "view", "norm", "scale", "shift", "add")


@dataclass(frozen=True, eq=False)
class Constant:
    """A value made of parameters alone; computed when asked for, so that it follows them."""

    compute: Callable[[], Tensor]


@dataclass(frozen=True, kw_only=True, eq=False)
class Step:
    """One operation on one image or more.

    `name` is the dotted name of the module, or that of the module in whose forward the operation
    stands, a dot and what it does. The value has T = `time` steps, `size` = (C, H, W) and `axes`;
    `options` hold what else `kind` needs. `run` computes it from the values of `inputs`.
    """

    name: str
    kind: Kind
    inputs: tuple[Step, ...]
    time: int
    size: tuple[int, int, int]
    axes: str
    module: nn.Module | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    call: tuple[Callable[..., Any], Any, Any] | None = None  # function, arguments, keywords

    def run(self, *values: Any) -> Any:
        """The value in ordinary evaluation, from the values of `inputs` in their order."""
        assert self.call is not None
        function, args, kwargs = self.call
        if not kwargs and args == self.inputs:
            return function(*values)
        known = dict(zip(self.inputs, values, strict=True))

        def look_up(a: Any) -> Any:
            if isinstance(a, Step):
                return known[a]
            return a.compute() if isinstance(a, Constant) else a

        return function(*tree_map(look_up, args), **tree_map(look_up, kwargs))

    def channels_first(self, value: Tensor) -> Tensor:
        """`value` with channels before the grid, also where tokens come before channels."""
        return value.transpose(-2, -1) if self.axes.endswith("pc") else value

    @property
    def channels(self) -> int:
        """C."""
        return self.size[0]

    @property
    def tokens(self) -> int:
        """H * W."""
        return self.size[1] * self.size[2]


@dataclass(frozen=True, kw_only=True, eq=False)
class Traced:
    """The steps of a model in execution order; the first is the image.

    `outputs` are the results by name; a model that returns one tensor calls it "output". `shape`
    is that of the images it was traced with, the only one that the steps can run on.
    """

    steps: tuple[Step, ...]
    outputs: Mapping[str, Step]
    shape: tuple[int, ...]

    @property
    def image(self) -> Step:
        """The step that stands for the images."""
        return self.steps[0]

    def of_kind(self, *kinds: Kind) -> list[Step]:
        """The steps of some kinds, in order."""
        return [step for step in self.steps if step.kind in kinds]

    def walk(self, image: Any, do: Callable[..., Any]) -> dict[str, Any]:
        """Carry out all steps: `do(step, *values of its inputs)`; returns the outputs by name."""
        values = {self.image: image}
        last_use = {x: step for step in self.steps for x in step.inputs}
        kept = {self.image, *self.outputs.values()}
        for step in self.steps[1:]:
            values[step] = do(step, *(values[x] for x in step.inputs))
            for x in set(step.inputs):
                if last_use[x] is step and x not in kept:
                    del values[x]
        return {name: values[step] for name, step in self.outputs.items()}


def trace(model: nn.Module, shape: Sequence[int]) -> Traced:
    """The graph of `model`, in eval mode, for images of `shape`.

    `shape` is (B, C, H, W), or (T, B, C, H, W) for frames. The model may be on any device, meta
    included; its weights are read only when steps are run. Raises `UserError`, one line that
    names the module, for a model in training mode, a forward that decides by the values of
    tensors or keeps a state, and for what is not supported.
    """
    from qsdformer.graph.reading import read

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
    """A model's configuration as plain values; empty for a model without one."""
    config: Any = getattr(model, "config", None)
    return config.to_dict() if hasattr(config, "to_dict") else {}


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
