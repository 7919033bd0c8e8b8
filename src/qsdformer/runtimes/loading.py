"""`qsdformer.load`: whatever file of ours, ready to use."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from qsdformer.errors import UserError
from qsdformer.graph.artifact import is_artifact, load_artifact
from qsdformer.runtimes.runnable import runnable

if TYPE_CHECKING:
    from qsdformer.models.base import SpikingTransformer
    from qsdformer.runtimes.runnable import RunnableGraph


def load(
    path: str | os.PathLike[str], device: str = "cpu", threads: int | None = None
) -> SpikingTransformer | RunnableGraph:
    """The model of a checkpoint, in evaluation mode, or the integer graph of an artifact.

    `device` is for checkpoints. The integer graph runs on the CPU, in the native engine where it
    is there, on `threads` (by default all cores, up to 16); its `reference` is the graph in NumPy.
    Raises `UserError` for a file that is missing, damaged, or neither of the two, and for a
    checkpoint where only qsdformer-runtime is installed.
    """
    if is_artifact(path):
        return runnable(load_artifact(path), threads)
    # Not at the top: artifacts need no PyTorch.
    try:
        from qsdformer.models.checkpoint import load as load_model
    except ModuleNotFoundError as error:
        raise UserError(
            f"{os.fspath(path)} is no .qsd file, and this needs {error.name} for a checkpoint, "
            "which is not installed: pip install qsdformer"
        ) from error
    return load_model(path, device)
