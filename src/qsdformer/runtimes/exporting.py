"""`qsd.export`: a model as a file to run elsewhere, packed integers or ONNX."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from qsdformer.errors import UserError
from qsdformer.graph import artifact
from qsdformer.graph.integer import IntegerGraph
from qsdformer.runtimes.sessions import PACKAGES, Arrangement

if TYPE_CHECKING:
    from torch import nn

    from qsdformer.data.base import DataInfo


def export(
    model: nn.Module | IntegerGraph,
    path: str | os.PathLike[str],
    info: DataInfo | None = None,
    *,
    runtime: Arrangement | None = None,
    **options: Any,
) -> IntegerGraph:
    """Write `model` to `path`, whole or not at all; returns its integer graph.

    A name that ends in .onnx makes an ONNX file, laid out for the speed of `runtime` (by default
    "onnxruntime"); any other a packed artifact, for which there is no `runtime`. `info` and
    `options` are those of `qsdformer.lower`, for which an integer graph has no use. Raises
    `UserError` for a model that cannot be lowered and a file that cannot be written.
    """
    onnx = os.path.splitext(path)[1] == ".onnx"
    if runtime is not None and not onnx:
        raise UserError(f"runtime={runtime!r} is for ONNX files: leave it out, or end in .onnx")
    described = {} if info is None else {"info": info}
    graph = artifact.graph_of(model, {**described, **options})
    if onnx:
        from qsdformer.runtimes.onnx_export import export_onnx

        export_onnx(graph, path, runtime or PACKAGES[0])
    else:
        artifact.export(graph, path)
    return graph
