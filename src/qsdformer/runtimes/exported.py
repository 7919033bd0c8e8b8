"""Exported files, artifacts and ONNX alike, ready to run; PyTorch is not needed here."""

from __future__ import annotations

import os
import zipfile

from qsdformer.files import exported_kind
from qsdformer.graph.artifact import load_artifact
from qsdformer.graph.integer import IntegerGraph
from qsdformer.runtimes.onnx_predict import OnnxModel, load_onnx


def load_exported(
    path: str | os.PathLike[str], threads: int | None = None
) -> IntegerGraph | OnnxModel | None:
    """The model in a .qsd or .onnx file of `qsd export`; None for anything else.

    `threads` are those that an ONNX model runs on; by default ONNX Runtime chooses.
    Raises `UserError` for a file that has such a name or such a beginning and cannot be read.
    """
    kind = exported_kind(path)
    if kind is None and not zipfile.is_zipfile(path):  # as checkpoints are, whatever their name
        kind = os.path.splitext(path)[1]
    if kind == ".onnx":
        return load_onnx(path, threads or 0)
    return load_artifact(path) if kind == ".qsd" else None


def task_of(model: IntegerGraph | OnnxModel) -> str:
    """What an exported model is for."""
    return "classification" if model.post is None else model.post.task
