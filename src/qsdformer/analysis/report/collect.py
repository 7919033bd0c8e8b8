"""What the report shows of each run, read from its folder and measured on its data."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from qsdformer.analysis.ledger import Ledger
from qsdformer.analysis.report.scores import TOP1, scores_of
from qsdformer.analysis.subject import Analysis, Subject, analyze, load_run
from qsdformer.analysis.twins import ann_ledger, twins
from qsdformer.data import DataConfig, DataInfo
from qsdformer.data.sections import DataSection
from qsdformer.errors import UserError
from qsdformer.graph.steps import Step, Traced
from qsdformer.graph.trace import trace
from qsdformer.nn.attention import SpikeAttention, to_heads
from qsdformer.nn.neurons import IELIF, LIF, SpikingNeuron, counts_to_spikes
from qsdformer.nn.taps import spiking_neurons, tap
from qsdformer.recipes.recipe import parse_data
from qsdformer.recipes.tasks import MEASURES

MEMBRANE_RANGE = (-2.0, 3.0)  # in units of the neurons' window
MEMBRANE_BINS = 80
MEMBRANE_IMAGES = 128
SAMPLES = 8
RASTER_NEURONS = 96  # of each layer shown
BEST, LAST = "best.ckpt", "last.ckpt"
LOSSES = ("train_loss", "val_loss")
SCORE = "score"  # the curve of what the run is judged by


@dataclass(frozen=True, kw_only=True)
class Run:
    """One run: its model, curves (name -> (epoch, value)), scores (measure -> fraction) and ledger.

    `images` says which images it was measured on, `weights` which weights these are. The first of
    the scores is what runs are compared by.
    """

    name: str
    images: str
    weights: str
    subject: Subject
    curves: Mapping[str, list[tuple[float, float]]]
    scores: Mapping[str, float]
    ledger: Ledger
    analysis: Analysis | None = None  # None for an ANN
    twins: list[Ledger] = field(default_factory=list)

    @property
    def measure(self) -> str:
        """What the run is compared by with others."""
        return next(iter(self.scores))


@dataclass(frozen=True, kw_only=True)
class Membranes:
    """Histograms of membrane potentials: shares of `MEMBRANE_BINS` bins over `range`.

    Between the two ends of `window` the spike count follows the potential. `unit` is the width of
    an IE-LIF neuron's window, and 1 for LIF.
    """

    before: Tensor
    after: Tensor
    window: tuple[float, float]
    unit: float

    @property
    def range(self) -> tuple[float, float]:
        """Potentials from the first to the last bin."""
        low, high = MEMBRANE_RANGE
        return low * self.unit, high * self.unit


@dataclass(frozen=True, kw_only=True)
class AttentionMap:
    """An image (H, W) or (H, W, 3), its class, and by block how much each token is attended to."""

    image: np.ndarray
    label: str
    maps: dict[str, np.ndarray]


def collect(
    path: str,
    keys: Mapping[str, str],
    *,
    limit: int | None,
    batch_size: int | None = None,
    device: torch.device | str = "cpu",
) -> Run:
    """Read and measure the run at `path`, a run folder or a checkpoint; its model ends on the CPU.

    What is drawn of single images afterwards is not worth a device.
    """
    checkpoint, folder = locate(path)
    subject = load_run(str(checkpoint), keys, batch_size)
    name = folder.resolve().name if checkpoint.name in (BEST, LAST) else checkpoint.stem
    common: dict[str, Any] = {
        "name": name,
        "images": images_text(subject.data.config),
        "weights": weights_text(checkpoint.name, subject),
        "subject": subject,
        "curves": read_curves(folder / "metrics.csv", MEASURES[subject.task].monitored),
    }
    analysis = None
    if spiking_neurons(subject.model):
        analysis = analyze(subject, limit=limit, device=device)
    elif subject.task != "classification":
        raise UserError(f"{path} is an ANN for {subject.task}: the report shows spiking ones")
    top1 = None if analysis is None else analysis.measured.accuracy
    scores = scores_of(subject, limit, torch.device(device)) if top1 is None else {TOP1: top1}
    for network in (subject.found.network, subject.model):
        network.cpu()
    if analysis is None:
        ledger = ann_ledger(name, subject.model, subject.data.info.sides, scores[TOP1])
        return Run(**common, scores=scores, ledger=ledger)
    of_all = analysis.measured, analysis.network, analysis.left_out
    return Run(
        **common,
        scores=scores,
        ledger=analysis.ledger,
        analysis=analysis,
        # Heads for regions have no twins: the comparison would leave them out on one side.
        twins=[] if subject.found.heads else twins(name, subject.model, *of_all),
    )


def images_text(config: DataSection) -> str:
    """The evaluation images of a data configuration, in words."""
    if getattr(config, "evaluate_on", "test") == "holdout":
        return f"held-out training images of {config.name}"
    split = getattr(config, "split", "val")
    # Sets with masks and boxes have a test split besides.
    if split != "val" or not isinstance(config, DataConfig):
        return f"images of {config.name} in {split}"
    return f"test images of {config.name}"


def weights_text(file: str, subject: Subject) -> str:
    """Which weights a checkpoint of this name has, and on which images they were chosen."""
    if file == LAST:
        return f"{LAST}, of the last epoch: chosen on no images"
    if file != BEST or not subject.recipe.get("data"):
        return file
    config, stored = subject.data.config, parse_data(subject.recipe)
    same = all(
        getattr(config, k, None) == getattr(stored, k, None)
        for k in ("name", "root", "split", "evaluate_on")
    )
    which = "these very images" if same else images_text(stored)
    return f"{BEST}, of the epoch that was most accurate on {which}"


def read_curves(path: Path, score: str = "val_accuracy") -> dict[str, list[tuple[float, float]]]:
    """The epoch rows of a metrics.csv; empty lists where there is no such file or column.

    `score` is the column that becomes the curve `SCORE`.
    """
    columns = {**{name: name for name in LOSSES}, SCORE: score}
    curves: dict[str, list[tuple[float, float]]] = {name: [] for name in columns}
    if not path.is_file():
        return curves
    with path.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            for name, column in columns.items() if row.get(score) else ():
                if row.get(column):
                    curves[name].append((float(row["epoch"]), float(row[column])))
    return curves


def membranes(model: nn.Module, images: Tensor) -> dict[str, Membranes]:
    """Histograms of the potentials that reach q, k and v's neurons, all blocks together.

    Of each of q, k, v (neurons so named, behind a norm). "After" is what the neuron sees. "Before"
    is the same without the norm's learned scale and shift, mean 0 and deviation 1, where an
    unrectified norm starts.
    """
    traced = trace(model, images.shape)
    normed = [s for s in traced.of_kind("neuron") if s.inputs[0].kind == "norm"]
    inputs = _values(traced, images, [s.inputs[0] for s in normed])
    found = {}
    for letter in ("q", "k", "v"):
        steps = [s for s in normed if s.name.rpartition(".")[2] == f"{letter}_neuron"]
        sums = [torch.zeros(MEMBRANE_BINS), torch.zeros(MEMBRANE_BINS)]
        for step in steps:
            norm = cast(nn.BatchNorm2d, step.inputs[0].module)
            u = inputs[step.inputs[0]]
            scale, shift = (p.detach().view(1, -1, 1, 1) for p in (norm.weight, norm.bias))
            kept = norm.weight.detach().abs() > 1e-6
            plain = ((u - shift) / scale)[:, kept]
            _, unit = _window(step)
            for i, values in enumerate((plain, u)):
                sums[i] += torch.histc(values.float() / unit, MEMBRANE_BINS, *MEMBRANE_RANGE)
        before, after = (h / h.sum().clamp_min(1) for h in sums)
        if steps:
            window, unit = _window(steps[0])
            found[letter] = Membranes(before=before, after=after, window=window, unit=unit)
    return found


def _window(step: Step) -> tuple[tuple[float, float], float]:
    """Where the count of a neuron follows its potential, and the unit of its potentials."""
    neuron = step.module
    if isinstance(neuron, LIF):
        return (neuron.threshold, float("inf")), 1.0
    window = cast(IELIF, neuron).window
    return (0.0, window), window


def attention_maps(
    model: nn.Module, images: Tensor, labels: Tensor | None, info: DataInfo
) -> list[AttentionMap]:
    """Where q looks: q k^T, mean over heads, time steps and query tokens, for each image.

    Images without `labels`, one class for each, are called by their numbers.

    Nothing for a network without attention.
    """
    traced = trace(model, images.shape)
    blocks = traced.of_kind("attention")
    if not blocks:
        return []
    shown = {"first block": blocks[0], "last block": blocks[-1]}
    values = _values(traced, images, [x for step in shown.values() for x in step.inputs[:2]])
    by_block = {}
    for title, step in shown.items():
        heads = cast(SpikeAttention, step.module).heads
        q, k = (values[x] for x in step.inputs[:2])
        height, width = q.shape[-2:]
        q_BhNd, k_BhNd = to_heads(q, heads), to_heads(k, heads)
        weight = (q_BhNd @ k_BhNd.transpose(-2, -1)).mean(dim=(1, 2))
        by_block[title] = weight.unflatten(0, (step.time, -1)).mean(0).unflatten(1, (height, width))
    return [
        AttentionMap(
            image=_visible(image, info),
            label=f"image {i + 1}" if labels is None else info.class_names[int(labels[i])],
            maps={title: _stretched(maps[i].numpy()) for title, maps in by_block.items()},
        )
        for i, image in enumerate(images)
    ]


def _values(traced: Traced, images: Tensor, wanted: Iterable[Step]) -> dict[Step, Tensor]:
    """The values of some steps in ordinary evaluation."""
    found, kept = {}, set(wanted)

    def do(step: Step, *values: Tensor) -> Tensor:
        y = step.run(*values)
        if step in kept:
            found[step] = y
        return y

    with torch.inference_mode():
        traced.walk(images, do)
    return found


def spike_raster(model: nn.Module, image: Tensor) -> dict[str, np.ndarray]:
    """Binary spikes (neurons, T * D) of one image (C, H, W) for a few layers along the network."""
    known = {n: m for n, m in model.named_modules() if isinstance(m, SpikingNeuron)}
    with torch.inference_mode(), tap(model, *known) as acts:
        model(image[None])
    # A backbone whose maps are read does without the neuron of its head.
    neurons = [(n, m) for n, m in known.items() if n in acts]
    chosen = dict(neurons[i] for i in np.linspace(0, len(neurons) - 1, 5).round().astype(int))
    rasters = {}
    for name, neuron in chosen.items():
        counts = neuron.counts(acts[name]).flatten(1)  # (T, neurons)
        count = counts.shape[1]
        places = torch.linspace(0, count - 1, min(RASTER_NEURONS, count)).round().long()
        spikes = counts_to_spikes(counts[:, places], neuron.levels)  # (D, T, neurons)
        rasters[name] = spikes.permute(2, 1, 0).flatten(1).numpy()
    return rasters


def samples(batches: Iterable[tuple[Tensor, Any]]) -> tuple[Tensor, Any]:
    """The first images and labels, `MEMBRANE_IMAGES` at most."""
    images, labels = next(iter(batches))
    return images[:MEMBRANE_IMAGES], labels[:MEMBRANE_IMAGES]


def locate(path: str) -> tuple[Path, Path]:
    """The checkpoint and the folder of a run; of a folder the weights that nothing has chosen."""
    given = Path(path)
    if not given.is_dir():
        return given, given.parent
    for name in (LAST, BEST):
        if (given / name).is_file():
            return given / name, given
    raise UserError(f"{path} has no {LAST}: give the folder of a run, or a checkpoint")


def _visible(image: Tensor, info: DataInfo) -> np.ndarray:
    mean, std = (torch.tensor(v).view(-1, 1, 1) for v in (info.mean, info.std))
    pixels = (image * std + mean).permute(1, 2, 0).numpy()
    return pixels[..., 0] if pixels.shape[-1] == 1 else pixels


def _stretched(values: np.ndarray) -> np.ndarray:
    low, high = values.min(), values.max()
    return (values - low) / ((high - low) or 1)
