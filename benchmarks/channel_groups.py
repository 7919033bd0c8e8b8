"""What reordering channels would gain the native engine: groups of 4 that fire, before and after.

    python benchmarks/channel_groups.py MODEL.qsd ... [--images 200]

The engine skips groups of 4 neighbouring channels that are silent at a pixel. For every neuron of a
network trained on Fashion-MNIST, channels that fire together are put together by what they do on
some training images; the share of active groups is then counted on test images, as the channels
are and as they would be. Neurons that share a shortcut, or feed a depthwise convolution, could not
even be ordered each for itself: the gain is an upper bound.
"""

from __future__ import annotations

import argparse

import numpy as np

from qsdformer.data.fashion_mnist import find_folder, read_split
from qsdformer.graph.artifact import load_artifact
from qsdformer.graph.ops import Array
from qsdformer.runtimes import native

MOST_PIXELS = 20_000  # of a neuron from which its order is learnt


def activity(model: native.NativeModel, pixels: Array) -> dict[str, Array]:
    """Which channels fire at which pixel, of every neuron: (pixels, channels) booleans."""
    _, counts = model.run_with_counts(pixels)
    found = {}
    for name, count in counts.items():
        if count.shape[1] % 4 == 0:
            found[name] = np.moveaxis(count, 1, -1).reshape(-1, count.shape[1]) > 0
    return found


def grouped(active: Array) -> list[int]:
    """An order of channels in fours: each begins with the busiest one left, and takes those that
    add the fewest pixels at which the group fires.
    """
    left = list(np.argsort(-active.sum(axis=0), kind="stable"))
    order: list[int] = []
    while left:
        fires = np.zeros(len(active), bool)
        for _ in range(4):
            added = (active[:, left] & ~fires[:, None]).sum(axis=0)
            shared = (active[:, left] & fires[:, None]).sum(axis=0)
            best = left.pop(int(np.lexsort((-shared, added if fires.any() else -added))[0]))
            fires |= active[:, best]
            order.append(best)
    return order


def active_groups(active: Array, order: list[int] | None = None) -> int:
    """How many groups of 4 fire."""
    ordered = active if order is None else active[:, order]
    return int(ordered.reshape(len(active), -1, 4).any(axis=2).sum())


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("models", nargs="+", metavar="MODEL.qsd")
    parser.add_argument("--images", type=int, default=200)
    options = parser.parse_args()
    folder = find_folder(None, download=False)
    train, test = (
        read_split(folder, s).images[: options.images].numpy() for s in ("train", "t10k")
    )
    for path in options.models:
        model = native.of_graph(load_artifact(path))
        learnt, seen = activity(model, train), activity(model, test)
        channels = groups = before = after = 0
        for name, active in learnt.items():
            step = max(1, len(active) // MOST_PIXELS)
            order = grouped(active[::step])
            channels += int(seen[name].sum())
            groups += seen[name].size // 4
            before += active_groups(seen[name])
            after += active_groups(seen[name], order)
        print(
            f"{path}: {channels / groups / 4:.1%} of channels fire; of groups of 4 "
            f"{before / groups:.1%} as they are, {after / groups:.1%} reordered"
        )


if __name__ == "__main__":
    main()
