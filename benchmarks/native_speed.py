"""Times the native engine beside ONNX Runtime and OpenVINO, all taking turns in one run.

    python benchmarks/native_speed.py [MODEL.qsd ...] [--batch 1] [--threads 1] [--runs 21]

Without a file: metaspikeformer_15m at 224 pixels, untrained, fully spike-driven and as published.
Medians of one batch, and how many times sooner the native engine is done.
"""

from __future__ import annotations

import argparse

import numpy as np
import torch

from qsdformer import create_model
from qsdformer.data.base import DataInfo
from qsdformer.graph.artifact import load_artifact
from qsdformer.graph.integer import IntegerGraph
from qsdformer.graph.lowering import lower
from qsdformer.runtimes.bench import INTEGER, make_subjects, measure


def untrained(fully_spiking: bool) -> IntegerGraph:
    """The 15M network with norms that have seen noise."""
    torch.manual_seed(0)
    model = create_model("metaspikeformer_15m", fully_spiking=fully_spiking)
    names = tuple(f"class {i}" for i in range(model.config.num_classes))
    info = DataInfo(image_size=224, channels=3, class_names=names, mean=(0.5,) * 3, std=(0.25,) * 3)
    with torch.no_grad():
        for _ in range(2):
            model.train()(torch.randn(2, 3, 224, 224))
    return lower(model.eval(), info)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="*", metavar="MODEL.qsd")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--runs", type=int, default=21)
    options = parser.parse_args()
    graphs = {path: load_artifact(path) for path in options.models}
    if not graphs:
        graphs = {"15M fully spiking": untrained(True), "15M published": untrained(False)}
    for name, graph in graphs.items():
        pre = graph.preprocessing
        shape = (options.batch, pre.channels, pre.image_size, pre.image_size)
        pixels = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
        subjects = [s for s in make_subjects(None, graph, options.threads) if s.network == INTEGER]
        timings = measure(subjects, pixels, options.runs, options.threads)
        base = next(t.median_ms for t in timings if t.runtime == "native")
        print(f"{name}, batch {options.batch}, {options.threads} thread(s)")
        for t in timings:
            print(f"  {t.runtime:14} {t.median_ms:8.3f} ms  {t.median_ms / base:5.2f} x")


if __name__ == "__main__":
    main()
