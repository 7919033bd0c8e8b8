"""The order of computation of a Meta-SpikeFormer, written once for every way to execute it.

A backend says what a convolution, a norm or a neuron does to its own kind of value: binary spikes
(`binary.py`) or a symbolic integer (`lowering.py`). The walk says in which order.
"""

from __future__ import annotations

from typing import Protocol, TypeVar, cast

from torch import nn

from qsdformer.models.metaspikeformer import MetaSpikeFormer, Stage
from qsdformer.nn.attention import Attention, LayerScale, Projection, TransformerBlock
from qsdformer.nn.blocks import MLP, ConvBlock, RepConv, SepConv
from qsdformer.nn.neurons import SpikingNeuron
from qsdformer.nn.quantizers import QuantConv2d, QuantLinear

V = TypeVar("V")


class Backend(Protocol[V]):
    """What the walk asks for; `name` is the dotted name of the module in the model."""

    def conv(self, name: str, layer: QuantConv2d, x: V) -> V:
        """A convolution."""
        ...

    def bordered(self, name: str, norm: nn.Module, name2: str, conv: QuantConv2d, x: V) -> V:
        """A norm, its output padded with the value it gives to 0, and a depthwise convolution."""
        ...

    def norm(self, name: str, layer: nn.BatchNorm2d, x: V) -> V:
        """A batch norm."""
        ...

    def layer_scale(self, name: str, layer: LayerScale, x: V) -> V:
        """A factor per channel."""
        ...

    def neuron(self, name: str, layer: SpikingNeuron, x: V) -> V:
        """A spiking neuron."""
        ...

    def attention(self, name: str, layer: Attention, q: V, k: V, v: V) -> V:
        """scale * q (k^T v) per head."""
        ...

    def add(self, name: str, x: V, y: V) -> V:
        """A membrane shortcut."""
        ...

    def repeat(self, name: str, steps: int, x: V) -> V:
        """A still image's value, shown at every time step."""
        ...

    def spatial_mean(self, name: str, x: V) -> V:
        """Mean over the grid, (B, C, 1, 1)."""
        ...

    def head(self, name: str, layer: QuantLinear, steps: int, x: V) -> V:
        """Mean over time steps, linear layer."""
        ...


def walk(model: MetaSpikeFormer, backend: Backend[V], image: V) -> V:
    """What `model` computes from `image` in evaluation, carried out by `backend`."""
    x = image
    for i, stage in enumerate(cast(list[Stage], list(model.stages))):
        name = f"stages.{i}"
        down = stage.downsample
        if isinstance(down.neuron, SpikingNeuron):
            x = backend.neuron(f"{name}.downsample.neuron", down.neuron, x)
        x = backend.conv(f"{name}.downsample.conv", down.conv, x)
        x = backend.norm(f"{name}.downsample.norm", down.norm, x)
        if i == 0:
            x = backend.repeat("repeat", model.config.time_steps, x)
        for j, block in enumerate(stage.blocks):
            walk_block = _conv_block if isinstance(block, ConvBlock) else _transformer_block
            x = walk_block(f"{name}.blocks.{j}", block, backend, x)  # type: ignore[arg-type]
    x = backend.spatial_mean("mean", x)
    x = backend.neuron("neuron", cast(SpikingNeuron, model.neuron), x)
    return backend.head("head", cast(QuantLinear, model.head), model.config.time_steps, x)


def _conv_block(name: str, block: ConvBlock, do: Backend[V], x: V) -> V:
    x = do.add(f"{name}.add1", x, _sepconv(f"{name}.sepconv", block.sepconv, do, x))
    y = do.neuron(f"{name}.neuron1", cast(SpikingNeuron, block.neuron1), x)
    y = do.norm(f"{name}.norm1", block.norm1, do.conv(f"{name}.conv1", block.conv1, y))
    y = do.neuron(f"{name}.neuron2", cast(SpikingNeuron, block.neuron2), y)
    y = do.norm(f"{name}.norm2", block.norm2, do.conv(f"{name}.conv2", block.conv2, y))
    return do.add(f"{name}.add2", x, y)


def _sepconv(name: str, block: SepConv, do: Backend[V], x: V) -> V:
    x = do.neuron(f"{name}.neuron1", cast(SpikingNeuron, block.neuron1), x)
    x = do.norm(f"{name}.norm1", block.norm1, do.conv(f"{name}.pointwise1", block.pointwise1, x))
    x = do.neuron(f"{name}.neuron2", cast(SpikingNeuron, block.neuron2), x)
    x = do.conv(f"{name}.depthwise", block.depthwise, x)
    x = _between(f"{name}.between", block.between, do, x)
    return do.norm(f"{name}.norm2", block.norm2, do.conv(f"{name}.pointwise2", block.pointwise2, x))


def _between(name: str, module: nn.Module, do: Backend[V], x: V) -> V:
    """Norm and neuron of the fully spike-driven variant; nothing as published."""
    if isinstance(module, nn.Identity):
        return x
    norm, neuron = cast(nn.Sequential, module)
    x = do.norm(f"{name}.0", cast(nn.BatchNorm2d, norm), x)
    return do.neuron(f"{name}.1", cast(SpikingNeuron, neuron), x)


def _repconv(name: str, block: RepConv, do: Backend[V], x: V) -> V:
    x = do.conv(f"{name}.pointwise1", block.pointwise1, x)
    if not block.fully_spiking:
        x = do.bordered(f"{name}.norm1", block.norm1, f"{name}.depthwise", block.depthwise, x)
    else:
        x = _between(f"{name}.norm1", block.norm1, do, x)
        x = do.conv(f"{name}.depthwise", block.depthwise, x)
    x = _between(f"{name}.between", block.between, do, x)
    return do.norm(f"{name}.norm2", block.norm2, do.conv(f"{name}.pointwise2", block.pointwise2, x))


def _projection(name: str, block: Projection, do: Backend[V], x: V) -> V:
    return do.norm(f"{name}.norm", block.norm, _repconv(f"{name}.conv", block.conv, do, x))


def _attention(name: str, block: Attention, do: Backend[V], x: V) -> V:
    x = do.neuron(f"{name}.neuron", cast(SpikingNeuron, block.neuron), x)
    qkv = []
    for letter in ("q", "k", "v"):
        projection = cast(Projection, getattr(block, letter))
        neuron = cast(SpikingNeuron, getattr(block, f"{letter}_neuron"))
        y = _projection(f"{name}.{letter}", projection, do, x)
        qkv.append(do.neuron(f"{name}.{letter}_neuron", neuron, y))
    x = do.attention(name, block, *qkv)
    if isinstance(block.attention_norm, nn.BatchNorm2d):
        x = do.norm(f"{name}.attention_norm", block.attention_norm, x)
    x = do.neuron(f"{name}.attention_neuron", cast(SpikingNeuron, block.attention_neuron), x)
    return _projection(f"{name}.projection", block.projection, do, x)


def _mlp(name: str, block: MLP, do: Backend[V], x: V) -> V:
    x = do.neuron(f"{name}.neuron1", cast(SpikingNeuron, block.neuron1), x)
    x = do.norm(f"{name}.norm1", block.norm1, do.conv(f"{name}.fc1", block.fc1, x))
    x = do.neuron(f"{name}.neuron2", cast(SpikingNeuron, block.neuron2), x)
    return do.norm(f"{name}.norm2", block.norm2, do.conv(f"{name}.fc2", block.fc2, x))


def _transformer_block(name: str, block: TransformerBlock, do: Backend[V], x: V) -> V:
    y = _attention(f"{name}.attention", block.attention, do, x)
    x = do.add(f"{name}.add1", x, _scaled(f"{name}.scale1", block.scale1, do, y))
    y = _mlp(f"{name}.mlp", block.mlp, do, x)
    return do.add(f"{name}.add2", x, _scaled(f"{name}.scale2", block.scale2, do, y))


def _scaled(name: str, scale: nn.Module, do: Backend[V], x: V) -> V:
    return do.layer_scale(name, scale, x) if isinstance(scale, LayerScale) else x
