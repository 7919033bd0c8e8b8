"""`qsd eval` and `qsd predict` of networks for masks and boxes: which file does which task."""

from __future__ import annotations

import argparse
import importlib
import importlib.util
from typing import TYPE_CHECKING, Any, cast

from qsdformer.errors import UserError

if TYPE_CHECKING:
    import torch

    from qsdformer.commands.found import Predict
    from qsdformer.graph.integer import IntegerGraph
    from qsdformer.models.checkpoint import Loaded
    from qsdformer.runtimes.onnx_predict import OnnxModel
    from qsdformer.runtimes.runnable import RunnableGraph

# Each has `evaluate(options, loaded, device)`, `predictor(options, loaded, device)`, and both for
# files of `qsd export`: `evaluate_exported(options, model)`, `exported_predictor(options, model)`.
MODULES = {
    "segmentation": "qsdformer.commands.segmentation",
    "detection": "qsdformer.commands.detection",
}


def evaluate_dense(options: argparse.Namespace, loaded: Loaded, device: torch.device) -> None:
    """Evaluate a checkpoint of a dense task, and print what came out."""
    _module(loaded.task).evaluate(options, loaded, device)


def dense_predictor(options: argparse.Namespace, loaded: Loaded, device: torch.device) -> Predict:
    """What predicts with a checkpoint of a dense task, and draws it."""
    return cast("Predict", _module(loaded.task).predictor(options, loaded, device))


def evaluate_exported(options: argparse.Namespace, model: IntegerGraph | OnnxModel) -> None:
    """Evaluate a file of `qsd export` of a dense task, and print what came out."""
    assert model.post is not None
    _module(model.post.task).evaluate_exported(options, model)


def exported_predictor(options: argparse.Namespace, model: RunnableGraph | OnnxModel) -> Predict:
    """What predicts with a file of `qsd export` of a dense task, and draws it."""
    assert model.post is not None
    _needs_torch(options.model)
    return cast("Predict", _module(model.post.task).exported_predictor(options, model))


def _needs_torch(path: str) -> None:
    if any(importlib.util.find_spec(name) is None for name in ("torchvision", "qsdformer.tasks")):
        raise UserError(
            f"{path} needs PyTorch and torchvision for what follows its integers: install "
            "qsdformer itself, or read the outputs of the ONNX model (docs/deploy.md)"
        )


def _module(task: str) -> Any:
    return importlib.import_module(MODULES[task])
