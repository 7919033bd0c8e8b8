"""Running a unit cycle by cycle in Amaranth's simulator."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from amaranth.lib.wiring import Component
from amaranth.sim import Simulator


@dataclass(frozen=True, kw_only=True)
class Run:
    """What a unit put out, and the cycles from its first input's offer to its last output's taking.

    Both ends count.
    """

    taken: tuple[Any, ...]
    cycles: int


def run(
    unit: Component,
    inputs: Mapping[str, Sequence[Any]],
    output: str,
    expected: int,
    *,
    before: Mapping[str, Sequence[Any]] | None = None,
    accepts: Callable[[int], bool] = lambda cycle: True,
    limit: int = 1_000_000,
) -> Run:
    """Offer everything to the streams `inputs` and take `expected` lists from `output`.

    A list ends with a payload that has `last` set. What `before` has is written first, and takes no
    time. `accepts` tells by cycle whether the output is taken. Raises `RuntimeError` for a unit
    that does not come to an end within `limit` cycles.
    """
    taken: list[Any] = []
    span = [0, 0]
    first = getattr(unit, next(iter(inputs)))
    result = getattr(unit, output)
    simulator = Simulator(unit)
    simulator.add_clock(1e-6)

    def feeder(name: str) -> Callable[[Any], Any]:
        port = getattr(unit, name)

        async def feed(context: Any) -> None:
            await _load(context, unit, before or {})
            for payload in inputs[name]:
                context.set(port.payload, payload)
                context.set(port.valid, 1)
                await context.tick().until(port.ready)
            context.set(port.valid, 0)

        return feed

    async def drain(context: Any) -> None:
        started, lists = None, 0
        for cycle in range(limit):
            accepted = accepts(cycle)
            context.set(result.ready, accepted)
            sampled = context.tick().sample(first.valid, result.valid, result.payload)
            _, _, offered, valid, payload = await sampled
            started = cycle if started is None and offered else started
            if valid and accepted:
                taken.append(payload)
                lists += int(payload["last"])
                span[:] = [started or 0, cycle]
            if lists == expected:
                return
        raise RuntimeError(f"{type(unit).__name__}: no end within {limit} cycles")

    for name in inputs:
        simulator.add_testbench(feeder(name), background=True)
    simulator.add_testbench(drain)
    simulator.run()
    return Run(taken=tuple(taken), cycles=span[1] - span[0] + 1)


async def _load(context: Any, unit: Component, before: Mapping[str, Sequence[Any]]) -> None:
    for name, payloads in before.items():
        port = getattr(unit, name)
        context.set(port.valid, 1)
        for payload in payloads:
            context.set(port.payload, payload)
            await context.tick().until(port.ready)
        context.set(port.valid, 0)
