"""What reordering channels gains the native engine, on networks trained on Fashion-MNIST.

    python benchmarks/channel_groups.py MODEL.qsd ... [--learn 200] [--images 1000] [--runs 51]

The engine skips groups of 4 neighbouring channels that are silent at a pixel. `group_channels`
makes neighbours of those that fire together, by what they do on the first training images. Prints,
of the first test images, the share of groups that fire and the milliseconds of the whole batch, as
the channels are and reordered.
"""

from __future__ import annotations

import argparse
import statistics
import time

from qsdformer.data.fashion_mnist import find_folder, read_split
from qsdformer.graph.artifact import load_artifact
from qsdformer.graph.grouping import group_channels
from qsdformer.runtimes import native


def active_share(model: native.NativeModel) -> float:
    """The share of groups that fired since the last reset."""
    found = model.statistics().values()
    return sum(a.active_groups for a in found) / sum(a.groups for a in found)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("models", nargs="+", metavar="MODEL.qsd")
    parser.add_argument("--learn", type=int, default=200)
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--runs", type=int, default=51)
    options = parser.parse_args()
    folder = find_folder(None, download=False)
    learn = read_split(folder, "train").images[: options.learn].numpy()
    images = read_split(folder, "t10k").images[: options.images].numpy()
    for path in options.models:
        graph = load_artifact(path)
        models = [native.of_graph(g) for g in (graph, group_channels(graph, learn))]
        times: list[list[float]] = [[] for _ in models]
        for _ in range(options.runs):
            for model, taken in zip(models, times, strict=True):
                begin = time.perf_counter()
                model(images)
                taken.append(1e3 * (time.perf_counter() - begin))
        for model in models:
            model.reset_statistics()
            model(images)
        shares = " and ".join(f"{active_share(model):.1%}" for model in models)
        medians = " and ".join(f"{statistics.median(taken):.1f} ms" for taken in times)
        print(f"{path}: {shares} of groups fire, {medians}, as they are and reordered")


if __name__ == "__main__":
    main()
