"""Results published with Prosperity, and the networks that they are for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml

from qsdformer.accelerator.published.workload import Workload, published_workload
from qsdformer.models.building import create_model

FILE = Path(__file__).with_name("reference.yaml")


@dataclass(frozen=True, kw_only=True)
class Reference:
    """A workload, and its (ms, mJ) an image by design."""

    name: str
    model: str
    fields: Mapping[str, Any]
    image: tuple[int, int, int]
    density: float
    product_density: float
    dram_bits: int
    results: Mapping[str, tuple[float, float]]

    def workload(self) -> Workload:
        """Its layers, of the network in this package, with the published density in each."""
        with torch.device("meta"):
            network = create_model(self.model, **self.fields)
        return published_workload(network, self.image, self.density)


@dataclass(frozen=True, kw_only=True)
class Peak:
    """A design's largest rate, in thousands of millions of additions a second, and efficiency."""

    name: str
    lanes: int
    operations: int  # a lane and cycle
    clock_mhz: float
    gsops: float
    gsops_per_watt: float
    note: str
    milliwatts: float | None = None

    @property
    def derived(self) -> float:
        """Lanes times operations times clock."""
        return self.lanes * self.operations * self.clock_mhz / 1e3

    @property
    def watts(self) -> float:
        """Power that rate and efficiency imply."""
        return self.gsops / self.gsops_per_watt


def references() -> tuple[Reference, ...]:
    """All published workloads."""
    found = []
    for values in _read()["workloads"]:
        results = {name: tuple(pair) for name, pair in values["results"].items()}
        found.append(Reference(**{**values, "image": tuple(values["image"]), "results": results}))
    return tuple(found)


def peaks() -> tuple[Peak, ...]:
    """All published peaks."""
    return tuple(Peak(**values) for values in _read()["peaks"])


def _read() -> Any:
    return yaml.safe_load(FILE.read_text(encoding="utf-8"))
