"""Spikes of a model over a data set, at hardly more than the cost of evaluating it.

Per neuron only the sum over images is kept, one number for each channel and place: what a layer
does with the spikes follows from that and from the fan-out of each place. q, k and v also get
histograms of their counts, and k and v the number of their pairs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from qsdformer.analysis.information import QKV
from qsdformer.errors import UserError
from qsdformer.models.metaspikeformer import MetaSpikeFormer
from qsdformer.nn.attention import Attention
from qsdformer.nn.exact import exact_float32
from qsdformer.nn.neurons import SpikingNeuron, firing_rate
from qsdformer.nn.taps import on_call, spiking_neurons


@dataclass(kw_only=True)
class Measured:
    """Sums over `images` images and all their time steps.

    `spikes` and `active` hold, by neuron, int64 tensors (C, H, W): the spikes, and how often the
    count was not 0. `pairs` counts, by attention, pairs of a k and a v spike of one token and
    head. `histograms` are those of q, k and v neurons, (D + 1,). `size` is the images' (H, W).
    """

    images: int = 0
    correct: int = 0
    size: tuple[int, int] = (0, 0)
    spikes: dict[str, Tensor] = field(default_factory=dict)
    active: dict[str, Tensor] = field(default_factory=dict)
    pairs: dict[str, int] = field(default_factory=dict)
    histograms: dict[str, Tensor] = field(default_factory=dict)

    @property
    def accuracy(self) -> float:
        """Top-1 accuracy, a fraction."""
        return self.correct / self.images


@torch.inference_mode()
def measure(
    model: MetaSpikeFormer,
    batches: Iterable[tuple[Tensor, Tensor]],
    device: torch.device | str = "cpu",
) -> Measured:
    """Run `model`, put in eval mode, over (images, labels) batches of still images or frames.

    Raises `UserError` for a model without spiking neurons and without images.
    """
    neurons = spiking_neurons(model)
    if not neurons:
        raise UserError(
            "this model has no spiking neurons: it is an ANN; give a spiking checkpoint, whose "
            "ANN twin is shown with --twins"
        )
    model.eval().to(device)
    meter = _Meter(model)
    result = meter.result
    with ExitStack() as stack:
        for name, neuron in neurons.items():
            stack.enter_context(on_call(neuron, meter.recorder(name, neuron)))
        for images, labels in batches:
            with exact_float32(device):
                logits = model(images.to(device))
            result.correct += int((logits.argmax(1).cpu() == labels).sum())
            result.images += len(labels)
            result.size = (images.shape[-2], images.shape[-1])
    if not result.images:
        raise UserError("no images to measure spikes on: the data set is empty")
    for sums in (result.spikes, result.active):
        for name, total in sums.items():
            sums[name] = total.long().cpu()
    return result


def firing_rates(measured: Measured, model: MetaSpikeFormer) -> dict[str, float]:
    """Mean of the binary spikes of each neuron layer, in [0, 1]."""
    rates = {}
    for name, spikes in measured.spikes.items():
        neuron = model.get_submodule(name)
        assert isinstance(neuron, SpikingNeuron)
        neurons = measured.images * neuron.time_steps * spikes.numel()
        rates[name] = firing_rate(float(spikes.sum()), neurons, neuron.levels)
    return rates


class _Meter:
    def __init__(self, model: MetaSpikeFormer) -> None:
        self.result = Measured()
        self._heads = {n: m.heads for n, m in model.named_modules() if isinstance(m, Attention)}
        self._keys: dict[str, Tensor] = {}

    def recorder(
        self, name: str, neuron: SpikingNeuron
    ) -> Callable[[nn.Module, Tensor, Tensor], None]:
        # Sums of multiples of a power of two are exact in float32 up to 2^24 of them.
        exact = math.frexp(neuron.step)[0] == 0.5
        dtype = torch.float32 if exact else torch.float64
        scope, _, leaf = name.rpartition(".")
        result = self.result

        def record(_module: nn.Module, _x: Tensor, y: Tensor) -> None:
            spikes = (y.sum(0, dtype=dtype) / neuron.step).round().double()
            active = y.sign().sum(0).double()
            for sums, value in ((result.spikes, spikes), (result.active, active)):
                value = value.view(len(value), *(value.shape[1:] or (1, 1)))
                sums[name] = sums[name] + value if name in sums else value
            if leaf in QKV:
                counts = (y / neuron.step).round_()
                self._histogram(name, counts, neuron.levels)
                self._pair(scope, leaf, counts)

        return record

    def _histogram(self, name: str, counts: Tensor, levels: int) -> None:
        histogram = torch.bincount(counts.int().flatten(), minlength=levels + 1).cpu()
        known = self.result.histograms
        known[name] = known[name] + histogram if name in known else histogram

    def _pair(self, scope: str, leaf: str, counts: Tensor) -> None:
        """Spikes of k and v are paired per token and head; k comes first."""
        if leaf == "q_neuron":
            return
        by_head = counts.unflatten(1, (self._heads[scope], -1)).sum(2)
        if leaf == "k_neuron":
            self._keys[scope] = by_head
            return
        pairs = int((self._keys.pop(scope) * by_head).sum(dtype=torch.float64))
        self.result.pairs[scope] = self.result.pairs.get(scope, 0) + pairs
