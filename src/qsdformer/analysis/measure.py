"""Spikes of a model over a data set, at hardly more than the cost of evaluating it.

The model runs step by step as traced (`graph/trace.py`). Per neuron only the sum over images is
kept, one number for each channel and place: what a layer does with the spikes follows from that
and from the fan-out of each place. q, k and v also get histograms of their counts, and k and v
the number of their pairs.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, nn

from qsdformer.analysis.information import QKV, histogram_entropy, qkv_histograms
from qsdformer.analysis.post import PostWork
from qsdformer.errors import UserError
from qsdformer.graph.post import Post
from qsdformer.graph.spikes import spike_values
from qsdformer.graph.steps import Kind, Step, Traced
from qsdformer.graph.trace import Tracings, has_logits
from qsdformer.nn.attention import SpikeAttention
from qsdformer.nn.exact import exact_float32
from qsdformer.nn.neurons import firing_rate
from qsdformer.nn.taps import spiking_neurons

READERS: tuple[Kind, ...] = ("conv", "conv_transpose", "linear", "attention")


@dataclass(kw_only=True)
class Measured:
    """Sums over `images` images and all their time steps.

    `spikes` and `active` hold, by neuron, int64 tensors (C, H, W): the spikes, and how often the
    count was not 0. `pairs` counts, by attention, pairs of a k and a v spike of one token and
    head. `histograms` are those of neurons named q_neuron, k_neuron and v_neuron, (D + 1,). `slots`
    are the virtual time steps of a neuron, T * D. `size` is the images' (H, W), `frames`
    how many each has, None for still images. Spikes that a pool or a sum makes of others count as
    those of a neuron, under the operation's name.
    `post` is what post-processing did, where there is one.
    """

    images: int = 0
    correct: int | None = None  # None: the network has no logits
    size: tuple[int, int] = (0, 0)
    frames: int | None = None
    spikes: dict[str, Tensor] = field(default_factory=dict)
    active: dict[str, Tensor] = field(default_factory=dict)
    pairs: dict[str, int] = field(default_factory=dict)
    histograms: dict[str, Tensor] = field(default_factory=dict)
    slots: dict[str, int] = field(default_factory=dict)
    post: PostWork = field(default_factory=PostWork)

    @property
    def accuracy(self) -> float | None:
        """Top-1 accuracy, a fraction; None of a network without logits."""
        return None if self.correct is None else self.correct / self.images

    @property
    def entropies(self) -> dict[str, float]:
        """Entropy in bits of the counts of q, k and v, all blocks together."""
        histograms = qkv_histograms(self.histograms)
        return {name: histogram_entropy(h) for name, h in histograms.items()}


def measure(
    model: nn.Module,
    batches: Iterable[tuple[Tensor, Any]],
    device: torch.device | str = "cpu",
    post: Post | None = None,
) -> Measured:
    """Run `model`, put in eval mode, over (images, labels) batches of still images or frames.

    `post` is what is done with the outputs of a network, and counted too. Of one without logits
    labels are not looked at. Raises `UserError` for a model without spiking neurons and without
    images.
    """
    measurement = Measurement(model, device, post)
    for images, labels in batches:
        measurement.add(images, labels)
    return measurement.finish()


class Measurement:
    """What `measure` does, for batches that come one by one."""

    def __init__(
        self, model: nn.Module, device: torch.device | str = "cpu", post: Post | None = None
    ) -> None:
        if not spiking_neurons(model):
            raise UserError(
                "this model has no spiking neurons: it is an ANN; give a spiking checkpoint, whose "
                "ANN twin is shown with --twins"
            )
        self.device, self.post = device, post
        self.tracings = Tracings(model.eval().to(device))
        self.result = Measured()

    @torch.inference_mode()
    def add(self, images: Tensor, labels: Any) -> None:
        """Run the model on one batch, and add what it does."""
        result, traced = self.result, self.tracings.of(images)
        meter = _Meter(traced, result)
        with exact_float32(self.device):
            found = traced.walk(images.to(self.device), meter.do)
        if has_logits(traced):
            (logits,) = found.values()
            result.correct = (result.correct or 0) + int((logits.argmax(1).cpu() == labels).sum())
        if self.post is not None:
            named = {name: value.cpu() for name, value in found.items()}
            result.post.add(self.post, named, (images.shape[-2], images.shape[-1]))
        result.images += images.shape[-4]
        result.size = (images.shape[-2], images.shape[-1])
        result.frames = images.shape[0] if images.dim() == 5 else None

    def finish(self) -> Measured:
        """The sums, on the CPU."""
        result = self.result
        if not result.images:
            raise UserError("no images to measure spikes on: the data set is empty")
        for sums in (result.spikes, result.active):
            for name, total in sums.items():
                sums[name] = total.long().cpu()
        return result


def firing_rates(measured: Measured) -> dict[str, float]:
    """Mean of the binary spikes of each neuron layer, in [0, 1]."""
    return {
        name: firing_rate(
            float(spikes.sum()), measured.images * spikes.numel(), measured.slots[name]
        )
        for name, spikes in measured.spikes.items()
    }


class _Meter:
    """Carries out the steps of one batch and adds what it sees to the result."""

    def __init__(self, traced: Traced, result: Measured) -> None:
        self.result = result
        self.spiking = spike_values(traced)
        read = (x for s in traced.of_kind(*READERS) for x in s.inputs if x in self.spiking)
        self.read = {self.spiking[x].source for x in read} | set(traced.of_kind("neuron"))

    def do(self, step: Step, *values: Tensor) -> Tensor:
        y = step.run(*values)
        if step in self.read:
            self._record(step, y)
        if step.kind == "attention":
            self._pair(step, *values[1:])
        return y

    def _record(self, step: Step, y: Tensor) -> None:
        spikes, result = self.spiking[step], self.result
        # Sums of multiples of a power of two are exact in float32 up to 2^24 of them.
        exact = math.frexp(spikes.unit)[0] == 0.5
        dtype = torch.float32 if exact else torch.float64
        dims = 2 if step.axes.startswith("t") else 1
        folded = y.flatten(0, dims - 1)
        total = (folded.sum(0, dtype=dtype) / spikes.unit).round().double()
        if not total.isfinite().all():
            raise UserError(
                f"{step.name}: its spikes are no numbers: the weights are NaN, infinite or far too "
                "large, as after a training that diverged"
            )
        active = folded.sign().sum(0).double()
        for sums, value in ((result.spikes, total), (result.active, active)):
            value = _as_map(step, value)
            sums[step.name] = sums[step.name] + value if step.name in sums else value
        result.slots[step.name] = spikes.levels * step.time
        if step.name.rpartition(".")[2] in QKV:
            counts = (y / spikes.unit).round_()
            self._histogram(step.name, counts, spikes.levels)

    def _histogram(self, name: str, counts: Tensor, levels: int) -> None:
        histogram = torch.bincount(counts.int().flatten(), minlength=levels + 1).cpu()
        known = self.result.histograms
        known[name] = known[name] + histogram if name in known else histogram

    def _pair(self, step: Step, k: Tensor, v: Tensor) -> None:
        """Spikes of k and v are paired per token and head."""
        heads = cast(SpikeAttention, step.module).heads
        by_head = [
            (x / self.spiking[given].unit).round_().unflatten(1, (heads, -1)).sum(2)
            for x, given in zip((k, v), step.inputs[1:], strict=True)
        ]
        pairs = int((by_head[0] * by_head[1]).sum(dtype=torch.float64))
        self.result.pairs[step.name] = self.result.pairs.get(step.name, 0) + pairs


def _as_map(step: Step, value: Tensor) -> Tensor:
    """A sum over images as (C, H, W)."""
    return step.channels_first(value).reshape(step.size)
