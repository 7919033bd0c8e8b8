"""Runs a layer and an attention of a network in hardware description, beside the simulator.

    python benchmarks/accelerator_hardware.py CHECKPOINT|MODEL.qsd IMAGE [--lanes 16]

The layer is the first of 1x1 on spikes; the attention is the first that masks (SDT v1), with T = 1.
Sums and spikes are compared with the integer graph's.
"""

from __future__ import annotations

import argparse

import numpy as np
from PIL import Image

import qsdformer as qsd
from qsdformer.accelerator.encoding import encode
from qsdformer.accelerator.hardware.assemblies import EncodedLinear, EncodedMaskAdd
from qsdformer.accelerator.hardware.linear import SparseLinear
from qsdformer.accelerator.hardware.mask_add import MaskAdd
from qsdformer.accelerator.hardware.running import channel_thresholds, run_linear, run_mask_add
from qsdformer.accelerator.published.workload import spike_ops
from qsdformer.accelerator.signals import is_linear
from qsdformer.accelerator.units import attention, encoder, linear
from qsdformer.accelerator.units.work import walk
from qsdformer.data.preprocessing import pixels
from qsdformer.graph.integer import IntegerGraph
from qsdformer.graph.ops import Array, Conv, Multiply, Neuron, SpatialSum

WORD = 64  # of bitmaps, which these units do not read
COUNTED = "address+count"


def main() -> None:
    """Print cycles, theirs and the simulator's."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("image")
    parser.add_argument("--lanes", type=int, default=16)
    options = parser.parse_args()
    loaded = qsd.load(options.model)
    graph = loaded if isinstance(loaded, IntegerGraph) else qsd.lower(loaded)
    image = pixels([Image.open(options.image)], graph.preprocessing)
    values, _ = graph.run_values(image, {op.name for op in graph.ops})
    run_layer(graph, values, options.lanes)
    if any(isinstance(op, Multiply) for op in graph.ops):
        run_attention(graph, values, options.lanes)


def run_layer(graph: IntegerGraph, values: dict[str, Array], lanes: int) -> None:
    """The first 1x1 convolution of spikes."""
    spiking = spike_ops(graph)
    convs = (op for op in graph.ops if isinstance(op, Conv) and is_linear(op))
    conv = next(op for op in convs if op.inputs[0] in spiking)
    counts = values[conv.inputs[0]].swapaxes(0, 1)  # (C, T, H, W)
    levels = int(counts.max())
    codes = conv.codes[:, :, 0, 0].astype(int)
    lists = counts.reshape(len(counts), -1).T
    unit = SparseLinear(
        inputs=len(counts), outputs=len(codes), pixels=len(lists), lanes=lanes, levels=levels
    )
    found = run_linear(EncodedLinear(unit, encoder_lanes=lanes), codes, lists)
    sums = values[conv.name].swapaxes(0, 1).reshape(len(codes), -1).T
    spikes = encode(counts, levels, "pixel")
    walked = linear.linear_walk(spikes, len(codes), lanes, COUNTED, WORD).on(1)[0]
    encoded = encoder.encoder_walk(spikes, lanes, 1, COUNTED).on(1)[0]
    print(f"{conv.name}: {len(lists)} lists of {len(counts)}, rate {(lists > 0).mean():.1%}")
    print(f"  sums differing     {np.count_nonzero(found.result != sums)} of {sums.size}")
    show("adding", found.cycles["busy"], walked + linear.FILL)
    show("encoding", found.cycles["encoding"], encoded + encoder.FILL)


def run_attention(graph: IntegerGraph, values: dict[str, Array], lanes: int) -> None:
    """The first attention by masks."""
    by_name = {op.name: op for op in graph.ops}
    at = next(
        i
        for i, op in enumerate(graph.ops)
        if isinstance(op, SpatialSum) and isinstance(by_name[op.inputs[0]], Multiply)
    )
    end = next(i for i, op in enumerate(graph.ops) if i > at and isinstance(op, Neuron))
    mask = graph.ops[end]
    product = next(op for op in graph.ops if isinstance(op, Multiply) and mask.name in op.inputs)
    names = (product.inputs[0], *by_name[graph.ops[at].inputs[0]].inputs)
    q, k, v = (values[name][0].reshape(values[name].shape[1], -1) for name in names)
    channels, tokens = q.shape
    levels = max(1, *(int(x.max()) for x in (q, k, v)))
    thresholds = channel_thresholds(graph.ops[at + 1 : end + 1], channels, tokens * levels**2)
    unit = MaskAdd(channels=channels, tokens=tokens, levels=levels)
    found = run_mask_add(EncodedMaskAdd(unit, encoder_lanes=lanes), q, k, v, thresholds)
    expected = values[product.name][0].reshape(q.shape)
    of_q, of_k, of_v = (encode(x[:, None, None, :], levels, "channel") for x in (q, k, v))
    merged = attention.merge_walk(of_k, of_v, COUNTED, WORD).on(1)[0]
    filtered = walk(of_q, 1, COUNTED, WORD).on(1)[0]
    masks = values[mask.name].mean()
    print(f"{product.name}: {channels} channels of {tokens} tokens, {masks:.1%} of them pass")
    print(f"  counts differing   {np.count_nonzero(found.result != expected)} of {q.size}")
    show("merging", found.cycles["merging"], merged + attention.FILL)
    show("filtering", found.cycles["filtering"], filtered + attention.FILL)


def show(what: str, here: int, simulated: int) -> None:
    """A pair of cycle counts."""
    print(f"  {what:10} cycles  {here:,} in the circuit, {simulated:,} in the simulator")


if __name__ == "__main__":
    main()
