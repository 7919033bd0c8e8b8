"""Every operation of a network and its sizes, found by walking the model without computing.

The order comes from `deploy.walk`, the same that binary execution and lowering follow. Where these
make one fixed-point scaling out of a convolution's step sizes, norms and layer scales, there is
one operation here too, named after the last of them.

Legend: T time steps, D levels, C channels, H x W grid, N = H*W tokens, h heads, d = C/h.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import cast

import torch
from torch import Tensor, nn

from qsdformer.analysis.energy import Kind, Role
from qsdformer.errors import UserError
from qsdformer.graph.walk import walk
from qsdformer.models.metaspikeformer import MetaSpikeFormer
from qsdformer.nn.attention import Attention, LayerScale
from qsdformer.nn.neurons import LIF, SpikingNeuron
from qsdformer.nn.quantizers import QuantConv2d, QuantLinear


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
    source: str | None = None  # neuron that feeds it; for attention the k or the q neuron
    partner: str | None = None  # attention.kv: the v neuron
    passes: int = 1
    dense_macs: int = 0
    reached: int = 0  # MACs that fall on the image rather than on its padding
    reach: Tensor | None = None
    layer_input: int = 0
    elements: int = 0
    weights: int = 0
    weight_bits: int | None = None
    fan_in: int = 0
    tokens: int = 0
    heads: int = 0
    neuron: SpikingNeuron | None = None
    to_layer: bool = False  # norm: the result is stored as the real input of a layer


@dataclass(frozen=True, kw_only=True)
class Signal:
    """A value on its way: shape (C, H, W), the neuron that made it, and a scaling still due."""

    shape: tuple[int, int, int]
    neuron: str | None = None
    pixels: bool = False
    due: str | None = None

    @property
    def numel(self) -> int:
        """Number of elements."""
        c, h, w = self.shape
        return c * h * w


def operations(model: MetaSpikeFormer, image_size: tuple[int, int]) -> list[Operation]:
    """The operations of `model` on still images (H, W), in order of execution.

    The model may be on the meta device. Raises `UserError` for one without spikes.
    """
    require_neurons(model)
    tracer = _Tracer()
    image = Signal(shape=(model.config.in_channels, *image_size), pixels=True)
    walk(model, tracer, image)
    return tracer.found


def require_neurons(model: MetaSpikeFormer) -> None:
    """`UserError` for an ANN."""
    if not model.config.is_spiking:
        raise UserError(
            f"this model is an ANN (neuron={model.config.neuron}) and has no spiking neurons: give "
            "a spiking checkpoint; its ANN twin is shown with --twins"
        )


def reach_along(size: int, kernel: int, stride: int, padding: int) -> Tensor:
    """How many outputs of a convolution each of `size` inputs along one axis reaches, (size,)."""
    outputs = (size + 2 * padding - kernel) // stride + 1
    inputs, starts = (torch.arange(n, device="cpu") for n in (size, outputs))
    offset = inputs[:, None] + padding - stride * starts[None, :]
    return ((offset >= 0) & (offset < kernel)).sum(dim=1)


@dataclass
class _Tracer:
    """The backend of the walk that notes what is to be done."""

    passes: int = 1
    found: list[Operation] = field(default_factory=list)
    layers: set[str] = field(default_factory=set)
    scaled: set[str] = field(default_factory=set)

    def conv(self, name: str, layer: QuantConv2d, x: Signal) -> Signal:
        if x.neuron is None and not x.pixels:
            x = self._settled(x, to_layer=True)
        channels, height, width = x.shape
        kernel, stride = layer.kernel_size[0], layer.stride[0]
        padding = cast(tuple[int, int], layer.padding)[0]
        per_group = layer.out_channels // layer.groups
        rows, columns = (reach_along(s, kernel, stride, padding) for s in (height, width))
        reach = rows[:, None] * columns[None, :] * per_group
        out_h, out_w = ((s + 2 * padding - kernel) // stride + 1 for s in (height, width))
        weights = layer.weight.numel()
        real: Role = "stem" if x.pixels else "inner"
        self.layers.add(name)
        self.found.append(
            Operation(
                name=name,
                kind="mac" if x.neuron is None else "ac",
                role=real if x.neuron is None else "other",
                source=x.neuron,
                passes=self.passes,
                dense_macs=weights * out_h * out_w,
                reached=channels * int(reach.sum()),
                reach=reach,
                layer_input=x.numel,
                elements=layer.out_channels * out_h * out_w,
                weights=weights,
                weight_bits=layer.bits,
                fan_in=weights // layer.out_channels,
            )
        )
        return Signal(shape=(layer.out_channels, out_h, out_w), due=name)

    def bordered(
        self, name: str, norm: nn.Module, name2: str, conv: QuantConv2d, x: Signal
    ) -> Signal:
        return self.conv(name2, conv, replace(x, due=name))

    def norm(self, name: str, layer: nn.BatchNorm2d, x: Signal) -> Signal:
        return replace(x, due=name)

    def layer_scale(self, name: str, layer: LayerScale, x: Signal) -> Signal:
        return replace(x, due=name)

    def neuron(self, name: str, layer: SpikingNeuron, x: Signal) -> Signal:
        x = self._settled(x)
        self._emit(name, "neuron", x, neuron=layer)
        return Signal(shape=x.shape, neuron=name)

    def attention(self, name: str, layer: Attention, q: Signal, k: Signal, v: Signal) -> Signal:
        channels, height, width = q.shape
        tokens, d = height * width, channels // layer.heads
        for part, source, partner in (("kv", k, v.neuron), ("qkv", q, None)):
            self.found.append(
                Operation(
                    name=f"{name}.{part}",
                    kind="attention",
                    source=source.neuron,
                    partner=partner,
                    passes=self.passes,
                    dense_macs=tokens * channels * d,
                    reach=torch.full((height, width), d, device="cpu"),
                    layer_input=q.numel * (2 if part == "kv" else 1),
                    elements=channels * d if part == "kv" else q.numel,
                    fan_in=d,
                    tokens=tokens,
                    heads=layer.heads,
                )
            )
        return Signal(shape=q.shape, due=name)

    def add(self, name: str, x: Signal, y: Signal) -> Signal:
        x, y = self._settled(x), self._settled(y)
        self._emit(name, "shortcut", x)
        return Signal(shape=x.shape)

    def repeat(self, name: str, steps: int, x: Signal) -> Signal:
        # Scaled once, then repeated.
        x = self._settled(x)
        self.passes = steps
        return x

    def spatial_mean(self, name: str, x: Signal) -> Signal:
        x = self._settled(x)
        self._emit(name, "shortcut", x)
        return Signal(shape=(x.shape[0], 1, 1), due=f"{name}.scale")

    def head(self, name: str, layer: QuantLinear, steps: int, x: Signal) -> Signal:
        weights = layer.weight.numel()
        self.found.append(
            Operation(
                name=name,
                kind="ac",
                source=x.neuron,
                passes=self.passes,
                dense_macs=weights,
                reached=weights,
                reach=torch.full((1, 1), layer.out_features, device="cpu"),
                layer_input=layer.in_features,
                elements=layer.out_features,
                weights=weights,
                weight_bits=layer.bits,
                fan_in=layer.in_features * steps,
            )
        )
        self.passes = 1
        logits = Signal(shape=(layer.out_features, 1, 1), due=f"{name}.scale")
        return self._settled(logits)

    def _settled(self, x: Signal, *, to_layer: bool = False) -> Signal:
        """`x` with the scaling that is due carried out, once for all who use the result."""
        if x.due is None:
            return x
        # Named after the convolution where no norm follows it.
        name = f"{x.due}.scale" if x.due in self.layers else x.due
        if name not in self.scaled:
            self.scaled.add(name)
            self._emit(name, "norm", x, to_layer=to_layer)
        return replace(x, due=None)

    def _emit(
        self,
        name: str,
        kind: Kind,
        x: Signal,
        neuron: SpikingNeuron | None = None,
        to_layer: bool = False,
    ) -> None:
        self.found.append(
            Operation(
                name=name,
                kind=kind,
                passes=self.passes,
                elements=x.numel,
                neuron=neuron,
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
