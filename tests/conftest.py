"""Shared by all tests: one thread, and models that are as small as the architecture allows."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from timm.models import metaformer
from variants import info_for

from qsdformer.graph.integer import IntegerGraph
from qsdformer.graph.lowering import lower
from qsdformer.models.metaspikeformer import MetaSpikeFormer
from qsdformer.nn.config import ModelConfig

# Tensors here are tiny, and threads cost more than they bring.
torch.set_num_threads(1)

SMALL: dict[str, Any] = {
    "dims": (4, 6, 8, 8),
    "depth": 2,
    "heads": 2,
    "stem_kernel": 3,
    "num_classes": 5,
}


def small_config(**fields: Any) -> ModelConfig:
    """The smallest useful configuration; LIF gets its one level and ANNs their attention."""
    if fields.get("neuron") == "lif":
        fields = {"levels": 1, **fields}
    if fields.get("neuron") in ("relu", "gelu"):
        full = {"weight_bits": None, "stem_bits": None, "head_bits": None}
        fields = {"attention": "softmax", **full, **fields}
    return ModelConfig(**{**SMALL, **fields})


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests first, then those with many: none of them is begun when others end."""
    slow = Counter(item.path for item in items if item.get_closest_marker("slow"))
    tests = Counter(item.path for item in items)
    items.sort(key=lambda item: (-slow[item.path], -tests[item.path]))


@pytest.fixture(autouse=True)
def nowhere(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test runs in an empty folder of its own: what lies around it decides nothing."""
    monkeypatch.chdir(tmp_path_factory.mktemp("here"))


@pytest.fixture(scope="session")
def make_config() -> Callable[..., ModelConfig]:
    """Makes small configurations from any fields."""
    return small_config


@pytest.fixture(scope="session")
def make_model() -> Callable[..., MetaSpikeFormer]:
    """Makes small models, in training mode, from any fields; always with the same weights."""

    def make(**fields: Any) -> MetaSpikeFormer:
        torch.manual_seed(0)
        return MetaSpikeFormer(small_config(**fields))

    return make


@pytest.fixture(scope="session")
def make_caformer() -> Callable[..., metaformer.MetaFormer]:
    """Makes timm's CAFormer with two stages of attention, few and narrow blocks."""

    def make(**options: Any) -> metaformer.MetaFormer:
        torch.manual_seed(0)
        return metaformer.MetaFormer(
            dims=(8, 16, 64, 96),
            token_mixers=[metaformer.SepConv] * 2 + [metaformer.Attention] * 2,
            norm_layers=[metaformer.LayerNorm2dNoBias] * 2 + [metaformer.LayerNormNoBias] * 2,
            **options,
        )

    return make


@pytest.fixture(scope="session")
def settle() -> Callable[..., MetaSpikeFormer]:
    """Gives a model batch statistics of random images and puts it in evaluation mode."""

    def settled(model: MetaSpikeFormer, size: int = 32) -> MetaSpikeFormer:
        generator = torch.Generator().manual_seed(1)
        model.train()
        with torch.no_grad():
            for _ in range(10):
                model(torch.randn(8, model.config.in_channels, size, size, generator=generator))
        return model.eval()

    return settled


@pytest.fixture(scope="session")
def fixtures() -> Path:
    """The folder of files that tests read."""
    return Path(__file__).parent / "fixtures"


@pytest.fixture(scope="session")
def lively(
    make_model: Callable[..., MetaSpikeFormer], settle: Callable[..., MetaSpikeFormer]
) -> Callable[..., MetaSpikeFormer]:
    """Makes small models in eval mode whose neurons fire."""
    made: dict[str, MetaSpikeFormer] = {}

    def make(**fields: Any) -> MetaSpikeFormer:
        key = repr(sorted(fields.items()))
        if key not in made:
            made[key] = settle(make_model(**fields))
        return copy.deepcopy(made[key])

    return make


@pytest.fixture(scope="session")
def small_graph(lively: Callable[..., MetaSpikeFormer]) -> IntegerGraph:
    """The integer graph of a small published-variant model with 3-bit weights."""
    model = lively(weight_bits=3)
    return lower(model, info_for(model))


@pytest.fixture
def image_root(tmp_path: Path) -> Path:
    """An image folder of two classes with 6 training and 3 validation images each."""
    root = tmp_path / "images"
    rng = np.random.default_rng(0)
    for split, count in (("train", 6), ("val", 3)):
        for name in ("cat", "dog"):
            (root / split / name).mkdir(parents=True)
            for index in range(count):
                pixels = rng.integers(0, 256, (40, 48, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / split / name / f"{index}.jpg")
    return root
