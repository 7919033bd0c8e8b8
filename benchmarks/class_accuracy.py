"""What share of each class's images a classifier gets right, as the cards in zoo/ list it.

    python benchmarks/class_accuracy.py MODEL.qsd ROOT [--split val]

ROOT/SPLIT has a folder of images for each class, all of the size that MODEL takes. Prints the rows
of a Markdown table.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from PIL import Image

import qsdformer as qsd


def main(words: list[str] | None = None) -> None:
    """Print a row a class, in the model's order."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("root", type=Path)
    parser.add_argument("--split", default="val")
    options = parser.parse_args(words)
    model = qsd.load(options.model)
    for number, name in enumerate(model.class_names):
        files = sorted((options.root / options.split / name).iterdir())
        images = np.stack([np.asarray(Image.open(f).convert("RGB")) for f in files])
        found = np.asarray(model.logits(images.transpose(0, 3, 1, 2))).argmax(1)
        print(f"| {name} | {100 * np.mean(found == number):.1f} % |")


if __name__ == "__main__":
    main()
