"""Integer ONNX models against PyTorch and fp32, 224 x 224, metaspikeformer_15m, 4-bit weights.

Both arrangements of the network, with random weights and batch statistics of random images, so
that neurons fire. Prints the ratios that matter and writes all timings to a CSV file.

    python benchmarks/onnx_224.py onnx_224.csv [--threads 2] [--runs 30]
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

import numpy as np
import torch

from qsdformer import create_model
from qsdformer.data.base import DataInfo
from qsdformer.graph.lowering import lower
from qsdformer.models.metaspikeformer import MetaSpikeFormer
from qsdformer.runtimes.bench import EAGER, FLOAT, INTEGER, Timing, make_subjects, measure

SIZE, CLASSES = 224, 1000
VARIANTS = {"fully spiking": True, "published": False}
INFO = DataInfo(
    image_size=SIZE,
    channels=3,
    class_names=tuple(f"class {i}" for i in range(CLASSES)),
    mean=(0.485, 0.456, 0.406),
    std=(0.229, 0.224, 0.225),
)


def lively_model(fully_spiking: bool) -> MetaSpikeFormer:
    """Random weights; the batch norms' statistics are those of smooth random images."""
    torch.manual_seed(0)
    model = create_model(
        "metaspikeformer_15m",
        weight_bits=4,
        levels=4,
        num_classes=CLASSES,
        fully_spiking=fully_spiking,
    )
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = None  # the mean of all batches
    with torch.no_grad():
        for _ in range(2):
            coarse = torch.randn(4, 3, SIZE // 8, SIZE // 8)
            images = torch.nn.functional.interpolate(coarse, size=SIZE, mode="bilinear")
            model.train()(images + 0.3 * torch.randn_like(images))
    return model.eval()


def ratios(variant: str, timings: list[Timing]) -> list[str]:
    """Lines that say how much faster the integer model is, by processor time and by wall time."""
    found = {(t.network, t.runtime): t for t in timings}
    eager = found[EAGER, "PyTorch"]
    lines = []
    for runtime in ("ONNX Runtime", "OpenVINO"):
        if (INTEGER, runtime) not in found:
            continue
        integer, real = found[INTEGER, runtime], found[FLOAT, runtime]
        lines.append(
            f"{variant}, {runtime}: {integer.median_ms:.1f} ms; "
            f"{eager.median_ms / integer.median_ms:.2f} times eager PyTorch "
            f"(processor time {eager.cpu_ms / integer.cpu_ms:.2f}), "
            f"{real.median_ms / integer.median_ms:.2f} times fp32 in the same runtime "
            f"(processor time {real.cpu_ms / integer.cpu_ms:.2f})"
        )
    return lines


def main() -> None:
    """Measure both variants, print ratios, write the CSV."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--runs", type=int, default=30)
    parser.add_argument("--batch-size", type=int, default=1)
    options = parser.parse_args()
    pixels = np.random.default_rng(0).integers(0, 256, (options.batch_size, 3, SIZE, SIZE))
    rows = []
    for variant, fully_spiking in VARIANTS.items():
        model = lively_model(fully_spiking)
        subjects = make_subjects(model, lower(model, INFO), options.threads)
        timings = measure(subjects, pixels.astype(np.uint8), options.runs, options.threads)
        print("\n".join(ratios(variant, timings)), flush=True)
        rows += [{"variant": variant, **vars(t)} for t in timings]
    with options.out.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(
            {k: f"{v:.3f}" if isinstance(v, float) else v for k, v in row.items()} for row in rows
        )


if __name__ == "__main__":
    main()
