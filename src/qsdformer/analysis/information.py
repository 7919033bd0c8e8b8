"""How much information spikes carry, how often neurons fire, and how large a packed model is.

Entropy is that of the empirical spike-count distribution, in bits; a neuron with D levels carries
at most log2(D + 1). Firing rate is the mean count / D, as `nn.neurons.firing_rate` has it.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import ExitStack

import torch
from torch import Tensor, nn

from qsdformer.errors import UserError
from qsdformer.nn.exact import exact_float32
from qsdformer.nn.neurons import SpikingNeuron, firing_rate
from qsdformer.nn.quantizers import quantized_layers
from qsdformer.nn.taps import on_call, spiking_neurons

FLOAT_BITS = 32
QKV = ("q_neuron", "k_neuron", "v_neuron")


def histogram_entropy(histogram: Tensor) -> float:
    """Entropy in bits of a histogram of any shape; 0 for an empty one."""
    p = histogram.double().flatten()
    p = p[p > 0] / p.sum().clamp_min(1)
    return max(0.0, -float((p * p.log2()).sum()))  # 0.0, not -0.0, for a single count


def spike_information_distortion(student: Tensor, twin: Tensor) -> float:
    """How far a histogram of spike counts is from that of the full-precision twin, in bits.

    The Jensen-Shannon divergence of the two distributions: 0 if they are equal, 1 if they share
    no count. Raises ValueError for histograms of different lengths.
    """
    if student.shape != twin.shape:
        raise ValueError(f"histograms of {tuple(student.shape)} and {tuple(twin.shape)} counts")
    p, q = (h.double() / h.sum().clamp_min(1) for h in (student, twin))
    mixed = histogram_entropy((p + q) / 2)
    return max(0.0, mixed - (histogram_entropy(p) + histogram_entropy(q)) / 2)


def spike_histograms(model: nn.Module, batches: Iterable[Tensor]) -> dict[str, Tensor]:
    """How often each neuron layer emitted each count over `batches` of images.

    Returns name -> int64 histogram (D + 1,). The model is used as it is: put it in eval mode
    first. Raises `UserError` for a model without spiking neurons or without images.
    """
    neurons = spiking_neurons(model)
    if not neurons:
        raise UserError("this model has no spiking neurons: it is an ANN; give a spiking one")
    histograms = {
        name: torch.zeros(neuron.levels + 1, dtype=torch.int64) for name, neuron in neurons.items()
    }

    def recorder(name: str) -> object:
        def record(neuron: nn.Module, _x: Tensor, y: Tensor) -> None:
            assert isinstance(neuron, SpikingNeuron)
            counts = neuron.counts(y).flatten()
            histograms[name] += torch.bincount(counts, minlength=neuron.levels + 1).cpu()

        return record

    device = next(model.parameters()).device
    images_seen = 0
    with ExitStack() as stack, torch.no_grad():
        for name, neuron in neurons.items():
            stack.enter_context(on_call(neuron, recorder(name)))  # type: ignore[arg-type]
        for images in batches:
            with exact_float32(device):
                model(images.to(device))
            images_seen += len(images)
    if not images_seen:
        raise UserError("no images to measure spikes on: the data set is empty")
    return histograms


def histogram_rate(histogram: Tensor) -> float:
    """Firing rate behind a spike histogram (D + 1,)."""
    counts = torch.arange(len(histogram), dtype=torch.float64)
    spikes = float((histogram * counts).sum())
    return firing_rate(spikes, float(histogram.sum()), len(histogram) - 1)


def mean_firing_rate(histograms: dict[str, Tensor]) -> float:
    """Firing rate over all neurons together, each counted as often as it was evaluated."""
    spikes = sum(histogram_rate(h) * float(h.sum()) for h in histograms.values())
    return spikes / max(1.0, sum(float(h.sum()) for h in histograms.values()))


def qkv_histograms(histograms: dict[str, Tensor]) -> dict[str, Tensor]:
    """The histograms of q, k and v, each summed over the transformer blocks; those there are."""
    last = {name: name.rpartition(".")[2] for name in histograms}  # kv_neuron is none of them
    found = {kind[0]: [h for n, h in histograms.items() if last[n] == kind] for kind in QKV}
    return {letter: torch.stack(parts).sum(0) for letter, parts in found.items() if parts}


def distortions(histograms: dict[str, Tensor], twin: dict[str, Tensor]) -> dict[str, float]:
    """`spike_information_distortion` of q, k and v from a twin's, in bits, all blocks together.

    `histograms` are by neuron, as `spike_histograms` gives them. Left out are those that the twin
    lacks or that have other counts there.
    """
    there = qkv_histograms(twin)
    return {
        name: spike_information_distortion(own, there[name])
        for name, own in qkv_histograms(histograms).items()
        if name in there and own.shape == there[name].shape
    }


def packed_bytes(model: nn.Module) -> int:
    """Bytes of the weights at their real bit width and everything else in fp32.

    Rounded up to whole bytes per tensor; batch norm statistics count, file headers do not.
    """
    return sum(packed_bytes_by_tensor(model).values())


def packed_bytes_by_tensor(model: nn.Module) -> dict[str, int]:
    """`packed_bytes` of each tensor of the state."""
    layers = quantized_layers(model)
    packed = {f"{n}.weight": m.bits for n, m in layers.items() if m.bits is not None}
    return {
        name: -(-value.numel() * (packed.get(name) or FLOAT_BITS) // 8)
        for name, value in model.state_dict().items()
        if not name.endswith("num_batches_tracked")
    }
