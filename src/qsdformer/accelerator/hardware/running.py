"""Running a unit cycle by cycle in Amaranth's simulator."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from amaranth.lib.wiring import Component
from amaranth.sim import Simulator

from qsdformer.graph.ops import Array


@dataclass(frozen=True, kw_only=True)
class Run:
    """What a unit put out, and for how many cycles each of the watched signals was set."""

    taken: tuple[Any, ...]
    cycles: Mapping[str, int]


def run(
    unit: Component,
    before: Mapping[str, Sequence[Any]],
    output: str,
    lists: int,
    *,
    watched: Sequence[str],
    during: Mapping[str, Sequence[Any]] | None = None,
    accepts: Callable[[int], bool] = lambda cycle: True,
    limit: int = 1_000_000,
) -> Run:
    """Offer streams, start the unit, and take `lists` lists from the stream `output`.

    The streams `before` are offered side by side, and taken before the start; those of `during`
    after it. A list ends with `last`. `accepts` tells by cycle after the start whether the output
    is taken. Raises `RuntimeError` for a unit that does not come to an end within `limit` cycles.
    """
    taken: list[Any] = []
    cycles = dict.fromkeys(watched, 0)
    signals = [getattr(unit, name) for name in watched]
    result = getattr(unit, output)
    fed: list[str] = []

    async def watch(context: Any) -> None:
        async for _, _, *values in context.tick().sample(*signals):
            for name, value in zip(watched, values, strict=True):
                cycles[name] += int(value)

    def feeder(name: str, payloads: Sequence[Any]) -> Callable[[Any], Any]:
        async def feed(context: Any) -> None:
            port = getattr(unit, name)
            for payload in payloads:
                context.set(port.payload, payload)
                context.set(port.valid, 1)
                await context.tick().until(port.ready)
            context.set(port.valid, 0)
            fed.append(name)

        return feed

    async def drain(context: Any) -> None:
        while len(fed) < len(before):
            await context.tick()
        await context.tick().repeat(2)  # the last entries are being written
        context.set(unit.start, 1)  # type: ignore[attr-defined]
        ended = 0
        for cycle in range(limit):
            accepted = accepts(cycle)
            context.set(result.ready, accepted)
            _, _, valid, payload = await context.tick().sample(result.valid, result.payload)
            context.set(unit.start, 0)  # type: ignore[attr-defined]
            if valid and accepted:
                taken.append(payload)
                ended += int(payload["last"])
            if ended == lists:
                return
        raise RuntimeError(f"{type(unit).__name__}: no end within {limit} cycles")

    simulator = Simulator(unit)
    simulator.add_clock(1e-6)
    simulator.add_process(watch)
    for name, payloads in before.items():
        simulator.add_testbench(feeder(name, payloads))
    for name, payloads in (during or {}).items():
        simulator.add_testbench(feeder(name, payloads), background=True)
    simulator.add_testbench(drain)
    simulator.run()
    return Run(taken=tuple(taken), cycles=cycles)


def words(lists: Array, lanes: int) -> list[dict[str, Any]]:
    """Spike counts (lists, positions) as an encoder takes them, `lanes` at a time."""
    padded = np.pad(lists, ((0, 0), (0, -lists.shape[1] % lanes)))
    per_list = padded.shape[1] // lanes
    rows = padded.reshape(-1, lanes).tolist()
    return [{"counts": row, "last": int((i + 1) % per_list == 0)} for i, row in enumerate(rows)]


def weight_words(codes: Array, lanes: int) -> list[dict[str, Any]]:
    """Weight codes (outputs, inputs) as a linear unit of so many lanes takes them."""
    rows = np.pad(codes.T, ((0, 0), (0, -len(codes) % lanes))).reshape(-1, lanes).tolist()
    return [{"row": i, "values": row} for i, row in enumerate(rows)]
