"""What published designs are given: layers as products of spike matrices with weights.

Legend: S time steps (virtual ones, where a count of D levels stands for D of them), P output
positions of a map, K inputs of a sum, N outputs. A layer multiplies (S * P, K) spikes, the rows of
"im2col", zeros of the border among them, with (K, N) weights.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, cast

import numpy as np
from torch import nn

from qsdformer.accelerator.signals import KEEPS_SPIKES
from qsdformer.graph.check import Shape, check_graph
from qsdformer.graph.integer import IntegerGraph
from qsdformer.graph.ops import (
    Array,
    Conv,
    ConvTranspose,
    MaxPool,
    Multiply,
    Neuron,
    Op,
    Reshape,
    SpatialSum,
    TimeSum,
    Upsample,
)
from qsdformer.graph.ops import Attention as IntegerAttention
from qsdformer.graph.spikes import spike_values
from qsdformer.graph.steps import Step, Traced
from qsdformer.graph.trace import BATCH, trace
from qsdformer.nn.attention import SpikeAttention


@dataclass(frozen=True, kw_only=True)
class Layer:
    """A convolution or linear layer on spikes. Of a layer in groups, K and N are one group's.

    `matrix` gives its spikes, bool (S, P * groups, K), where they are known; else `density` is
    the share of ones.
    """

    name: str
    steps: int  # S
    positions: int  # P * groups
    inputs: int  # K
    outputs: int  # N
    kernel: int  # side of the kernel, whose k * k positions share an input
    density: float | None = None
    matrix: Callable[[], Array] | None = None

    @property
    def rows(self) -> int:
        """Rows of the spike matrix."""
        return self.steps * self.positions

    def spikes(self) -> Array:
        """The spike matrix by time step; a `ValueError` where only a density is known."""
        if self.matrix is None:
            raise ValueError(f"{self.name}: this design needs spikes, and only a density is known")
        return self.matrix()

    def ones(self) -> float:
        """Ones of the spike matrix; a whole number where it is known."""
        if self.density is not None:
            return self.density * self.rows * self.inputs
        return float(np.count_nonzero(self.spikes()))


@dataclass(frozen=True, kw_only=True)
class Attention:
    """Attention of `heads`, by products of matrices, or by masks (SDSA) without.

    `products` are those of matrices, head by head and step by step, where spikes are known.
    """

    kind: Literal["product", "mask"]
    steps: int
    tokens: int
    channels: int
    heads: int
    products: Callable[[], Iterator[Layer]] | None = None


@dataclass(frozen=True, kw_only=True)
class Neurons:
    """A layer of `size` LIF neurons."""

    size: int
    steps: int


@dataclass(frozen=True, kw_only=True)
class Workload:
    """A network for one image.

    `left_out` are layers that no published design here has a unit for: those on real values,
    those on sums of spikes, as heads often are, and transposed convolutions.
    """

    layers: tuple[Layer, ...]
    attentions: tuple[Attention, ...]
    neurons: tuple[Neurons, ...]
    left_out: tuple[str, ...] = ()

    @property
    def dense_additions(self) -> int:
        """Additions if every neuron fired at every step, border included."""
        return sum(x.rows * x.inputs * x.outputs for x in self.layers)


def published_workload(model: nn.Module, image: tuple[int, int, int], density: float) -> Workload:
    """The workload of a network of LIF neurons as those published with Prosperity are listed.

    `model` may be on the meta device; `image` is (C, H, W), `density` the share of ones in every
    spike matrix. Layers on pixels and the head are left out; 1x1 convolutions of one input (q, k
    and v) are one layer; every output of a layer or of an attention by products has a LIF neuron.
    """
    traced = trace(model.eval(), (BATCH, *image))
    spikes = spike_values(traced)
    read: dict[tuple[Step, int], list[Step]] = {}
    left_out = []
    for step in traced.of_kind("conv", "linear", "conv_transpose"):
        given = spikes.get(step.inputs[0])
        if given is None or given.is_summed or step.kind == "conv_transpose":
            left_out.append(step.name)
            continue
        alone = _kernel(step) > 1
        read.setdefault((step if alone else step.inputs[0], _kernel(step)), []).append(step)
    layers = [_layer(steps, density) for steps in read.values()]
    attentions = list(_attentions(traced))
    neurons = [Neurons(size=x.positions * x.outputs, steps=x.steps) for x in layers]
    neurons += [
        Neurons(size=x.tokens * x.channels, steps=x.steps)
        for x in attentions
        if x.kind == "product"
    ]
    return Workload(
        layers=tuple(layers),
        attentions=tuple(attentions),
        neurons=tuple(neurons),
        left_out=tuple(left_out),
    )


def graph_workload(graph: IntegerGraph, image: Array) -> Workload:
    """The workload of an integer graph with its spikes for one uint8 image (1, C, H, W).

    For a network of frames, (T, 1, C, H, W). A spike count of up to D levels becomes D virtual time
    steps, with at most one spike in each.
    """
    shapes, spiking = check_graph(graph), spike_ops(graph)
    convs = [op for op in graph.ops if isinstance(op, (Conv, ConvTranspose))]
    read = [op for op in convs if isinstance(op, Conv) and op.inputs[0] in spiking]
    of_spikes = (*read, *(op for op in graph.ops if isinstance(op, IntegerAttention)))
    values, _ = graph.run_values(image, {name for op in of_spikes for name in op.inputs})
    layers = (_graph_layer(op, values[op.inputs[0]], shapes) for op in read)
    neurons = (op for op in graph.ops if isinstance(op, Neuron))
    return Workload(
        layers=tuple(layers),
        attentions=tuple(_graph_attentions(graph, values, shapes)),
        neurons=tuple(
            Neurons(size=_size(shapes[op.name]), steps=op.steps * op.levels) for op in neurons
        ),
        left_out=tuple(op.name for op in convs if op not in read),
    )


def spike_ops(graph: IntegerGraph) -> frozenset[str]:
    """The operations whose values are spike counts; sums over time or over the grid are none."""
    found: set[str] = set()
    for op in graph.ops:
        passes = isinstance(op, KEEPS_SPIKES) and not isinstance(op, (SpatialSum, TimeSum))
        passes &= not isinstance(op, Upsample) or op.mode == "nearest"
        if isinstance(op, Neuron) or (passes and found.issuperset(op.inputs)):
            found.add(op.name)
    return frozenset(found)


def spike_matrix(op: Conv, counts: Array, levels: int) -> Array:
    """The rows of "im2col", bool (T * levels, P * groups, K), of counts (T, C, H, W)."""
    size, pad, groups = op.codes.shape[-1], op.padding, op.groups
    ones = counts[:, None] > np.arange(levels).reshape(-1, 1, 1, 1)
    ones = ones.reshape(-1, *counts.shape[1:])
    ones = np.pad(ones, ((0, 0), (0, 0), (pad, pad), (pad, pad)))
    windows = np.lib.stride_tricks.sliding_window_view(ones, (size, size), axis=(2, 3))
    windows = windows[:, :, :: op.stride, :: op.stride]
    steps, channels, height, width = windows.shape[:4]
    grouped = windows.reshape(steps, groups, channels // groups, height, width, size, size)
    rows = grouped.transpose(0, 1, 3, 4, 2, 5, 6)
    return rows.reshape(steps, groups * height * width, -1)


def _graph_layer(op: Conv, counts: Array, shapes: Mapping[str, Shape]) -> Layer:
    made, levels = shapes[op.name], max(1, int(shapes[op.inputs[0]].bound.max()))
    return Layer(
        name=op.name,
        steps=len(counts) * levels,
        positions=made.height * made.width * op.groups,
        inputs=op.codes[0].size,
        outputs=len(op.codes) // op.groups,
        kernel=op.codes.shape[-1],
        matrix=lambda: spike_matrix(op, counts, levels),
    )


def _graph_attentions(
    graph: IntegerGraph, values: Mapping[str, Array], shapes: Mapping[str, Shape]
) -> Iterator[Attention]:
    by_name = {op.name: op for op in graph.ops}
    for op in graph.ops:
        product = isinstance(op, IntegerAttention)
        # Masks are sums of k times v, whose counts reach D * D, where those of k and v reach D.
        reader = _pooled(by_name, op.inputs[0]) if isinstance(op, SpatialSum) else op
        mask = isinstance(op, SpatialSum) and isinstance(reader, Multiply)
        if not (product or mask):
            continue
        read = [shapes[name] for name in reader.inputs]
        levels = max(1, int(max(shape.bound.max() for shape in read)))
        attention = Attention(
            kind="mask",
            steps=read[0].steps * levels,
            tokens=read[0].height * read[0].width,
            channels=read[-1].channels,
            heads=1,
        )
        if isinstance(op, IntegerAttention):
            maps = [values[name] for name in op.inputs]
            products = functools.partial(_products, op.name, maps, op.heads, levels)
            attention = replace(attention, kind="product", heads=op.heads, products=products)
        yield attention


def _pooled(by_name: Mapping[str, Op], name: str) -> Op:
    """What makes `name`, before a pool of planes."""
    op = by_name[name]
    while isinstance(op, (MaxPool, Reshape)):
        op = by_name[op.inputs[0]]
    return op


def _products(name: str, maps: Sequence[Array], heads: int, levels: int) -> Iterator[Layer]:
    """k^T v and q (k^T v) of each head, or q k^T and its product with v if that is less.

    The spikes of the first are those of k; the numbers that they add are counted as weights.
    """
    q, k, v = (x.reshape(len(x), heads, -1, x.shape[2] * x.shape[3]) for x in maps)  # (T, h, d, N)
    by_tokens = q.shape[3] <= q.shape[2]
    first = k.swapaxes(2, 3) if by_tokens else k  # rows: tokens, or channels
    second = v if by_tokens else q.swapaxes(2, 3)
    outputs = (q.shape[3], q.shape[3]) if by_tokens else (v.shape[2], v.shape[2])
    for matrix, out in zip((first, second), outputs, strict=True):
        for at in np.ndindex(len(q), heads):
            ones = matrix[at] > np.arange(levels).reshape(-1, 1, 1)
            yield Layer(
                name=name,
                steps=levels,
                positions=ones.shape[1],
                inputs=ones.shape[2],
                outputs=out,
                kernel=1,
                matrix=lambda ones=ones: ones,  # type: ignore[misc]
            )


def _size(shape: Shape) -> int:
    return shape.channels * shape.height * shape.width


def _kernel(step: Step) -> int:
    return cast(int, step.options["kernel"]) if step.kind == "conv" else 1


def _layer(steps: list[Step], density: float) -> Layer:
    """One layer, or several of 1x1 on the same input, as one."""
    first = steps[0]
    module = cast(Any, first.module)
    groups = getattr(module, "groups", 1)
    return Layer(
        name=first.name if len(steps) == 1 else " + ".join(step.name for step in steps),
        steps=first.time,
        positions=first.tokens * groups,
        inputs=module.weight[0].numel(),
        outputs=sum(step.channels for step in steps) // groups,
        kernel=_kernel(first),
        density=density,
    )


def _attentions(traced: Traced) -> Iterator[Attention]:
    for step in traced.steps:
        of = step.inputs[0] if step.inputs else step
        if step.kind == "attention":
            yield Attention(
                kind="product",
                steps=step.time,
                tokens=step.tokens,
                channels=step.channels,
                heads=cast(SpikeAttention, step.module).heads,
            )
        elif step.kind == "spatial_sum" and of.kind in ("multiply", "plane_pool"):
            yield Attention(
                kind="mask", steps=of.time, tokens=of.tokens, channels=of.channels, heads=1
            )
