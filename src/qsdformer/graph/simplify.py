"""What an integer graph computes more than once."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection

from qsdformer.graph.ops import Op, Rescale


def without_repetitions(ops: tuple[Op, ...], keep: Collection[str] = ()) -> tuple[Op, ...]:
    """The operations with each rescaling of the same value made once; those in `keep` stay.

    A neuron and a shortcut that read the same sums have a rescaling each.
    """
    kept: list[Op] = []
    names: dict[str, str] = {}
    for op in ops:
        op = dataclasses.replace(op, inputs=tuple(names.get(n, n) for n in op.inputs))
        if isinstance(op, Rescale) and op.name not in keep:
            others = (o for o in kept if isinstance(o, Rescale) and o.inputs == op.inputs)
            twin = next((o for o in others if dataclasses.replace(o, name=op.name) == op), None)
            if twin is not None:
                names[op.name] = twin.name
                continue
        kept.append(op)
    return tuple(kept)
