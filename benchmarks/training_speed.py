"""Training speed of the tiny network: eager, compiled and its ANN, side by side in one process.

    python benchmarks/training_speed.py [--threads 2] [--batch 128] [--steps 20] [--no-compile]

Prints images/s (median over steps, with quartiles) and ratios to eager. The arms take turns, a
few steps each, so that a machine whose speed drifts treats them alike.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time
from collections.abc import Callable

import torch
from torch.nn import functional as F

from qsdformer import MetaSpikeFormer, create_model
from qsdformer.process import restart_with_allocator_settings
from qsdformer.recipes.learning import TrainConfig
from qsdformer.tasks.optimisation import make_optimizer

SIDE, CLASSES = 28, 10


def make_step(
    batch: int, *, ann: bool = False, bits: int | None = 4, compiled: bool = False
) -> Callable[[], None]:
    """One optimiser step of the tiny network on random 28x28 images."""
    torch.manual_seed(0)
    model = create_model("metaspikeformer_tiny", in_channels=1, num_classes=CLASSES)
    if bits is None:
        fields = {"weight_bits": None, "stem_bits": None, "head_bits": None}
        model = MetaSpikeFormer(model.config.replace(**fields))
    if ann:
        model = MetaSpikeFormer(model.config.ann())
    model = model.to(memory_format=torch.channels_last)
    images = torch.randn(batch, 1, SIDE, SIDE).contiguous(memory_format=torch.channels_last)
    labels = torch.randint(0, CLASSES, (batch,))
    optimizer = make_optimizer(model, TrainConfig())
    if compiled:
        model.compile()

    def step() -> None:
        optimizer.zero_grad()
        F.cross_entropy(model(images), labels, label_smoothing=0.1).backward()
        optimizer.step()

    return step


def main() -> None:
    """Time the arms in turns and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--steps", type=int, default=20, help="timed steps of each arm")
    parser.add_argument("--no-compile", action="store_true")
    options = parser.parse_args()
    restart_with_allocator_settings()
    torch.set_num_threads(options.threads)
    arms = {
        "4-bit, eager": make_step(options.batch),
        "fp32 weights, eager": make_step(options.batch, bits=None),
        "ANN, eager": make_step(options.batch, ann=True),
    }
    if not options.no_compile:
        arms["4-bit, torch.compile"] = make_step(options.batch, compiled=True)
    for name, step in arms.items():
        begin = time.perf_counter()
        for _ in range(3):
            step()
        print(f"{name}: first three steps {time.perf_counter() - begin:.1f} s", flush=True)
    times: dict[str, list[float]] = {name: [] for name in arms}
    for _ in range(options.steps // 4):
        for name, step in arms.items():
            for _ in range(4):
                begin = time.perf_counter()
                step()
                times[name].append(time.perf_counter() - begin)
    base = statistics.median(times["4-bit, eager"])
    print(
        f"{platform.processor() or platform.machine()}, torch {torch.__version__}, "
        f"{options.threads} threads, batch {options.batch}"
    )
    for name, values in times.items():
        low, median, high = statistics.quantiles(values, n=4)
        rates = " / ".join(f"{options.batch / t:,.0f}" for t in (high, median, low))
        print(f"{name:24s} {rates} img/s (quartiles)  {base / median:.2f}x eager")


if __name__ == "__main__":
    main()
