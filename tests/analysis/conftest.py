"""A small spiking run and its ANN on the digits, as training leaves them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from qsdformer.data import DataConfig, DataModule
from qsdformer.models.checkpoint import save_checkpoint
from qsdformer.models.metaspikeformer import MetaSpikeFormer

METRICS = """epoch,step,lr,train_loss,train_accuracy,val_loss,val_accuracy,val_top5
1,5,0.004,2.2,0.3,,,
1,11,0.003,2.0,0.4,1.9,0.45,0.9
2,22,0.001,1.2,0.6,1.1,0.65,0.95
"""


@pytest.fixture(scope="session")
def runs(
    tmp_path_factory: pytest.TempPathFactory, make_model: Callable[..., MetaSpikeFormer]
) -> Path:
    """A folder with the runs "spiking", "plain", "lif", "ann" and "other" (of 5 classes)."""
    folder = tmp_path_factory.mktemp("runs")
    data = DataModule(DataConfig(name="digits"), batch_size=32)
    images, _ = next(iter(data.val_dataloader()))
    digits = {"in_channels": 1, "num_classes": 10}
    fields = {
        "spiking": digits,
        "plain": {**digits, "rectify": "none", "fully_spiking": True},
        "lif": {**digits, "neuron": "lif", "time_steps": 2, "threshold": 0.3},
        "ann": {**digits, "neuron": "relu"},
        "other": {"in_channels": 1, "num_classes": 5},
    }
    for name, chosen in fields.items():
        model = make_model(**chosen)
        with torch.no_grad():
            for _ in range(10):
                model(images)
        info = data.info if chosen["num_classes"] == 10 else None
        recipe = {"data": {"name": "digits"}, "seed": 0}
        save_checkpoint(folder / name / "best.ckpt", model, info, {"recipe": recipe})
        (folder / name / "metrics.csv").write_text(METRICS)
    return folder
