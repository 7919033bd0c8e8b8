"""Do spiking heads learn at all? The initial weights of predictors, on coloured rectangles.

    python benchmarks/dense_start.py [--steps 200] [--seeds 0 1 2]

Trains the tiny network with a semantic feature pyramid (32 channels) on rectangles of three
colours in noise, 64 px, 4 images a step, and prints the mIoU over 32 further images. Predictors
start with PyTorch's own weights, or with those of deviation 0.01 that float detectors start with.
About 40 seconds a row and seed on one core.
"""

from __future__ import annotations

import argparse
import time
from statistics import mean

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics.classification import MulticlassJaccardIndex

from qsdformer.models.dense.building import build_dense
from qsdformer.models.dense.config import SegmentationConfig
from qsdformer.models.dense.layers import PredictorConv
from qsdformer.models.registry import model_config

SIDE, BATCH, CLASSES, PEAK = 64, 4, 4, 2e-3
NARROW = 0.01  # deviation of predictors' weights in float detectors
BASE = SegmentationConfig(
    backbone=model_config("metaspikeformer_tiny", fully_spiking=True),
    num_classes=CLASSES,
    neck_width=32,
    head_width=32,
)
NETWORKS = {
    "spiking": BASE,
    "float neck and heads": BASE.replace(bits=None, neuron="relu"),
    "ANN": BASE.ann(),
}


def scenes(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Images (B, 3, H, W), normalised, and classes (B, H, W): two rectangles in each."""
    images = torch.rand(count, 3, SIDE, SIDE, generator=generator) * 0.3
    classes = torch.zeros(count, SIDE, SIDE, dtype=torch.long)
    for image, labels in zip(images, classes, strict=True):
        for _ in range(2):
            height, width = torch.randint(12, 28, (2,), generator=generator).tolist()
            top = int(torch.randint(0, SIDE - height, (1,), generator=generator))
            left = int(torch.randint(0, SIDE - width, (1,), generator=generator))
            kind = int(torch.randint(1, CLASSES, (1,), generator=generator))
            place = (slice(top, top + height), slice(left, left + width))
            image[kind - 1][place] += 0.6
            labels[place] = kind
    return (images - 0.4) / 0.3, classes


def miou(config: SegmentationConfig, narrow: bool, seed: int, steps: int) -> float:
    """The mIoU after so many steps."""
    torch.manual_seed(seed)
    network = build_dense(config).train()
    for module in network.modules():
        if narrow and isinstance(module, PredictorConv):
            nn.init.normal_(module.weight, std=NARROW)
            module.reset_step_size()
    generator = torch.Generator().manual_seed(seed + 1)
    optimizer = torch.optim.AdamW(network.parameters(), lr=PEAK)

    def logits(images: Tensor) -> Tensor:
        mask = network(images)["mask"]
        return F.interpolate(mask, scale_factor=2, mode="bilinear", align_corners=False)

    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = PEAK * min(1, (step + 1) / 10) * (1 - step / steps)
        images, classes = scenes(BATCH, generator)
        loss = F.cross_entropy(logits(images), classes)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    network.eval()
    images, classes = scenes(32, torch.Generator().manual_seed(seed + 1000))
    with torch.no_grad():
        return float(MulticlassJaccardIndex(CLASSES)(logits(images), classes))


def main() -> None:
    """Train every network from both starts and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    options = parser.parse_args()
    torch.set_num_threads(1)
    print("| network | predictors | mIoU | of each seed | seconds |\n|---|---|---|---|---|")
    for name, config in NETWORKS.items():
        for start, narrow in (("PyTorch's", False), (f"deviation {NARROW}", True)):
            begun = time.perf_counter()
            found = [miou(config, narrow, seed, options.steps) for seed in options.seeds]
            each = ", ".join(f"{value:.3f}" for value in found)
            seconds = time.perf_counter() - begun
            print(f"| {name} | {start} | {mean(found):.3f} | {each} | {seconds:.0f} |", flush=True)


if __name__ == "__main__":
    main()
