"""How long lowering and verifying take, and how they compare with other sources of the package.

    python benchmarks/trace_speed.py [SRC]

Lowers metaspikeformer_15m for 224 px, and verifies a random network of digits' size. SRC is the
`src` folder of an older version: both versions then run in turn, each in processes of its own, and
the ratios are printed. Seconds are of CPU time on one thread, the least of all rounds, so that
other load on the machine weighs little.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

ROUNDS = 3
IMAGES, BATCH = (64, 320), 64  # a first look, where what is done once weighs most, and digits
HERE = Path(__file__).resolve().parent.parent / "src"


def main(other: str | None = None) -> None:
    """Print seconds, and ratios where there is another version."""
    sources = [str(HERE)] if other is None else [str(HERE), other]
    best: dict[str, dict[str, float]] = {source: {} for source in sources}
    for _ in range(ROUNDS):
        for source in sources:
            for name, seconds in measured(source).items():
                best[source][name] = min(seconds, best[source].get(name, seconds))
    print(f"one thread of {platform.machine()}, CPU seconds, the least of {ROUNDS}")
    for name, seconds in best[str(HERE)].items():
        line = f"{name}: {seconds:.2f} s"
        if other is not None:
            line += f", was {best[other][name]:.2f} s, ratio {seconds / best[other][name]:.2f}"
        print(line)


def measured(source: str) -> dict[str, float]:
    """Seconds by name, of a process with these sources."""
    environment = {**os.environ, "PYTHONPATH": source, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, __file__, "--measure"]
    run = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    found: dict[str, float] = json.loads(run.stdout.splitlines()[-1])
    return found


def measure() -> None:
    """Print the seconds of this version as JSON; only names that all versions have are used."""
    import torch

    import qsdformer as qsd
    from qsdformer.data import DataInfo

    def info(size: int, channels: int, classes: int) -> DataInfo:
        half = (0.5,) * channels
        names = tuple(map(str, range(classes)))
        return DataInfo(image_size=size, channels=channels, class_names=names, mean=half, std=half)

    torch.manual_seed(0)
    large = qsd.create_model("metaspikeformer_15m").eval()
    small = qsd.create_model("metaspikeformer_tiny", in_channels=1, num_classes=10).eval()
    images = torch.randint(0, 256, (max(IMAGES), 1, 32, 32), dtype=torch.uint8)
    small_info = info(32, 1, 10)

    def verify(number: int) -> None:
        chosen = images[:number].split(BATCH)
        qsd.verify(small, [(batch, torch.zeros(BATCH).long()) for batch in chosen], small_info)

    qsd.verify(small, images[:BATCH], small_info)  # imports and first use do not count
    found = {
        "lower metaspikeformer_15m, 224 px": seconds(
            lambda: qsd.lower(large, info(224, 3, large.config.num_classes))
        ),
        **{f"verify {n} images of 32 px": seconds(lambda n=n: verify(n)) for n in IMAGES},
    }
    print(json.dumps(found))


def seconds(function: Callable[[], object]) -> float:
    """CPU seconds of a call."""
    begin = time.process_time()
    function()
    return time.process_time() - begin


if __name__ == "__main__":
    if sys.argv[1:] == ["--measure"]:
        measure()
    else:
        main(*sys.argv[1:])
