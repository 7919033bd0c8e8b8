"""`qsd predict CKPT IMAGE...`."""

from __future__ import annotations

import argparse
import json

from qsdformer.checkpoint import load_checkpoint
from qsdformer.commands.arguments import positive
from qsdformer.data import load_images
from qsdformer.errors import UserError
from qsdformer.evaluation import pick_device, top_classes

BATCH = 64  # images held in memory at a time


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `qsd predict`."""
    parser.add_argument("checkpoint", metavar="CKPT", help="a checkpoint of qsd train")
    parser.add_argument("images", metavar="IMAGE", nargs="+", help="image files")
    parser.add_argument(
        "--top",
        type=positive,
        default=5,
        metavar="N",
        help="classes to show for each image (default: 5)",
    )
    parser.add_argument(
        "--device", default="auto", help="cpu, cuda, ...; auto prefers CUDA (default: auto)"
    )
    parser.add_argument("--json", action="store_true", help="print JSON (default: text)")


def run(options: argparse.Namespace) -> int:
    """Print the likeliest classes of each image."""
    device = pick_device(options.device)
    loaded = load_checkpoint(options.checkpoint)
    info = loaded.info
    if info is None:
        raise UserError(
            f"{options.checkpoint} does not say what its images look like (it was imported): "
            "fine-tune it on your data with qsd train first"
        )
    model = loaded.model.to(device)
    found = []
    for start in range(0, len(options.images), BATCH):
        images = load_images(options.images[start : start + BATCH], info).to(device)
        found += top_classes(model, images, info.class_names, options.top)
    if options.json:
        print(json.dumps([_entry(p, c) for p, c in zip(options.images, found, strict=True)]))
        return 0
    for path, classes in zip(options.images, found, strict=True):
        print(f"{path}: " + ", ".join(f"{name} {share:.1%}" for name, share in classes))
    return 0


def _entry(path: str, classes: list[tuple[str, float]]) -> dict[str, object]:
    shown = [{"class": name, "probability": share} for name, share in classes]
    return {"image": path, "classes": shown}
