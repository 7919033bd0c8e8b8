"""Training speed of a network: eager, compiled and its ANN, side by side in one process.

    python benchmarks/training_speed.py [--recipe NAME] [--threads 2] [--batch 128] [--steps 20]
                                        [--no-compile] [--bf16]

The network is that of a recipe, on random images of its data set's shape. --bf16 times
`--precision bf16-mixed` as well, which is slow where the processor has no such multiplications.
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

from qsdformer.data.base import sides
from qsdformer.models.building import build
from qsdformer.nn.config import BITS, bits_text
from qsdformer.process import restart_with_allocator_settings
from qsdformer.recipes.recipe import Recipe, load_recipe
from qsdformer.tasks.optimisation import make_optimizer

# Channels and side of the images of each data set, where the recipe says no other.
SHAPES = {"fashion_mnist": (1, 28), "cifar10": (3, 32), "digits": (1, 32)}
CLASSES = 10


def make_step(
    recipe: Recipe,
    batch: int,
    *,
    ann: bool = False,
    fp32: bool = False,
    compiled: bool = False,
    bf16: bool = False,
) -> Callable[[], None]:
    """One optimiser step of the recipe's network on random images."""
    torch.manual_seed(0)
    channels, side = SHAPES[recipe.data.name]
    config = recipe.model.config(in_channels=channels, num_classes=CLASSES)
    if fp32:
        config = config.replace(**dict.fromkeys(BITS))
    model = build(config.ann() if ann else config).to(memory_format=torch.channels_last)
    images = torch.randn(batch, channels, *sides(recipe.data.image_size or side))
    images = images.contiguous(memory_format=torch.channels_last)
    labels = torch.randint(0, CLASSES, (batch,))
    optimizer = make_optimizer(model, recipe.train)
    if compiled:
        model.compile()

    def step() -> None:
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            loss = F.cross_entropy(model(images), labels, label_smoothing=0.1)
        loss.backward()
        optimizer.step()

    return step


def main() -> None:
    """Time the arms in turns and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--recipe", default="fashion-mnist-tiny", help="whose network it is")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--steps", type=int, default=20, help="timed steps of each arm")
    parser.add_argument("--no-compile", action="store_true")
    parser.add_argument("--bf16", action="store_true")
    options = parser.parse_args()
    restart_with_allocator_settings()
    torch.set_num_threads(options.threads)
    recipe, batch = load_recipe(options.recipe), options.batch
    if recipe.data.name not in SHAPES:
        parser.error(f"--recipe {options.recipe}: its images must be of {', '.join(SHAPES)}")
    config = recipe.model.config(in_channels=1, num_classes=CLASSES)
    if not config.is_spiking:
        parser.error(f"--recipe {options.recipe}: give that of a spiking network")
    bits = bits_text(config.weight_bits)
    base = f"{bits}, eager"
    arms = {
        base: make_step(recipe, batch),
        "fp32 weights, eager": make_step(recipe, batch, fp32=True),
        "ANN, eager": make_step(recipe, batch, ann=True),
    }
    if not options.no_compile:
        arms[f"{bits}, torch.compile"] = make_step(recipe, batch, compiled=True)
    if options.bf16:
        arms[f"{bits}, bf16-mixed"] = make_step(recipe, batch, bf16=True)
        arms["ANN, bf16-mixed"] = make_step(recipe, batch, ann=True, bf16=True)
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
    eager = statistics.median(times[base])
    print(
        f"{platform.processor() or platform.machine()}, torch {torch.__version__}, "
        f"{options.threads} threads, batch {options.batch}"
    )
    for name, values in times.items():
        low, median, high = statistics.quantiles(values, n=4)
        rates = " / ".join(f"{options.batch / t:,.0f}" for t in (high, median, low))
        print(f"{name:24s} {rates} img/s (quartiles)  {eager / median:.2f}x eager")


if __name__ == "__main__":
    main()
