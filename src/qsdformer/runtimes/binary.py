"""Binary-spike execution of a trained model: what a neuromorphic chip would do, counted.

Every neuron emits D binary spikes over virtual time (thermometer order). A synaptic layer takes
one virtual step at a time and adds its weight codes where there is a spike; scale, bias, norm and
shortcut follow once, after the sum over d. Attention masks and adds integers.

What is counted (`additions`): every spike times its fan-out, the weights it really reaches: at
the border or under a stride fewer than kernel area times output channels. A weight code of 0 is
counted like any other, and so is an addition whose result is later scaled to nothing. In
attention, k^T v counts one addition for each pair of a k and a v spike at the same token and
head, and q (k^T v) one for each integer of the row that a q spike adds (d = C / heads). The head
adds over T*D steps. Layers with real inputs (stem, and the inner convolutions of RepConv and
SepConv as published) need multiplications: they are in `macs`, counted with the same fan-out. A
still image passes the stem once, whatever T is. Totals are over the whole batch.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from qsdformer.errors import UserError
from qsdformer.graph.spikes import Spikes, spike_values, trace_quantised
from qsdformer.graph.steps import Step, Traced
from qsdformer.graph.trace import trace
from qsdformer.nn.attention import SpikeAttention, from_heads, to_heads
from qsdformer.nn.neurons import SpikingNeuron, counts_to_spikes, spikes_to_counts
from qsdformer.nn.quantizers import QuantConv2d, QuantLinear


@dataclass(frozen=True, kw_only=True)
class BinaryRun:
    """Outputs, spike counts by neuron, and operations by layer over the batch.

    `outputs` are the model's results by name, as the trace calls them; `counts` hold
    int64 tensors shaped like the neuron's output, channels first; `additions` and `macs` are
    totals.
    """

    outputs: dict[str, Tensor]
    counts: dict[str, Tensor]
    additions: dict[str, int]
    macs: dict[str, int]

    @property
    def logits(self) -> Tensor:
        """The result of a model that has one: of a classifier (B, classes)."""
        (found,) = self.outputs.values()
        return found


@dataclass(kw_only=True)
class SpikeTrain:
    """Binary spikes, each worth `unit`, made by `make` for whom reads them.

    `value` is the real number that they stand for, as multi-bit evaluation computes it.
    """

    make: Callable[[], Tensor]
    unit: float
    value: Tensor

    @functools.cached_property
    def spikes(self) -> Tensor:
        """The spikes (V, ...) as 0.0 and 1.0 at V virtual time steps."""
        return self.make()


Value = Tensor | SpikeTrain

EXACT_FLOAT32 = 2**24  # whole numbers below it are exact in float32


def multi_bit(model: nn.Module, images: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Logits and the spike counts (int64) of every neuron in ordinary, multi-bit evaluation."""
    outputs, counts = multi_bit_of(trace(model, images.shape), images)
    return next(iter(outputs.values())), counts


def multi_bit_of(traced: Traced, images: Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """All outputs and spike counts by name, of a model traced for images of this shape."""
    counts: dict[str, Tensor] = {}

    def do(step: Step, *values: Tensor) -> Tensor:
        result = step.run(*values)
        if isinstance(step.module, SpikingNeuron):
            counts[step.name] = step.channels_first(step.module.counts(result))
        return result

    with torch.no_grad():
        outputs = traced.walk(images, do)
    return outputs, counts


def run_binary(model: nn.Module, images: Tensor) -> BinaryRun:
    """Run `model` on normalised images (B, C, H, W) or (T, B, C, H, W) with binary spikes only.

    Raises `UserError` for a model that cannot be traced, has no spikes, or has weights without
    integer codes.
    """
    return run_binary_of(trace_quantised(model, images.shape), images)


def run_binary_of(traced: Traced, images: Tensor) -> BinaryRun:
    """`run_binary` of a model traced for images of this shape."""
    execution = _Binary(spike_values(traced))
    with torch.no_grad():
        outputs = traced.walk(images, execution.do)
    return BinaryRun(
        outputs={name: _real(value) for name, value in outputs.items()},
        counts=execution.counts,
        additions=execution.additions,
        macs=execution.macs,
    )


@dataclass
class _Binary:
    """Carries out steps; values are real tensors or spike trains."""

    spiking: dict[Step, Spikes]
    counts: dict[str, Tensor] = field(default_factory=dict)
    additions: dict[str, int] = field(default_factory=dict)
    macs: dict[str, int] = field(default_factory=dict)

    def do(self, step: Step, *values: Value) -> Value:
        own: dict[str, Callable[..., Value]] = {
            "conv": self._conv,
            "conv_transpose": self._conv_transpose,
            "linear": self._linear,
            "border_conv": self._border_conv,
            "neuron": self._neuron,
            "attention": self._attention,
        }
        if step.kind in own:
            return own[step.kind](step, *values)
        value = step.run(*(_real(x) for x in values))
        if step not in self.spiking:
            return value
        trains = cast(tuple[SpikeTrain, ...], values)
        make = functools.partial(self._spikes, step, value, *trains)
        return SpikeTrain(make=make, unit=self.spiking[step].unit, value=value)

    def _spikes(self, step: Step, value: Tensor, *x: SpikeTrain) -> Tensor:
        """The spikes of a step that makes no new ones, (V, ...)."""
        if step.kind in ("max_pool", "plane_pool"):
            # Of sums and products the largest count is not that of the largest spikes.
            own = self.spiking[step]
            return counts_to_spikes((value / own.unit).round_(), own.levels)
        spikes, given = x[0].spikes, step.inputs[0]
        if step.kind == "scale":
            return spikes
        if step.kind == "add":
            return torch.cat([train.spikes for train in x])
        if step.kind == "multiply":
            pairs = [step.run(a, b) for a in x[0].spikes for b in x[1].spikes]
            return torch.stack(pairs)
        if step.kind == "concat":
            longest = max(len(train.spikes) for train in x)
            padded = [_lengthened(train.spikes, longest) for train in x]
            return torch.stack([step.run(*each) for each in zip(*padded, strict=True)])
        if step.kind == "time_sum":
            apart = spikes if given.axes.startswith("t") else spikes.unflatten(1, (given.time, -1))
            return apart.flatten(0, 1)
        if step.kind == "spatial_sum":
            places = tuple(i for i, axis in enumerate(given.axes, start=1) if axis in "hwp")
            moved = spikes.movedim(places, tuple(range(len(places)))).flatten(0, len(places))
            if step.axes != given.axes:
                return moved
            for place in places:  # kept as axes of length 1
                moved = moved.unsqueeze(place)
            return moved
        return torch.stack([step.run(s) for s in spikes])

    def _summed(self, x: SpikeTrain, codes: Tensor, add: Callable[[Tensor], Tensor]) -> Tensor:
        """Sums of codes over all spikes, taken one virtual time step at a time; whole numbers.

        `codes` have outputs first. Exact in float32 below 2^24; int32 where all steps together
        could go beyond that. Rounded, not cut off: an algorithm that is off by a unit in the last
        place must not lose a whole one.
        """
        largest = len(x.spikes) * float(codes.abs().flatten(1).sum(1).max())
        kind = codes.dtype if largest < EXACT_FLOAT32 else torch.int32
        summed: Tensor | None = None
        for spikes in x.spikes:
            y = add(spikes).round_().to(kind)
            summed = y if summed is None else summed.add_(y)
        assert summed is not None
        return summed

    def _conv(self, step: Step, x: Value) -> Tensor:
        layer = cast(QuantConv2d, step.module)
        if isinstance(x, Tensor):
            self.macs[step.name] = reached_weights(torch.ones_like(x), step)
            return layer(x)
        codes = layer.codes().to(x.spikes.dtype)
        options = (layer.stride, layer.padding, layer.dilation, layer.groups)
        summed = self._summed(x, codes, lambda s: F.conv2d(s, codes, None, *options))  # type: ignore[arg-type]
        self.additions[step.name] = reached_weights(x.spikes.flatten(0, 1), step)
        return _finished(summed, x, layer, (1, -1, 1, 1))

    def _conv_transpose(self, step: Step, x: Value) -> Tensor:
        layer = cast(Any, step.module)
        reach = layer.weight[0].numel()
        if isinstance(x, Tensor):
            self.macs[step.name] = x.numel() * reach
            return layer(x)
        codes = layer.codes().to(x.spikes.dtype)
        summed = self._summed(
            x, codes.transpose(0, 1), lambda s: F.conv_transpose2d(s, codes, stride=2)
        )
        self.additions[step.name] = _number(x.spikes) * reach
        return _finished(summed, x, layer, (1, -1, 1, 1))

    def _linear(self, step: Step, x: Value) -> Tensor:
        layer = cast(QuantLinear, step.module)
        if isinstance(x, Tensor):
            self.macs[step.name] = x.numel() * layer.out_features
            return layer(x)
        codes = layer.codes().to(x.spikes.dtype)
        summed = self._summed(x, codes, lambda s: F.linear(s, codes))
        self.additions[step.name] = _number(x.spikes) * layer.out_features
        return _finished(summed, x, layer, (-1,))

    def _border_conv(self, step: Step, x: Value) -> Tensor:
        self.macs[step.name] = reached_weights(torch.ones_like(_real(x)), step)
        return step.run(_real(x))

    def _neuron(self, step: Step, x: Value) -> SpikeTrain:
        layer = cast(SpikingNeuron, step.module)
        values = step.run(_real(x))
        spikes = counts_to_spikes(layer.counts(values).to(values.dtype), layer.levels)
        self.counts[step.name] = step.channels_first(spikes_to_counts(spikes).long())
        return SpikeTrain(make=lambda: spikes, unit=layer.step, value=values)

    def _attention(self, step: Step, q: Value, k: Value, v: Value) -> Tensor:
        layer = cast(SpikeAttention, step.module)
        trains = [_train(step, x) for x in (q, k, v)]
        height, width = trains[0].spikes.shape[-2:]
        # float64 holds these sums of integers exactly up to 2^53. Per step: (B, h, N, d).
        steps = [[to_heads(s.double(), layer.heads) for s in x.spikes] for x in trains]
        q_steps, k_steps, v_steps = steps
        kv = torch.zeros((), dtype=torch.float64, device=trains[0].spikes.device)
        for k_BhNd in k_steps:
            for v_BhNd in v_steps:
                kv = kv + k_BhNd.transpose(-2, -1) @ v_BhNd
        product = torch.stack([q_BhNd @ kv for q_BhNd in q_steps]).sum(dim=0)
        pairs = [torch.stack(x).sum(dim=(0, -1)) for x in (k_steps, v_steps)]
        self.additions[f"{step.name}.kv"] = int((pairs[0] * pairs[1]).sum())
        self.additions[f"{step.name}.qkv"] = int(torch.stack(q_steps).sum()) * kv.shape[-1]
        unit = trains[0].unit * trains[1].unit * trains[2].unit
        values = product.to(trains[0].spikes.dtype) * unit
        return from_heads(values * layer.factor(height * width), height, width)


def _finished(summed: Tensor, x: SpikeTrain, layer: Any, shape: tuple[int, ...]) -> Tensor:
    """Scale and bias, once, after the sum over virtual time."""
    y = summed.to(x.spikes.dtype) * x.unit * layer.step_size.view(shape)
    return y if layer.bias is None else y + layer.bias.view(shape)


def _real(x: Value) -> Tensor:
    return x.value if isinstance(x, SpikeTrain) else x


def _lengthened(spikes: Tensor, count: int) -> Tensor:
    """Spikes (V, ...) with silent virtual time steps up to `count`."""
    silent = spikes.new_zeros(count - len(spikes), *spikes.shape[1:])
    return torch.cat([spikes, silent])


def _train(step: Step, x: Value) -> SpikeTrain:
    if not isinstance(x, SpikeTrain):
        raise UserError(f"{step.name}: attention reads real numbers where it needs spikes")
    return x


def _number(spikes: Tensor) -> int:
    return int(spikes.sum(dtype=torch.float64))


def reached_weights(spikes: Tensor, step: Step) -> int:
    """Weights that the binary spikes (B, C, H, W) reach, exactly: convolution with ones."""
    layer = cast(nn.Conv2d, step.module)
    size, stride, padding = (step.options[k] for k in ("kernel", "stride", "padding"))
    if (size, stride, padding) == (1, 1, 0):  # every pixel once
        return _number(spikes) * (layer.out_channels // layer.groups)
    pixels = spikes.sum(dim=(0, 1), dtype=torch.float64)
    window = torch.ones(1, 1, size, size, dtype=torch.float64, device=spikes.device)
    reached = F.conv2d(pixels[None, None], window, stride=stride, padding=padding)
    return int(reached.sum()) * (layer.out_channels // layer.groups)
