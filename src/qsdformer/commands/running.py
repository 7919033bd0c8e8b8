"""Running a model from a command: in which runtime, on how many threads, how far it is."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress
    from torch import Tensor

    from qsdformer.graph.integer import IntegerGraph
    from qsdformer.runtimes.onnx_predict import OnnxModel
    from qsdformer.runtimes.runnable import RunnableGraph


def in_fastest_runtime(
    model: IntegerGraph | OnnxModel, threads: int | None
) -> RunnableGraph | OnnxModel:
    """A model of `qsd export`, ready to run."""
    from qsdformer.graph.integer import IntegerGraph
    from qsdformer.runtimes.runnable import runnable

    if not isinstance(model, IntegerGraph):
        return model
    return runnable(model, threads, exact=False)


def announce(model: RunnableGraph | OnnxModel) -> None:
    """Say on standard error what runs a .qsd file and why; an ONNX file says it itself."""
    from qsdformer.runtimes.runnable import RunnableGraph

    if isinstance(model, RunnableGraph):
        print(f"note: runs in {model.runtime}", file=sys.stderr)


def progress_bar() -> Progress:
    """Bars on standard error while a command works; nothing where that is not a terminal."""
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    return Progress(console=console, transient=True, disable=not console.is_terminal)


def with_progress(
    batches: Iterable[tuple[Tensor, Tensor]], total: int, doing: str
) -> Iterator[tuple[Tensor, Tensor]]:
    """Labelled batches, and a bar on standard error of how many of the `total` images are done."""
    with progress_bar() as progress:
        task = progress.add_task(doing, total=total)
        for images, labels in batches:
            yield images, labels
            progress.advance(task, len(labels))
