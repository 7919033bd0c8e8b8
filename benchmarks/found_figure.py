"""Lays the pictures that `qsd predict` has drawn side by side in one file.

    qsd predict MODEL data/fashion-scenes/val/images --output PREDICTIONS
    python benchmarks/found_figure.py PREDICTIONS docs/figures/fashion-scenes.png

Takes the first pictures by name, not chosen ones.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from PIL import Image

from qsdformer.data.detection.drawing import beside
from qsdformer.files import atomic_path


def main() -> None:
    """Write the figure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("predictions", type=Path, help="the folder that qsd predict wrote to")
    parser.add_argument("output", type=Path)
    parser.add_argument("--rows", type=int, default=2)
    parser.add_argument("--columns", type=int, default=4)
    options = parser.parse_args()
    files = sorted(options.predictions.glob("*.png"))[: options.rows * options.columns]
    if len(files) < options.rows * options.columns:
        parser.error(f"{options.predictions} has {len(files)} pictures: predict more images")
    pictures = [Image.open(file).convert("RGB") for file in files]
    rows = [
        beside(pictures[first : first + options.columns])
        for first in range(0, len(pictures), options.columns)
    ]
    figure = Image.fromarray(np.concatenate(rows, axis=0)).quantize(128)
    with atomic_path(options.output) as temporary:
        figure.save(temporary, format="png", optimize=True)


if __name__ == "__main__":
    main()
