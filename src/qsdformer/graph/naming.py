"""Names of operations: stable, unique, and those of the modules wherever possible."""

from __future__ import annotations

import operator
from collections import Counter
from typing import Any

from torch import fx

from qsdformer.graph.steps import Kind
from qsdformer.graph.tracer import ROOT, model_path

# What changes its first argument, and what makes a new value instead.
IN_PLACE: dict[Any, Any] = {
    operator.iadd: operator.add,
    operator.isub: operator.sub,
    operator.imul: operator.mul,
    operator.itruediv: operator.truediv,
    "add_": "add",
    "sub_": "sub",
    "mul_": "mul",
    "div_": "div",
}


class Names:
    """Names of operations: stable, unique, and those of the modules wherever possible."""

    def __init__(self, graph: fx.Graph) -> None:
        self.taken: Counter[str] = Counter()
        self.seen: Counter[tuple[str, str]] = Counter()
        functions = (n for n in graph.nodes if n.op in ("call_function", "call_method"))
        self.total = Counter((self._owner(n), verb(n)) for n in functions)

    def of(self, node: fx.Node, kind: Kind, name: str | None) -> str:
        """The name of the step that `node` becomes."""
        if name is None and node.op == "call_module":
            name = model_path(str(node.target))
            if kind == "attention":  # what an attention module is there for
                holder = name.rpartition(".")[0]
                name = name if not holder or holder in self.taken else holder
        elif name is None:
            key = owner, does = self._owner(node), verb(node)
            self.seen[key] += 1
            number = str(self.seen[key]) if self.total[key] > 1 else ""
            name = f"{owner}.{does}{number}".removeprefix(".")
        name = name or "model"
        self.taken[name] += 1
        return name if self.taken[name] == 1 else f"{name}@{self.taken[name]}"

    def where(self, node: fx.Node) -> tuple[str, str]:
        """Path and type of the module that `node` is, or in whose forward it stands."""
        path, kind = list(node.meta["nn_module_stack"].values())[-1]
        return model_path(path), kind.__name__ if isinstance(kind, type) else str(kind)

    def _owner(self, node: fx.Node) -> str:
        """The module in whose forward a function stands; a second call of it ends in @2."""
        stack = list(node.meta.get("nn_module_stack", {}))
        path, _, calls = (stack[-1] if stack else ROOT).partition("@")
        return model_path(path) + (f"@{int(calls) + 1}" if calls else "")


# Of functions whose own names say more than what they do.
VERBS = {
    "adaptive_avg_pool2d": "mean",
    "adaptive_max_pool2d": "max_pool",
    "max_pool2d": "max_pool",
}


def verb(node: fx.Node) -> str:
    """What a function does, as part of a name."""
    name = spelled(node).strip("_")
    return VERBS.get(name, name)


def spelled(node: fx.Node) -> str:
    """The name of the function or method that a node calls, or of its form not in place."""
    target = IN_PLACE.get(node.target, node.target)
    return target if isinstance(target, str) else str(getattr(target, "__name__", target))
