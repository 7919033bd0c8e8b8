"""Spike activity: how often neurons fire, measured, and as a penalty that makes them fire less.

Two kinds of activity, both shares in [0, 1]: the firing rate, mean count / D over neurons; and the
share of active groups, a group being 4 consecutive channels at one place and active if any of its
counts is not 0. Hardware and vectorised kernels can skip a whole silent group.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from qsdformer.errors import UserError
from qsdformer.nn.exact import exact_float32
from qsdformer.nn.neurons import SpikingNeuron, firing_rate
from qsdformer.nn.taps import on_call, spiking_neurons
from qsdformer.recipes.learning import ActivityConfig

GROUP = 4  # consecutive channels


def group_norms(values: Tensor) -> Tensor:
    """Root mean square of every 4 consecutive channels of (B, C, ...), as (B, ceil(C/4), ...).

    Channels missing from the last group count as silent. The gradient at a silent group is 0.
    """
    missing = -values.shape[1] % GROUP
    if missing:
        values = F.pad(values.movedim(1, -1), (0, missing)).movedim(-1, 1)
    groups = values.unflatten(1, (-1, GROUP))
    return torch.linalg.vector_norm(groups, dim=2) / math.sqrt(GROUP)


def group_activity(values: Tensor) -> Tensor:
    """How many groups of (B, C, ...) are active; the gradient is that of the group norms' sum.

    The norm of a group (a group lasso) pulls all four channels to 0 together.
    """
    norms = group_norms(values)
    exact = torch.count_nonzero(norms.detach()).to(torch.float32)  # bfloat16 counts in steps of 256
    surrogate = norms.sum(dtype=torch.float32)
    return surrogate + (exact - surrogate).detach()


class ActivityPenalty:
    """Reads every spiking neuron of a model at each call, and penalises activity.

    `open` puts hooks in place that stay over many steps, as compiled code needs. Activity is
    over all neurons (or groups) of the network together, so that it is free to choose where to
    save: the hooks reduce each layer to two numbers at once and keep no outputs. All calls since
    the last `clear` add up: a detector's heads run once for each map.
    """

    def __init__(self, model: nn.Module, config: ActivityConfig) -> None:
        self.config = config
        self._neurons = spiking_neurons(model)
        if not self._neurons:
            raise UserError("activity: this model is an ANN without spikes; remove the section")
        self._active: dict[str, Tensor] = {}
        self._total: dict[str, int] = {}
        self._stack = contextlib.ExitStack()

    def open(self) -> None:
        """Start reading."""
        for name, neuron in self._neurons.items():
            self._stack.enter_context(on_call(neuron, self._recorder(name, neuron)))

    def close(self) -> None:
        """Stop reading."""
        self._stack.close()
        self._stack = contextlib.ExitStack()
        self.clear()

    def clear(self) -> None:
        """Forget all passes; before each step, so that compiled code finds the same state."""
        self._active.clear()
        self._total.clear()

    def activity(self) -> Tensor:
        """Activity since the last `clear`, a share in [0, 1], differentiable."""
        return torch.stack(list(self._active.values())).sum() / sum(self._total.values())

    def loss(self) -> Tensor:
        """weight * max(0, activity - target), of activity since the last `clear`."""
        return self.config.weight * F.relu(self.activity() - self.config.target)

    def _recorder(self, name: str, neuron: SpikingNeuron) -> Any:
        grouped, gain = self.config.kind == "group", neuron.gain

        def record(_module: nn.Module, _x: Tensor, y: Tensor) -> None:
            active = group_activity(y / gain) if grouped else y.sum(dtype=torch.float32) / gain
            count = y.numel()
            total = count // y.shape[1] * -(-y.shape[1] // GROUP) if grouped else count
            self._active[name] = self._active.get(name, 0) + active
            self._total[name] = self._total.get(name, 0) + total

        return record


@torch.no_grad()
def measure_activity(model: nn.Module, batches: Iterable[Tensor]) -> dict[str, dict[str, float]]:
    """Firing rate and share of active groups of each spiking neuron layer over image batches.

    Returns layer name -> {"firing_rate", "active_groups", "neurons", "groups"}, the last two per
    time step and image. The model is measured as it is: put it in eval mode first. Raises
    `UserError` for an ANN or without images.
    """
    neurons = spiking_neurons(model)
    if not neurons:
        raise UserError("this model has no spiking neurons: it is an ANN; give a spiking one")
    sums: dict[str, list[float]] = {name: [0.0, 0.0, 0.0, 0.0] for name in neurons}
    rows = dict.fromkeys(neurons, 0)
    seen: set[str] = set()  # in this pass

    def recorder(name: str) -> Any:
        def record(neuron: SpikingNeuron, _x: Tensor, y: Tensor) -> None:
            counts = neuron.counts(y)
            norms = group_norms(counts.float())
            spikes, active = float(counts.sum()), float((norms > 0).sum())
            for i, value in enumerate((spikes, active, counts.numel(), norms.numel())):
                sums[name][i] += value
            if name not in seen:  # heads of detectors are called once for each map
                rows[name] += len(y)
                seen.add(name)

        return record

    device = next(model.parameters()).device
    with contextlib.ExitStack() as stack:
        for name, neuron in neurons.items():
            stack.enter_context(on_call(neuron, recorder(name)))
        for images in batches:
            seen.clear()
            with exact_float32(device):
                model(images.to(device))
    if not all(rows.values()):
        raise UserError("no images to measure spikes on: the data set is empty")
    return {
        name: {
            "firing_rate": firing_rate(spikes, total, neurons[name].levels),
            "active_groups": active / groups,
            "neurons": total / rows[name],
            "groups": groups / rows[name],
        }
        for name, (spikes, active, total, groups) in sums.items()
    }


def overall_activity(measured: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """Firing rate over all neurons together, and share of active groups over all groups."""
    neurons = sum(m["neurons"] for m in measured.values())
    groups = sum(m["groups"] for m in measured.values())
    return {
        "firing_rate": sum(m["firing_rate"] * m["neurons"] for m in measured.values()) / neurons,
        "active_groups": sum(m["active_groups"] * m["groups"] for m in measured.values()) / groups,
    }
