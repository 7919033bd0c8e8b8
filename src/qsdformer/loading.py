"""`qsdformer.load`: whatever file of ours, ready to use."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from qsdformer.graph.artifact import is_artifact, load_artifact
from qsdformer.models.checkpoint import load as load_model

if TYPE_CHECKING:
    from qsdformer.graph.integer import IntegerGraph
    from qsdformer.models.base import SpikingTransformer


def load(path: str | os.PathLike[str], device: str = "cpu") -> SpikingTransformer | IntegerGraph:
    """The model of a checkpoint, in evaluation mode, or the integer graph of an artifact.

    `device` is for checkpoints; the integer graph runs on the CPU. Raises `UserError` for a file
    that is missing, damaged, or neither of the two.
    """
    return load_artifact(path) if is_artifact(path) else load_model(path, device)
