"""Every operation of a network and its sizes, found from its traced graph without computing.

Binary execution and lowering read the same graph. Where these make one fixed-point scaling out of
a convolution's step sizes, norms and layer scales, there is one operation here too, named after
the last of them.

Legend: T time steps, D levels, C channels, H x W grid, N = H*W tokens, h heads, d = C/h.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from qsdformer.analysis.energy import Kind, Role
from qsdformer.errors import UserError
from qsdformer.graph.assumed import first_channels
from qsdformer.graph.spikes import Spikes, spike_values
from qsdformer.graph.steps import Step, Traced
from qsdformer.graph.trace import BATCH, evaluating, trace
from qsdformer.nn.attention import SpikeAttention
from qsdformer.nn.neurons import LIF, SpikingNeuron
from qsdformer.nn.taps import spiking_neurons


@dataclass(frozen=True, kw_only=True)
class Operation:
    """One operation; sizes are of one image and one time step.

    `passes` is how often an image needs it: T, or 1 before a still image is repeated. `reach` is
    how many additions one spike at a place of the (H, W) input grid causes in a layer; for
    attention one number. `layer_input` and `elements` are values in and out.
    """

    name: str
    kind: Kind
    role: Role = "other"
    source: str | None = None  # what makes its spikes, mostly a neuron; for attention k or q
    partner: str | None = None  # attention.kv: v
    levels: int = 1  # largest spike count that it reads, or that the neuron makes
    passes: int = 1
    dense_macs: int = 0
    reached: int = 0  # MACs that fall on the image rather than on its padding
    reach: Tensor | None = None
    layer_input: int = 0
    elements: int = 0
    weights: int = 0
    repeated: bool = False  # a further call of a layer, whose weights an earlier one has read
    weight_bits: int | None = None
    fan_in: int = 0
    times: int = 1  # time steps whose spikes the sums of a layer hold
    places: int = 1  # and places of the grid
    tokens: int = 0
    heads: int = 0
    neuron: SpikingNeuron | None = None
    to_layer: bool = False  # norm: the result is stored as the real input of a layer

    @property
    def weights_read(self) -> int:
        """How many weights come from memory: those of a layer once an image."""
        return 0 if self.repeated else self.weights


@dataclass(frozen=True, kw_only=True)
class Signal:
    """A value on its way: how often an image needs it, whether it is pixels, a scaling still due.

    Spikes that are to be summed over time or over the grid are read one by one where a layer
    follows: `passes` and `grid` are those of the spikes; those of `times` and `places` meet in one
    value. For others the step `summed` is the operation that adds them.
    """

    step: Step
    passes: int
    grid: tuple[int, int]
    times: int = 1
    places: int = 1
    summed: str = ""
    spikes: Spikes | None = None
    pixels: bool = False
    due: str | None = None

    @property
    def numel(self) -> int:
        """Number of elements."""
        return self.step.channels * self.step.tokens


def operations(
    model: nn.Module, image_size: tuple[int, int], frames: int | None = None
) -> list[Operation]:
    """The operations of `model` on images (H, W), in order of execution.

    They are still images, or have so many `frames` each, one a time step. The model may be on the
    meta device. Raises `UserError` for one without spikes.
    """
    require_neurons(model)
    with evaluating(model):
        leading = (BATCH,) if frames is None else (frames, BATCH)
        traced = trace(model, (*leading, first_channels(model, image_size), *image_size))
    return operations_of(traced)


def operations_of(traced: Traced) -> list[Operation]:
    """The operations of a traced model."""
    tracer = _Tracer(spike_values(traced))
    image = traced.image
    first = Signal(step=image, passes=image.time, grid=image.size[1:], pixels=True)
    for result in traced.walk(first, tracer.do).values():
        tracer.settled(result)
    return tracer.found


def require_neurons(model: nn.Module) -> None:
    """`UserError` for an ANN."""
    if not spiking_neurons(model):
        raise UserError(
            "this model is an ANN and has no spiking neurons: give a spiking checkpoint; its ANN "
            "twin is shown with --twins"
        )


def reach_along(size: int, kernel: int, stride: int, padding: int) -> Tensor:
    """How many outputs of a convolution each of `size` inputs along one axis reaches, (size,)."""
    outputs = (size + 2 * padding - kernel) // stride + 1
    inputs, starts = (torch.arange(n, device="cpu") for n in (size, outputs))
    offset = inputs[:, None] + padding - stride * starts[None, :]
    return ((offset >= 0) & (offset < kernel)).sum(dim=1)


@dataclass
class _Tracer:
    """Notes what is to be done."""

    spiking: Mapping[Step, Spikes]
    found: list[Operation] = field(default_factory=list)
    layers: set[str] = field(default_factory=set)
    called: set[nn.Module] = field(default_factory=set)
    scaled: set[str] = field(default_factory=set)

    def do(self, step: Step, *x: Signal) -> Signal:
        """Note the operations of `step`; what becomes of its inputs."""
        if step.kind in ("conv", "border_conv"):
            return self._conv(step, x[0])
        if step.kind in ("linear", "conv_transpose"):
            return self._linear(step, x[0])
        if step.kind == "attention":
            return self._attention(step, *x)
        if step.kind == "neuron":
            y = self.settled(x[0])
            self._emit(step.name, "neuron", replace(y, step=step), step.module)
            return self._made(step, y.passes)
        if step.kind in ("norm", "scale", "shift"):
            if step in self.spiking:  # a factor of spikes goes into the next layer's
                return replace(x[0], step=step, spikes=self.spiking[step])
            return replace(self._summed(x[0]), step=step, spikes=None, due=step.name)
        if step.kind == "view":
            grid = (1, 1) if step.options.get("flattened") else x[0].grid
            return replace(x[0], step=step, grid=grid, spikes=self.spiking.get(step))
        if step.kind == "repeat":
            # Scaled once, then repeated.
            y = self.settled(x[0])
            return replace(y, step=step, passes=step.time, spikes=self.spiking.get(step))
        if step in self.spiking and step.kind in ("time_sum", "spatial_sum"):
            y = replace(x[0], step=step, spikes=self.spiking[step], summed=step.name)
            if step.kind == "time_sum":
                return replace(y, times=y.passes)
            return replace(y, places=step.inputs[0].tokens)
        return self._elementwise(step, [self.settled(y) for y in x])

    def _elementwise(self, step: Step, x: list[Signal]) -> Signal:
        """Sums, products, pools and means: one operation for each value that is read or made."""
        done = replace(x[0], step=step if step.tokens >= x[0].step.tokens else x[0].step)
        self._emit(step.name, "shortcut", done)
        y = self._made(step, step.time)
        scaled = step.kind in ("time_sum", "spatial_sum") and step.options["mean"]
        return replace(y, due=f"{step.name}.scale") if scaled else y

    def _made(self, step: Step, passes: int) -> Signal:
        """The signal of a value that `step` has just made."""
        return Signal(step=step, passes=passes, grid=step.size[1:], spikes=self.spiking.get(step))

    def _conv(self, step: Step, x: Signal) -> Signal:
        if step.kind == "border_conv":
            x = replace(x, spikes=None, due=step.options["norm_name"])
        if x.spikes is None and not x.pixels:
            x = self.settled(x, to_layer=True)
        layer = cast(nn.Conv2d, step.module)
        (height, width), channels = step.inputs[0].size[1:], step.inputs[0].channels
        kernel, stride, padding = (step.options[k] for k in ("kernel", "stride", "padding"))
        per_group = layer.out_channels // layer.groups
        rows, columns = (reach_along(s, kernel, stride, padding) for s in (height, width))
        reach = rows[:, None] * columns[None, :] * per_group
        return self._layer(step, x, reach, channels * int(reach.sum()), step.tokens)

    def _linear(self, step: Step, x: Signal) -> Signal:
        if x.spikes is None and not x.pixels:
            x = self.settled(x, to_layer=True)
        outputs = cast(Any, step.module).weight[0].numel()
        if step.kind == "linear":
            outputs = step.channels
        grid = x.grid if x.spikes is not None else step.inputs[0].size[1:]
        reach = torch.full(grid, outputs, device="cpu")
        reached = step.inputs[0].channels * int(reach.sum())
        return self._layer(step, x, reach, reached, math.prod(grid))

    def _layer(self, step: Step, x: Signal, reach: Tensor, reached: int, places: int) -> Signal:
        layer = cast(Any, step.module)
        weights = layer.weight.numel()
        # Squares of a transposed convolution do not overlap: a sum has the inputs of one pixel.
        summed = layer.in_channels if step.kind == "conv_transpose" else weights // step.channels
        real: Role = "stem" if x.pixels else "inner"
        self.layers.add(step.name)
        self.found.append(
            Operation(
                name=step.name,
                kind="mac" if x.spikes is None else "ac",
                role=real if x.spikes is None else "other",
                source=None if x.spikes is None else x.spikes.source.name,
                levels=1 if x.spikes is None else x.spikes.levels,
                passes=x.passes,
                dense_macs=weights * places,
                reached=reached,
                reach=reach,
                layer_input=step.inputs[0].channels * math.prod(x.grid),
                elements=step.channels * step.tokens,
                weights=weights,
                repeated=layer in self.called,
                weight_bits=getattr(layer, "bits", None),
                fan_in=summed * x.times * x.places,
                times=x.times,
                places=x.places,
            )
        )
        self.called.add(layer)
        return replace(self._made(step, step.time), due=step.name)

    def _attention(self, step: Step, q: Signal, k: Signal, v: Signal) -> Signal:
        layer = cast(SpikeAttention, step.module)
        _, height, width = step.size
        tokens = height * width
        d, d_v = (s.step.channels // layer.heads for s in (q, v))
        known = [s.spikes for s in (q, k, v) if s.spikes is not None]
        for part, source, partner in (("kv", k, v), ("qkv", q, None)):
            assert source.spikes is not None
            read = source.numel + (partner.numel if partner is not None else 0)
            self.found.append(
                Operation(
                    name=f"{step.name}.{part}",
                    kind="attention",
                    source=source.spikes.source.name,
                    partner=None
                    if partner is None or partner.spikes is None
                    else partner.spikes.source.name,
                    levels=max(s.levels for s in known),
                    passes=q.passes,
                    dense_macs=tokens * q.step.channels * d_v,
                    reach=torch.full((height, width), d_v, device="cpu"),
                    layer_input=read,
                    elements=q.step.channels * d_v if part == "kv" else v.numel,
                    fan_in=d,
                    tokens=tokens,
                    heads=layer.heads,
                )
            )
        return replace(self._made(step, step.time), due=step.name)

    def settled(self, x: Signal, *, to_layer: bool = False) -> Signal:
        """`x` summed and with the scaling that is due carried out, once for all who use it."""
        x = self._summed(x)
        if x.due is None:
            return x
        # Named after the convolution where no norm follows it.
        name = f"{x.due}.scale" if x.due in self.layers else x.due
        if name not in self.scaled:
            self.scaled.add(name)
            self._emit(name, "norm", x, to_layer=to_layer)
        return replace(x, due=None)

    def _summed(self, x: Signal) -> Signal:
        """`x` with its spikes added up, an addition for each count."""
        if not x.summed:
            return x
        if x.summed not in self.scaled:
            self.scaled.add(x.summed)
            self.found.append(
                Operation(
                    name=x.summed,
                    kind="shortcut",
                    passes=x.passes,
                    elements=x.step.channels * math.prod(x.grid),
                )
            )
        grid = x.step.size[1:]
        return replace(x, passes=x.step.time, grid=grid, times=1, places=1, summed="")

    def _emit(
        self,
        name: str,
        kind: Kind,
        x: Signal,
        neuron: nn.Module | None = None,
        to_layer: bool = False,
    ) -> None:
        self.found.append(
            Operation(
                name=name,
                kind=kind,
                passes=x.passes,
                elements=x.numel,
                neuron=cast(SpikingNeuron | None, neuron),
                levels=neuron.levels if isinstance(neuron, SpikingNeuron) else 1,
                to_layer=to_layer,
            )
        )


def neuron_arithmetic(neuron: SpikingNeuron) -> tuple[int, int]:
    """Additions (comparisons among them) and multiplications of one update of one neuron.

    IE-LIF compares with D thresholds; with T > 1 it also decays, integrates and resets. LIF
    subtracts, integrates and compares. Factors that are powers of two are shifts, and free.
    """
    if isinstance(neuron, LIF):
        return 3, 0 if _is_power_of_two(neuron.tau) else 1
    if neuron.time_steps == 1:
        return neuron.levels, 0
    decay = cast(float, neuron.decay)
    return neuron.levels + 2, 0 if decay in (0.0, 1.0) or _is_power_of_two(1 / decay) else 1


def _is_power_of_two(x: float) -> bool:
    return x >= 1 and float(x).is_integer() and int(x) & (int(x) - 1) == 0
