"""Which values of a traced model are spike counts, what a spike is worth, and how many there are.

Neurons make spikes. Pools, copies, concatenations, sums of spikes of one worth and products of
spikes are spikes again; means and sums over time or over the grid are spikes at more virtual time
steps. All else is real numbers. Also the checks of models that are to run on spikes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from torch import nn

from qsdformer.errors import UserError
from qsdformer.graph.steps import Step, Traced
from qsdformer.graph.trace import trace
from qsdformer.graph.tracer import called
from qsdformer.nn.neurons import SpikingNeuron
from qsdformer.nn.taps import spiking_neurons


@dataclass(frozen=True, kw_only=True)
class Spikes:
    """A spike-valued step: each spike is worth `unit`, and no count exceeds `levels`.

    `source` is the step whose spikes these are, before they were summed: over `time` time steps,
    and over the grid where `grid` is set.
    """

    unit: float
    levels: int
    source: Step
    time: int = 1
    grid: bool = False

    @property
    def is_summed(self) -> bool:
        """Whether the spikes of several times or places meet in one value."""
        return self.time > 1 or self.grid


def spike_values(traced: Traced) -> dict[Step, Spikes]:
    """The spike-valued steps of a traced model."""
    found: dict[Step, Spikes] = {}
    for step in traced.steps:
        spikes = _spikes(step, [found.get(x) for x in step.inputs])
        if spikes is not None:
            found[step] = spikes
    return found


def _spikes(step: Step, inputs: Sequence[Spikes | None]) -> Spikes | None:
    if isinstance(step.module, SpikingNeuron):
        return Spikes(unit=step.module.step, levels=step.module.levels, source=step)
    known = [x for x in inputs if x is not None]
    if not known or len(known) < len(inputs):
        return None
    x = known[0]
    if step.kind == "time_sum":
        unit = x.unit / step.inputs[0].time if step.options["mean"] else x.unit
        return replace(x, unit=unit, time=step.inputs[0].time)
    if step.kind == "spatial_sum":
        unit = x.unit / step.inputs[0].tokens if step.options["mean"] else x.unit
        return replace(x, unit=unit, grid=True)
    if step.kind == "scale":
        factor = step.options["factor"]
        positive = isinstance(factor, float) and factor > 0
        return replace(x, unit=x.unit * factor) if positive else None
    if step.kind == "view" and not step.options.get("flattened"):
        return x
    if any(spikes.is_summed for spikes in known):
        return None
    if step.kind in ("view", "repeat", "max_pool", "plane_pool") or _is_nearest(step):
        return replace(x, source=step)
    if step.kind == "multiply":
        a, b = known
        return Spikes(unit=a.unit * b.unit, levels=a.levels * b.levels, source=step)
    same = all(spikes.unit == x.unit for spikes in known)
    if step.kind == "add" and same:
        return Spikes(unit=x.unit, levels=sum(s.levels for s in known), source=step)
    if step.kind == "concat" and same:
        return Spikes(unit=x.unit, levels=max(s.levels for s in known), source=step)
    return None


def _is_nearest(step: Step) -> bool:
    return step.kind == "upsample" and step.options["mode"] == "nearest"


def require_spikes(model: nn.Module) -> None:
    """`UserError` for a model without spiking neurons."""
    if not spiking_neurons(model):
        raise UserError(
            "the model has no spiking neurons and makes no spikes: give a spiking model"
        )


def trace_quantised(model: nn.Module, shape: Sequence[int]) -> Traced:
    """The graph of a spiking model whose layers all have integer codes; else a `UserError`."""
    require_spikes(model)
    traced = trace(model, shape)
    for step in traced.of_kind("conv", "conv_transpose", "linear", "border_conv"):
        if getattr(step.module, "bits", None) is None:
            raise UserError(
                f"{called(step.name)} ({type(step.module).__name__}) has fp32 weights: use "
                "QuantConv2d or QuantLinear with 2 to 8 bits (weight_bits) for integer execution"
            )
    for step in traced.steps:
        for module in (step.module, *step.options.values()):
            if isinstance(module, nn.Module):
                _require_finite(called(step.name), module)
    return traced


def _require_finite(name: str, module: nn.Module) -> None:
    """`UserError` for parameters or statistics that are no numbers."""
    for own, value in (*module.named_parameters(), *module.named_buffers()):
        if value.is_floating_point() and not value.is_meta and not value.isfinite().all():
            raise UserError(f"{name}: its {own} holds NaN or infinity")


def widest(spikes: Mapping[Step, Spikes]) -> int:
    """The largest number of levels of any neuron."""
    return max(s.levels for step, s in spikes.items() if step.kind == "neuron")
