"""A small spiking run on the digits, its ANN, and an artifact of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import qsdformer as qsd
from qsdformer.data import DataConfig, DataModule
from qsdformer.models.checkpoint import save_checkpoint
from qsdformer.models.metaspikeformer import MetaSpikeFormer


@pytest.fixture(scope="session")
def stored(
    tmp_path_factory: pytest.TempPathFactory, make_model: Callable[..., MetaSpikeFormer]
) -> Path:
    """A folder with spiking.ckpt, ann.ckpt and spiking.qsd."""
    folder = tmp_path_factory.mktemp("stored")
    data = DataModule(DataConfig(name="digits"), batch_size=32)
    images, _ = next(iter(data.val_dataloader()))
    for name, fields in (("spiking", {"levels": 2}), ("ann", {"neuron": "relu"})):
        model = make_model(in_channels=1, num_classes=10, **fields)
        with torch.no_grad():
            for _ in range(5):
                model(images)
        recipe = {"data": {"name": "digits"}, "seed": 0}
        save_checkpoint(folder / f"{name}.ckpt", model, data.info, {"recipe": recipe})
        if name == "spiking":
            qsd.export(model.eval(), folder / "spiking.qsd", info=data.info)
    return folder
