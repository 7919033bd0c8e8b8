"""The steps of a traced model: what each does, what it reads, how its value lies in memory.

Legend: T time steps, B batch, C channels, H x W grid, N = H*W tokens. A value's axes are written
as letters, "nchw" for instance, where n is T*B, time slowest; "tb" is n split in two, "p" the grid
as one axis of tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import Tensor, nn
from torch.utils._pytree import tree_map

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
