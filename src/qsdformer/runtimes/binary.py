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

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from qsdformer.errors import UserError
from qsdformer.graph.walk import walk
from qsdformer.models.metaspikeformer import MetaSpikeFormer
from qsdformer.nn.attention import Attention, LayerScale, from_heads, to_heads
from qsdformer.nn.blocks import border_conv
from qsdformer.nn.neurons import SpikingNeuron, counts_to_spikes, spikes_to_counts
from qsdformer.nn.quantizers import QuantConv2d, QuantLinear
from qsdformer.nn.taps import spiking_neurons, tap


@dataclass(frozen=True, kw_only=True)
class BinaryRun:
    """Logits (B, classes), spike counts by neuron, and operations by layer over the batch.

    `counts` hold int64 tensors shaped like the neuron's output; `additions` and `macs` are totals.
    """

    logits: Tensor
    counts: dict[str, Tensor]
    additions: dict[str, int]
    macs: dict[str, int]


@dataclass(frozen=True, kw_only=True)
class SpikeTrain:
    """Binary spikes (D, T*B, C, H, W) as 0.0 and 1.0; each is worth `step`."""

    spikes: Tensor
    step: float


Value = Tensor | SpikeTrain


def multi_bit(model: MetaSpikeFormer, images: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Logits and the spike counts (int64) of every neuron in ordinary, multi-bit evaluation."""
    neurons = spiking_neurons(model)
    with torch.no_grad(), tap(model, *neurons) as outputs:
        logits = model(images)
    return logits, {name: neuron.counts(outputs[name]) for name, neuron in neurons.items()}


def run_binary(model: MetaSpikeFormer, images: Tensor) -> BinaryRun:
    """Run `model` on normalised images (B, C, H, W) or (T, B, C, H, W) with binary spikes only.

    Spike counts and logits equal those of multi-bit evaluation exactly where D and T are powers
    of two. Raises `UserError` for a model without spikes or without quantised weights.
    """
    check_spiking(model)
    backend = _Binary(frames=images.dim() == 5)
    first: Value = images.flatten(0, 1) if backend.frames else images
    with torch.no_grad():
        logits = walk(model, backend, first)
    assert isinstance(logits, Tensor)
    return BinaryRun(
        logits=logits, counts=backend.counts, additions=backend.additions, macs=backend.macs
    )


def check_spiking(model: MetaSpikeFormer) -> None:
    """`UserError` unless `model` is spiking, quantised throughout, whole, and in eval mode."""
    config = model.config
    if not config.is_spiking:
        raise UserError(f"neuron={config.neuron!r} makes no spikes: give a spiking model")
    for name in ("stem_bits", "weight_bits", "head_bits"):
        if getattr(config, name) is None:
            raise UserError(f"{name}=none: train the model with 2 to 8 bits for integer execution")
    if config.num_classes == 0 or len(model.stages) != 5:
        raise UserError("the model has no classification head: give a whole classifier")
    if model.training:
        raise ValueError("the model is in training mode: call model.eval() first")


def attention_scale(layer: Attention, tokens: int) -> float:
    """The factor of the attention product for a grid of `tokens`."""
    return layer.scale if layer.scale is not None else 1.0 / tokens


@dataclass
class _Binary:
    """The backend of the walk; values are real tensors or spike trains."""

    frames: bool
    counts: dict[str, Tensor] = field(default_factory=dict)
    additions: dict[str, int] = field(default_factory=dict)
    macs: dict[str, int] = field(default_factory=dict)

    def conv(self, name: str, layer: QuantConv2d, x: Value) -> Tensor:
        if isinstance(x, Tensor):
            self.macs[name] = _reached_weights(torch.ones_like(x), layer)
            return layer(x)
        codes = layer.codes().to(x.spikes.dtype)
        total = 0
        summed: Tensor | None = None
        for spikes in x.spikes:
            # Sums of codes over binary spikes: integers, exact in float32 below 2^24.
            y = F.conv2d(spikes, codes, None, layer.stride, layer.padding, groups=layer.groups)
            summed = y.int() if summed is None else summed + y.int()
            total += _reached_weights(spikes, layer)
        self.additions[name] = total
        assert summed is not None
        y = summed.to(codes.dtype) * x.step * layer.step_size.view(1, -1, 1, 1)
        return y if layer.bias is None else y + layer.bias.view(1, -1, 1, 1)

    def bordered(
        self, name: str, norm: nn.Module, name2: str, conv: QuantConv2d, x: Value
    ) -> Tensor:
        self.macs[name2] = _reached_weights(torch.ones_like(_real(x)), conv)
        return border_conv(_real(x), norm, conv)

    def norm(self, name: str, layer: nn.BatchNorm2d, x: Value) -> Tensor:
        return layer(_real(x))

    def layer_scale(self, name: str, layer: LayerScale, x: Value) -> Tensor:
        return layer(_real(x))

    def neuron(self, name: str, layer: SpikingNeuron, x: Value) -> SpikeTrain:
        values = layer(_real(x))
        spikes = counts_to_spikes(layer.counts(values), layer.levels).to(values.dtype)
        self.counts[name] = spikes_to_counts(spikes).long()
        return SpikeTrain(spikes=spikes, step=layer.step)

    def attention(self, name: str, layer: Attention, q: Value, k: Value, v: Value) -> Tensor:
        assert isinstance(q, SpikeTrain)
        assert isinstance(k, SpikeTrain)
        assert isinstance(v, SpikeTrain)
        height, width = q.spikes.shape[-2:]
        # float64 holds these sums of integers exactly up to 2^53. Per step: (B, h, N, d).
        steps = [[to_heads(s.double(), layer.heads) for s in x.spikes] for x in (q, k, v)]
        q_steps, k_steps, v_steps = steps
        kv = torch.zeros((), dtype=torch.float64, device=q.spikes.device)
        for k_BhNd in k_steps:
            for v_BhNd in v_steps:
                kv = kv + k_BhNd.transpose(-2, -1) @ v_BhNd
        product = torch.stack([q_BhNd @ kv for q_BhNd in q_steps]).sum(dim=0)
        pairs = [torch.stack(x).sum(dim=(0, -1)) for x in (k_steps, v_steps)]
        self.additions[f"{name}.kv"] = int((pairs[0] * pairs[1]).sum())
        self.additions[f"{name}.qkv"] = int(torch.stack(q_steps).sum()) * kv.shape[-1]
        values = product.to(q.spikes.dtype) * (q.step * k.step * v.step)
        return from_heads(values * attention_scale(layer, height * width), height, width)

    def add(self, name: str, x: Value, y: Value) -> Tensor:
        return _real(x) + _real(y)

    def repeat(self, name: str, steps: int, x: Value) -> Tensor:
        return _real(x) if self.frames or steps == 1 else _real(x).repeat(steps, 1, 1, 1)

    def spatial_mean(self, name: str, x: Value) -> Tensor:
        return _real(x).mean(dim=(2, 3))

    def head(self, name: str, layer: QuantLinear, steps: int, x: Value) -> Tensor:
        assert isinstance(x, SpikeTrain)
        codes = layer.codes().to(x.spikes.dtype)
        summed = torch.zeros(x.spikes.shape[1] // steps, codes.shape[0], dtype=torch.int32)
        for spikes in x.spikes.unflatten(1, (steps, -1)).flatten(0, 1):
            summed = summed.to(spikes.device) + F.linear(spikes, codes).int()
        self.additions[name] = int(x.spikes.sum(dtype=torch.float64)) * codes.shape[0]
        y = summed.to(codes.dtype) * (x.step / steps) * layer.step_size
        return y if layer.bias is None else y + layer.bias


def _real(x: Value) -> Tensor:
    assert isinstance(x, Tensor)
    return x


def _reached_weights(spikes: Tensor, layer: QuantConv2d) -> int:
    """Weights that the binary spikes (B, C, H, W) reach, exactly: convolution with ones."""
    size, stride, padding = layer.kernel_size[0], layer.stride[0], layer.padding
    assert not isinstance(padding, str)
    pixels = spikes.sum(dim=(0, 1), dtype=torch.float64)
    window = torch.ones(1, 1, size, size, dtype=torch.float64, device=spikes.device)
    reached = F.conv2d(pixels[None, None], window, stride=stride, padding=padding[0])
    return int(reached.sum()) * (layer.out_channels // layer.groups)
