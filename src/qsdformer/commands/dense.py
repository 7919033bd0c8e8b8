"""`qsd eval` and `qsd predict` of networks for masks and boxes: which file does which task."""

from __future__ import annotations

import argparse
import importlib
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    import torch

    from qsdformer.commands.predict import Predict
    from qsdformer.models.checkpoint import Loaded

# Each has `evaluate(options, loaded, device)` and `predictor(options, loaded, device)`.
MODULES = {
    "segmentation": "qsdformer.commands.segmentation",
    "detection": "qsdformer.commands.detection",
}
BATCH = 16  # images at a time, where --batch-size is not given


def evaluate_dense(options: argparse.Namespace, loaded: Loaded, device: torch.device) -> None:
    """Evaluate a checkpoint of a dense task, and print what came out."""
    _module(loaded).evaluate(options, loaded, device)


def dense_predictor(options: argparse.Namespace, loaded: Loaded, device: torch.device) -> Predict:
    """What predicts with a checkpoint of a dense task, and draws it."""
    return cast("Predict", _module(loaded).predictor(options, loaded, device))


def _module(loaded: Loaded) -> Any:
    return importlib.import_module(MODULES[loaded.task])
