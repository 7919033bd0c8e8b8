"""`qsdformer.load`: whatever file of ours, ready to use."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from qsdformer.checkpoint import load as load_model
from qsdformer.deploy.artifact import is_artifact, load_artifact

if TYPE_CHECKING:
    from qsdformer.backbone import MetaSpikeFormer
    from qsdformer.deploy.graph import IntegerGraph


def load(path: str | os.PathLike[str], device: str = "cpu") -> MetaSpikeFormer | IntegerGraph:
    """The model of a checkpoint, in evaluation mode, or the integer graph of an artifact.

    `device` is for checkpoints; the integer graph runs on the CPU. Raises `UserError` for a file
    that is missing, damaged, or neither of the two.
    """
    return load_artifact(path) if is_artifact(path) else load_model(path, device)
