"""A checkpoint with its data set, measured: what `qsd analyze` and `qsd report` start from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from qsdformer.analysis.energy import Row
from qsdformer.analysis.information import distortions
from qsdformer.analysis.ledger import Ledger, make_ledger
from qsdformer.analysis.measure import Measured, firing_rates, measure
from qsdformer.analysis.operations import require_neurons
from qsdformer.analysis.regions import add_regions
from qsdformer.data import DataModule
from qsdformer.data.preprocessing import Preprocessing
from qsdformer.errors import UserError
from qsdformer.tasks.deployment import Deployable, deployable
from qsdformer.tasks.evaluation import first_images
from qsdformer.tasks.network_images import network_batches
from qsdformer.tasks.stored import load_with_data

# Firing rates beyond which counts say next to nothing: nearly all are D, or 0.
SATURATED = 0.9
SILENT = 0.01


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A loaded model, its data, and the recipe values it was trained with.

    Of a dense network `model` is the part that becomes integers; `found` has all of it.
    """

    name: str
    model: nn.Module
    data: DataModule
    recipe: Mapping[str, Any]
    found: Deployable
    task: str = "classification"

    @property
    def preprocessing(self) -> Preprocessing:
        """What images the model takes."""
        return Preprocessing.of(self.data.info, self.found.multiple)

    def batches(self, limit: int | None = None) -> Iterator[tuple[Tensor, Any]]:
        """The evaluation images, or the first `limit` of them, as the model takes them."""
        batches = self.data.val_dataloader()
        if self.task == "classification":
            return first_images(batches, limit)
        return network_batches(batches, limit, self.preprocessing, self.task)


@dataclass(frozen=True, kw_only=True)
class Analysis:
    """What was measured of one model, which is what becomes integers of a `network`."""

    name: str
    model: nn.Module
    data_name: str
    measured: Measured
    rates: dict[str, float]
    ledger: Ledger
    network: nn.Module
    left_out: str | None = None  # of the network, in words

    @property
    def entropies(self) -> dict[str, float]:
        """Entropy in bits of the counts of q, k and v, all blocks together."""
        return self.measured.entropies

    def distortions_from(self, other: Analysis) -> dict[str, float]:
        """How far q, k and v are from those of another, such as the fp32 twin: bits, by name."""
        return distortions(self.measured.histograms, other.measured.histograms)

    @property
    def saturated(self) -> dict[str, float]:
        """Firing rates of the neurons that nearly always give their largest count."""
        return {name: rate for name, rate in self.rates.items() if rate >= SATURATED}

    @property
    def silent(self) -> dict[str, float]:
        """Firing rates of the neurons that hardly ever fire."""
        return {name: rate for name, rate in self.rates.items() if rate < SILENT}


def load_subject(
    checkpoint: str, keys: Mapping[str, str], batch_size: int | None = None
) -> Subject:
    """A checkpoint and the data it was trained with, some `data.*` keys replaced.

    `batch_size` is by default that of its task. Raises `UserError` for an ANN and for data that
    does not fit.
    """
    subject = load_run(checkpoint, keys, batch_size)
    try:
        require_neurons(subject.model)
    except UserError as error:
        raise UserError(f"{checkpoint}: {error}") from error
    return subject


def load_run(checkpoint: str, keys: Mapping[str, str], batch_size: int | None = None) -> Subject:
    """As `load_subject`, but an ANN is welcome."""
    loaded, data = load_with_data(checkpoint, keys, batch_size)
    found = deployable(loaded.model, loaded.info or data.info)
    return Subject(
        name=checkpoint,
        model=found.part,
        data=data,
        recipe=loaded.recipe,
        found=found,
        task=loaded.task,
    )


def analyze(
    subject: Subject, *, limit: int | None = None, device: torch.device | str = "cpu"
) -> Analysis:
    """Measure `subject` on its evaluation images, the first `limit` of them."""
    found = subject.found
    measured = measure(subject.model, subject.batches(limit), device, found.post)
    more: tuple[Row, ...] = ()
    if found.heads:
        found.network.to(device)
        batches = first_images(subject.data.val_dataloader(), limit)
        more = add_regions(found, batches, measured.post)
    ledger = make_ledger(subject.name, subject.model, measured, found.network, more, found.left_out)
    return Analysis(
        name=subject.name,
        model=subject.model,
        data_name=subject.data.config.name,
        measured=measured,
        rates=firing_rates(measured),
        ledger=ledger,
        network=found.network,
        left_out=found.left_out,
    )
