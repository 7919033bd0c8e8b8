"""What the report shows of each run, read from its folder and measured on its data."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from qsdformer.analysis.ledger import Ledger
from qsdformer.analysis.subject import Analysis, Subject, analyze, first_images, load_run
from qsdformer.analysis.twins import ann_ledger, twins
from qsdformer.data import DataInfo
from qsdformer.errors import UserError
from qsdformer.models.metaspikeformer import MetaSpikeFormer
from qsdformer.nn.attention import Attention, to_heads
from qsdformer.nn.neurons import SpikingNeuron, counts_to_spikes
from qsdformer.nn.taps import matching_modules, tap
from qsdformer.tasks.evaluation import evaluate

MEMBRANE_RANGE = (-2.0, 3.0)
MEMBRANE_BINS = 80
MEMBRANE_IMAGES = 128
SAMPLES = 8
RASTER_NEURONS = 96  # of each layer shown
CURVES = ("train_loss", "val_loss", "val_accuracy")


@dataclass(frozen=True, kw_only=True)
class Run:
    """One run: its model, curves (name -> (epoch, value)), accuracy and ledger."""

    name: str
    subject: Subject
    curves: Mapping[str, list[tuple[float, float]]]
    accuracy: float
    ledger: Ledger
    analysis: Analysis | None = None  # None for an ANN
    twins: list[Ledger] = field(default_factory=list)


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
    batch_size: int,
    device: torch.device | str = "cpu",
) -> Run:
    """Read and measure the run at `path`, a run folder or a checkpoint; its model ends on the CPU.

    What is drawn of single images afterwards is not worth a device.
    """
    checkpoint, folder = _locate(path)
    subject = load_run(str(checkpoint), keys, batch_size)
    name = folder.name if checkpoint.name in ("best.ckpt", "last.ckpt") else checkpoint.stem
    curves = read_curves(folder / "metrics.csv")
    if subject.model.config.is_spiking:
        analysis = analyze(subject, limit=limit, device=device)
        subject.model.cpu()
        return Run(
            name=name,
            subject=subject,
            curves=curves,
            accuracy=analysis.measured.accuracy,
            ledger=analysis.ledger,
            analysis=analysis,
            twins=twins(name, subject.model, analysis.measured),
        )
    batches = first_images(subject.data.val_dataloader(), limit)
    accuracy = evaluate(subject.model, batches, torch.device(device)).top1
    subject.model.cpu()
    size = subject.data.info.image_size
    ledger = ann_ledger(name, subject.model, (size, size), accuracy)
    return Run(name=name, subject=subject, curves=curves, accuracy=accuracy, ledger=ledger)


def read_curves(path: Path) -> dict[str, list[tuple[float, float]]]:
    """The epoch rows of a metrics.csv; empty lists where there is no such file or column."""
    curves: dict[str, list[tuple[float, float]]] = {name: [] for name in CURVES}
    if not path.is_file():
        return curves
    with path.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            for name in CURVES if row.get("val_accuracy") else ():
                if row.get(name):
                    curves[name].append((float(row["epoch"]), float(row[name])))
    return curves


def membranes(model: MetaSpikeFormer, images: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
    """Histograms of the potentials that reach q, k and v's neurons, all blocks together.

    For each of q, k, v: (before, after), shares of `MEMBRANE_BINS` bins over `MEMBRANE_RANGE`.
    "After" is what the neuron sees. "Before" is the same without the norm's learned scale and
    shift, mean 0 and deviation 1, where an unrectified norm starts.
    """
    low, high = MEMBRANE_RANGE
    found = {}
    for letter in ("q", "k", "v"):
        names = list(matching_modules(model, f"*.attention.{letter}_neuron"))
        with torch.inference_mode(), tap(model, *names, inputs=True) as inputs:
            model(images)
        sums = [torch.zeros(MEMBRANE_BINS), torch.zeros(MEMBRANE_BINS)]
        for name in names:
            norm = model.get_submodule(name.removesuffix("_neuron") + ".norm")
            assert isinstance(norm, nn.BatchNorm2d)
            u = inputs[name]
            scale, shift = (p.detach().view(1, -1, 1, 1) for p in (norm.weight, norm.bias))
            kept = norm.weight.detach().abs() > 1e-6
            plain = ((u - shift) / scale)[:, kept]
            for i, values in enumerate((plain, u)):
                sums[i] += torch.histc(values.float(), MEMBRANE_BINS, low, high)
        before, after = (h / h.sum().clamp_min(1) for h in sums)
        found[letter] = before, after
    return found


def attention_maps(
    model: MetaSpikeFormer, images: Tensor, labels: Tensor, info: DataInfo
) -> list[AttentionMap]:
    """Where q looks: q k^T, mean over heads, time steps and query tokens, for each image."""
    blocks = [(n, m) for n, m in model.named_modules() if isinstance(m, Attention)]
    shown = {"first block": blocks[0], "last block": blocks[-1]}
    names = [f"{name}.{part}_neuron" for name, _ in shown.values() for part in ("q", "k")]
    with torch.inference_mode(), tap(model, *names) as acts:
        model(images)
    steps = model.config.time_steps
    by_block = {}
    for title, (name, layer) in shown.items():
        q, k = acts[f"{name}.q_neuron"], acts[f"{name}.k_neuron"]
        height, width = q.shape[-2:]
        q_BhNd, k_BhNd = to_heads(q, layer.heads), to_heads(k, layer.heads)
        weight = (q_BhNd @ k_BhNd.transpose(-2, -1)).mean(dim=(1, 2))
        by_block[title] = weight.unflatten(0, (steps, -1)).mean(0).unflatten(1, (height, width))
    return [
        AttentionMap(
            image=_visible(image, info),
            label=info.class_names[int(labels[i])],
            maps={title: _stretched(maps[i].numpy()) for title, maps in by_block.items()},
        )
        for i, image in enumerate(images)
    ]


def spike_raster(model: MetaSpikeFormer, image: Tensor) -> dict[str, np.ndarray]:
    """Binary spikes (neurons, T * D) of one image (C, H, W) for a few layers along the network."""
    neurons = [(n, m) for n, m in model.named_modules() if isinstance(m, SpikingNeuron)]
    chosen = dict(neurons[i] for i in np.linspace(0, len(neurons) - 1, 5).round().astype(int))
    with torch.inference_mode(), tap(model, *chosen) as acts:
        model(image[None])
    rasters = {}
    for name, neuron in chosen.items():
        counts = neuron.counts(acts[name]).flatten(1)  # (T, neurons)
        count = counts.shape[1]
        places = torch.linspace(0, count - 1, min(RASTER_NEURONS, count)).round().long()
        spikes = counts_to_spikes(counts[:, places], neuron.levels)  # (D, T, neurons)
        rasters[name] = spikes.permute(2, 1, 0).flatten(1).numpy()
    return rasters


def samples(batches: Iterable[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """The first images and labels, `MEMBRANE_IMAGES` at most."""
    images, labels = next(iter(batches))
    return images[:MEMBRANE_IMAGES], labels[:MEMBRANE_IMAGES]


def _locate(path: str) -> tuple[Path, Path]:
    """The checkpoint and the folder of a run."""
    given = Path(path)
    if not given.is_dir():
        return given, given.parent
    for name in ("best.ckpt", "last.ckpt"):
        if (given / name).is_file():
            return given / name, given
    raise UserError(f"{path} has no best.ckpt: give the folder of a run, or a checkpoint")


def _visible(image: Tensor, info: DataInfo) -> np.ndarray:
    mean, std = (torch.tensor(v).view(-1, 1, 1) for v in (info.mean, info.std))
    pixels = (image * std + mean).permute(1, 2, 0).numpy()
    return pixels[..., 0] if pixels.shape[-1] == 1 else pixels


def _stretched(values: np.ndarray) -> np.ndarray:
    low, high = values.min(), values.max()
    return (values - low) / ((high - low) or 1)
