"""How much longer measuring spikes takes than evaluating, on the same images.

    python benchmarks/analyze_speed.py CKPT [IMAGES]

Both are run in turn, twice, in this process; seconds are of CPU time, so that other load on the
machine weighs little. What `qsd analyze` does beside measuring (ledger, tables) is included.
"""

from __future__ import annotations

import platform
import sys
import time
from collections.abc import Callable

import torch

from qsdformer.analysis.subject import analyze, load_subject
from qsdformer.analysis.twins import twins
from qsdformer.tasks.evaluation import evaluate, first_images

BATCH_SIZE = 256


def main(checkpoint: str, images: int = 10_000) -> None:
    """Print both times and their ratio."""
    torch.set_num_threads(1)
    subject = load_subject(checkpoint, {}, BATCH_SIZE)

    def evaluating() -> None:
        batches = first_images(subject.data.val_dataloader(), images)
        evaluate(subject.model, batches, torch.device("cpu"))

    def analyzing() -> None:
        analysis = analyze(subject, limit=images)
        twins("twin", subject.model, analysis.measured)

    best = {"eval": float("inf"), "analyze": float("inf")}
    for _ in range(2):
        best["eval"] = min(best["eval"], seconds(evaluating))
        best["analyze"] = min(best["analyze"], seconds(analyzing))
    ratio = best["analyze"] / best["eval"]
    print(f"{images:,} images, one thread of {platform.machine()}, torch {torch.__version__}")
    print(f"eval {best['eval']:.1f} s, analyze {best['analyze']:.1f} s: {ratio:.2f} times as long")


def seconds(function: Callable[[], None]) -> float:
    """CPU seconds of a call."""
    begin = time.process_time()
    function()
    return time.process_time() - begin


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:]))
