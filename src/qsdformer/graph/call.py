"""One call in a traced forward: its arguments, and the step that can be made of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import fx, nn

from qsdformer.errors import UserError
from qsdformer.graph.naming import Names, spelled
from qsdformer.graph.steps import Kind, Step
from qsdformer.graph.tracer import called, shape_of

FIRST = ("input", "tensors")  # what torch calls the first argument of a function


class Call:
    """A node of the recorded graph, the arguments it was called with, and the steps they are."""

    def __init__(
        self,
        node: fx.Node,
        function: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        inputs: tuple[Step, ...],
        names: Names,
    ) -> None:
        self.node, self.args, self.kwargs, self.inputs = node, args, kwargs, inputs
        self.call = (function, args, kwargs)
        self.names = names
        self.x = inputs[0]

    def make(
        self,
        kind: Kind,
        *,
        size: tuple[int, int, int] | None = None,
        axes: str | None = None,
        time: int | None = None,
        module: nn.Module | None = None,
        name: str | None = None,
        **options: Any,
    ) -> Step:
        """A step on the first input; what is not given is as in that input."""
        axes = self.x.axes if axes is None else axes
        if size is None:
            size = self._size(axes)
        return Step(
            name=self.names.of(self.node, kind, name),
            kind=kind,
            inputs=self.inputs,
            time=self.x.time if time is None else time,
            size=size,
            axes=axes,
            module=module,
            options=options,
            call=self.call,
        )

    def fail(self, what: str) -> UserError:
        """The error that says `what` about this operation."""
        path, owner = self.names.where(self.node)
        return UserError(f"{called(path)} ({owner}): {what}")

    def shape(self) -> tuple[int, ...]:
        """The shape of the result."""
        return tuple(shape_of(self.node).shape)

    @property
    def first(self) -> Any:
        """The first argument."""
        return self.args[0] if self.args else next(v for k, v in self.kwargs.items() if k in FIRST)

    def arguments(self, *names: str) -> tuple[Any, ...]:
        """The arguments after the first by name, None where they are not given.

        `UserError` for arguments beyond these, so that none is ignored.
        """
        given = dict(zip(names, self.args[1:], strict=False))
        named = {k: v for k, v in self.kwargs.items() if k not in FIRST and v is not None}
        unread = [k for k in named if k not in names]
        if len(self.args) > 1 + len(names):
            unread.append(f"{len(self.args)} arguments")
        if unread:
            raise self.fail(f"{spelled(self.node)} with {', '.join(unread)} is not supported")
        return tuple(named.get(name, given.get(name)) for name in names)

    def _size(self, axes: str) -> tuple[int, int, int]:
        """(C, H, W) of the result with these axes; a grid of tokens keeps that of the input."""
        if len(axes) != len(self.shape()):
            raise self.fail(
                f"{spelled(self.node)} makes {len(self.shape())} axes of {len(axes)}: both values "
                "must have as many"
            )
        found = dict(zip(axes, self.shape(), strict=True))
        if "p" in axes:
            return (found["c"], *self.x.size[1:])
        return found["c"], found.get("h", 1), found.get("w", 1)

    def input_shape(self) -> tuple[int, ...]:
        """The shape of the first input."""
        node = next(n for n in self.node.all_input_nodes if "shape" in n.meta)
        return tuple(shape_of(node).shape)
