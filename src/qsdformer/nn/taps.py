"""The one way to read activations inside a model."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator
from fnmatch import fnmatchcase
from typing import Any

from torch import Tensor, nn

from qsdformer.nn.neurons import SpikingNeuron


def matching_modules(model: nn.Module, *patterns: str) -> dict[str, nn.Module]:
    """Submodules whose dotted name matches any shell-style pattern, in order of definition.

    Raises ValueError for a pattern that matches nothing.
    """
    modules = dict(model.named_modules())
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in modules):
            raise ValueError(f"no module matches {pattern!r}")
    return {n: m for n, m in modules.items() if any(fnmatchcase(n, p) for p in patterns)}


def spiking_neurons(model: nn.Module) -> dict[str, SpikingNeuron]:
    """The spiking neurons of `model` by name, in order of definition; empty for an ANN."""
    return {n: m for n, m in model.named_modules() if isinstance(m, SpikingNeuron)}


@contextlib.contextmanager
def tap(model: nn.Module, *patterns: str, inputs: bool = False) -> Iterator[dict[str, Tensor]]:
    """Record outputs (or first inputs) of the modules matching `patterns` while inside the block.

    Yields a dict from module name to the tensor of the latest forward pass, gradients attached.
    Modules that a forward does not call record nothing: all of them where it was compiled before
    the block (tap the model that torch.compile was given), and norms inside `border_conv`. A block
    in which nothing was recorded ends in a warning.
    """
    with recording(model, *patterns, inputs=inputs) as acts:
        yield acts
    if not acts:
        warnings.warn(
            f"nothing was recorded of {', '.join(patterns)}: the model did not run, ran compiled, "
            "or does not call these modules",
            stacklevel=3,
        )


@contextlib.contextmanager
def recording(
    model: nn.Module, *patterns: str, inputs: bool = False
) -> Iterator[dict[str, Tensor]]:
    """`tap` for readers that clear the dict between passes: what is empty in the end is no sign.

    Nothing but the dict changes in a pass, so that a compiled one finds the state that it expects.
    """
    acts: dict[str, Tensor] = {}
    with contextlib.ExitStack() as stack:
        for name, module in matching_modules(model, *patterns).items():
            stack.enter_context(on_call(module, _recorder(acts, name, inputs)))
        yield acts


def _recorder(
    acts: dict[str, Tensor], name: str, inputs: bool
) -> Callable[[nn.Module, Tensor, Tensor], None]:
    def record(module: nn.Module, x: Tensor, y: Tensor) -> None:
        acts[name] = x if inputs else y

    return record


@contextlib.contextmanager
def on_call(
    module: nn.Module, function: Callable[[nn.Module, Tensor, Tensor], None]
) -> Iterator[None]:
    """Call `function(module, input, output)` after every forward pass inside the block."""

    def hook(m: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], out: Tensor) -> None:
        function(m, next(iter((*args, *kwargs.values()))), out)

    handle = module.register_forward_hook(hook, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()
