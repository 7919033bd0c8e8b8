"""Running units cycle by cycle in Amaranth's simulator, on arrays of spike counts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from amaranth.sim import Simulator

from qsdformer.accelerator.hardware.assemblies import EncodedLinear, EncodedMaskAdd
from qsdformer.accelerator.hardware.entries import counts_of
from qsdformer.graph.ops import Array, Neuron, Op
from qsdformer.graph.reference import EXECUTE

Accepts = Callable[[int], bool]
LIMIT = 1_000_000  # cycles


@dataclass(frozen=True, kw_only=True)
class Run:
    """What a unit made, and for how many cycles each of its signals of work was set."""

    result: Array
    cycles: Mapping[str, int]


def run_linear(
    unit: EncodedLinear, codes: Array, counts: Array, accepts: Accepts = lambda cycle: True
) -> Run:
    """Sums (pixels, outputs) of weight codes (outputs, inputs) for counts (pixels, inputs).

    A unit of several passes gets the spikes one by one. `accepts` tells by cycle after the start
    whether results are taken.
    """
    streams, pixels = linear_streams(unit, codes, counts), len(counts)
    taken, cycles = _run(unit, streams, {}, "sums", pixels, ("encoding", "busy"), accepts)
    sums = np.array([list(word["values"]) for word in taken]).reshape(pixels, -1)
    return Run(result=sums[:, : len(codes)], cycles=cycles)


def linear_streams(unit: EncodedLinear, codes: Array, counts: Array) -> dict[str, list[Any]]:
    """What a linear unit's streams "weights" and "words" take, for `run_linear`'s arrays."""
    levels = unit.linear.passes
    passes = [counts > level for level in range(levels)] if levels > 1 else [counts]
    return {
        "weights": _weight_words(codes, unit.linear.lanes),
        "words": _words(np.concatenate(passes).astype(int), unit.lists.encoder.lanes),
    }


def run_mask_add(
    unit: EncodedMaskAdd,
    q: Array,
    k: Array,
    v: Array,
    thresholds: Array,
    accepts: Accepts = lambda cycle: True,
) -> Run:
    """The counts (channels, tokens) of q whose channels reach their `thresholds` (channels,)."""
    streams, (channels, tokens) = mask_add_streams(unit, q, k, v), q.shape
    signals = ("encoding", "merging", "filtering")
    after = {"thresholds": thresholds.tolist()}
    taken, cycles = _run(unit, streams, after, "masked", channels, signals, accepts)
    return Run(result=np.array(counts_of(taken, tokens)), cycles=cycles)


def mask_add_streams(unit: EncodedMaskAdd, q: Array, k: Array, v: Array) -> dict[str, list[Any]]:
    """What a mask-add unit's streams "q", "k" and "v" take, for `run_mask_add`'s arrays."""
    lanes = unit.lists["q"].encoder.lanes
    return {name: _words(x, lanes) for name, x in (("q", q), ("k", k), ("v", v))}


def channel_thresholds(ops: Sequence[Op], channels: int, most: int) -> Array:
    """The least sum, up to `most`, at which each channel's mask neuron fires, (channels,).

    `ops` are those from the sum of coincidences to the neuron, in order. A channel that never
    fires gets `most` + 1. Raises `ValueError` for a neuron that remembers, and for one that a
    larger sum silences.
    """
    neuron = ops[-1]
    if not isinstance(neuron, Neuron) or neuron.steps > 1 or neuron.levels > 1:
        raise ValueError(f"{neuron.name}: must be a binary neuron of one time step")
    fires = np.broadcast_to(np.arange(most + 1, dtype=np.int32), (channels, 1, 1, most + 1))
    for op in ops:
        fires = EXECUTE[type(op)](op, fires)
    fires = fires[:, 0, 0]
    if (np.diff(fires, axis=1) < 0).any():
        raise ValueError(f"{neuron.name}: has a channel that a larger sum silences")
    return most + 1 - fires.sum(axis=1)


def _run(
    unit: Any,
    before: Mapping[str, Sequence[Any]],
    after: Mapping[str, Sequence[Any]],
    output: str,
    lists: int,
    signals: Sequence[str],
    accepts: Accepts,
) -> tuple[list[Any], dict[str, int]]:
    """Offer the streams `before`, start the unit, and take `lists` lists from `output`.

    Streams are offered side by side, those of `after` after the start. A list ends with `last`.
    """
    taken: list[Any] = []
    cycles = dict.fromkeys(signals, 0)
    result = getattr(unit, output)
    fed: list[str] = []

    async def watch(context: Any) -> None:
        async for _, _, *values in context.tick().sample(*(getattr(unit, s) for s in signals)):
            for name, value in zip(signals, values, strict=True):
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

    async def take(context: Any) -> None:
        while len(fed) < len(before):
            await context.tick()
        await context.tick().repeat(2)  # the last entries are being written
        context.set(unit.start, 1)
        ended = 0
        for cycle in range(LIMIT):
            accepted = accepts(cycle)
            context.set(result.ready, accepted)
            _, _, valid, payload = await context.tick().sample(result.valid, result.payload)
            context.set(unit.start, 0)
            if valid and accepted:
                taken.append(payload)
                ended += int(payload["last"])
            if ended == lists:
                return
        raise RuntimeError(f"{type(unit).__name__}: no end within {LIMIT} cycles")

    simulator = Simulator(unit)
    simulator.add_clock(1e-6)
    simulator.add_process(watch)
    for name, payloads in before.items():
        simulator.add_testbench(feeder(name, payloads))
    for name, payloads in after.items():
        simulator.add_testbench(feeder(name, payloads), background=True)
    simulator.add_testbench(take)
    simulator.run()
    return taken, cycles


def _words(lists: Array, lanes: int) -> list[dict[str, Any]]:
    """Spike counts (lists, positions) as an encoder takes them, `lanes` at a time."""
    padded = np.pad(lists, ((0, 0), (0, -lists.shape[1] % lanes)))
    per_list = padded.shape[1] // lanes
    rows = padded.reshape(-1, lanes).tolist()
    return [{"counts": row, "last": int((i + 1) % per_list == 0)} for i, row in enumerate(rows)]


def _weight_words(codes: Array, lanes: int) -> list[dict[str, Any]]:
    """Weight codes (outputs, inputs) as a linear unit of so many lanes takes them."""
    rows = np.pad(codes.T, ((0, 0), (0, -len(codes) % lanes))).reshape(-1, lanes).tolist()
    return [{"row": i, "values": row} for i, row in enumerate(rows)]
