"""`qsdformer.load`: whatever file of ours, ready to use."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from qsdformer.errors import UserError
from qsdformer.files import exported_kind
from qsdformer.graph.artifact import is_artifact, load_artifact
from qsdformer.runtimes.runnable import runnable

if TYPE_CHECKING:
    from qsdformer.models.base import SpikingTransformer
    from qsdformer.runtimes.onnx_predict import OnnxModel
    from qsdformer.runtimes.runnable import RunnableGraph


def load(
    path: str | os.PathLike[str], device: str = "cpu", threads: int | None = None
) -> SpikingTransformer | RunnableGraph | OnnxModel:
    """The model of a checkpoint, in evaluation mode, or what an exported file holds.

    `device` is for checkpoints. The integer graph runs on the CPU, in the native engine where it
    is there, on `threads` (by default all cores, up to 16); its `reference` is the graph in NumPy.
    An ONNX file runs in ONNX Runtime. Raises `UserError` for a file that is missing, damaged, or
    none of the three, and for a checkpoint where only qsdformer-runtime is installed.
    """
    if is_artifact(path):
        return runnable(load_artifact(path), threads)
    if exported_kind(path) == ".onnx":
        from qsdformer.runtimes.onnx_predict import load_onnx

        return load_onnx(path, threads or 0)
    # Not at the top: artifacts need no PyTorch.
    try:
        from qsdformer.models.checkpoint import load as load_model
    except ModuleNotFoundError as error:
        raise UserError(
            f"{os.fspath(path)} is no .qsd file, and this needs {error.name} for a checkpoint, "
            "which is not installed: install the package qsdformer, not qsdformer-runtime alone"
        ) from error
    return load_model(path, device)
