"""Draws docs/figures/architecture.png: the way of an image from recipe to artifact."""

from __future__ import annotations

from pathlib import Path

from matplotlib import pyplot as plt
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

OUT = Path(__file__).parents[1] / "docs" / "figures" / "architecture.png"
INK, PAPER, WARM, COOL = "#1f2933", "#f4f1ea", "#f6d9b8", "#cfe3ea"

# Name of the room, what it says below, x and y of the centre, colour.
BOXES = {
    "recipe": ("recipes/", "YAML to dataclasses", 1.3, 5.0, PAPER),
    "config": ("models/configs", "sizes of each family", 1.3, 3.4, PAPER),
    "data": ("data/", "images in, batches out", 4.2, 5.9, PAPER),
    "model": ("models/ + nn/", "networks from layers", 4.2, 4.2, WARM),
    "train": ("tasks/ + training/", "learn, teach, save, resume", 7.2, 5.0, PAPER),
    "ckpt": ("checkpoint", "weights + configuration", 10.1, 5.0, PAPER),
    "trace": ("graph/trace.py", "forward, as named steps", 10.1, 3.0, WARM),
    "binary": ("runtimes/binary.py", "spikes, additions only", 7.2, 3.4, COOL),
    "ledger": ("analysis/", "rates, energy, report", 7.2, 1.9, COOL),
    "integer": ("integer graph", "operations, proven bounds", 10.1, 1.0, WARM),
    "artifact": ("model.qsd", "packed integers", 7.2, 0.4, COOL),
    "onnx": ("ONNX", "ONNX Runtime, OpenVINO", 13.0, 0.4, COOL),
    "verify": ("runtimes/verify.py", "every way, side by side", 13.0, 3.0, COOL),
    "numpy": ("graph/reference.py", "exact sums in NumPy", 13.0, 1.7, COOL),
    "native": ("native/", "the engine in C", 4.2, 0.4, COOL),
    "accelerator": ("accelerator/", "cycles, traffic, joules", 10.1, -0.6, COOL),
}
ARROWS = [
    ("config", "recipe"),
    ("recipe", "data"),
    ("recipe", "model"),
    ("data", "train"),
    ("model", "train"),
    ("train", "ckpt"),
    ("ckpt", "trace"),
    ("trace", "binary"),
    ("trace", "ledger"),
    ("trace", "verify"),
    ("trace", "integer"),
    ("integer", "artifact"),
    ("integer", "onnx"),
    ("integer", "numpy"),
    ("artifact", "native"),
    ("integer", "accelerator"),
]
WIDTH, HEIGHT = 2.5, 0.86


def main() -> None:
    """Write the picture."""
    figure, axes = plt.subplots(figsize=(14.4, 6.6))
    patches = {}
    for key, (name, text, x, y, colour) in BOXES.items():
        corner = (x - WIDTH / 2, y - HEIGHT / 2)
        style = "round,pad=0.02,rounding_size=0.12"
        box = FancyBboxPatch(corner, WIDTH, HEIGHT, boxstyle=style, fc=colour, ec=INK, lw=1.2)
        patches[key] = axes.add_patch(box)
        axes.text(
            x, y + 0.15, name, ha="center", va="center", fontsize=12, weight="bold", color=INK
        )
        axes.text(x, y - 0.2, text, ha="center", va="center", fontsize=9, color=INK)
    for start, end in ARROWS:
        (a, b) = (BOXES[key][2:4] for key in (start, end))
        arrow = FancyArrowPatch(
            a,
            b,
            arrowstyle="-|>",
            mutation_scale=15,
            lw=1.4,
            color=INK,
            patchA=patches[start],
            patchB=patches[end],
        )
        axes.add_patch(arrow)
    axes.text(0.1, -0.5, "orange: where the network is defined", fontsize=10, color=INK)
    axes.text(0.1, -0.9, "blue: readers and what they make", fontsize=10, color=INK)
    axes.set(xlim=(0, 14.4), ylim=(-1.2, 6.6))
    axes.axis("off")
    figure.savefig(OUT, dpi=110, bbox_inches="tight", facecolor="white")


if __name__ == "__main__":
    main()
