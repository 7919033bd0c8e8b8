"""`qsd predict MODEL IMAGE...`."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence

from qsdformer.commands.arguments import positive
from qsdformer.errors import UserError

BATCH = 64  # images held in memory at a time

# The likeliest (class name, probability) pairs of each image file.
Classify = Callable[[Sequence[str]], list[list[tuple[str, float]]]]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `qsd predict`."""
    parser.add_argument(
        "model",
        metavar="MODEL",
        help="a checkpoint of qsd train, or a .qsd or .onnx file of qsd export",
    )
    parser.add_argument("images", metavar="IMAGE", nargs="+", help="image files")
    parser.add_argument(
        "--top",
        type=positive,
        default=5,
        metavar="N",
        help="classes to show for each image (default: 5)",
    )
    parser.add_argument(
        "--device",
        default="auto",
        help="of a checkpoint: cpu, cuda, ...; auto prefers CUDA (default: auto)",
    )
    parser.add_argument("--json", action="store_true", help="print JSON (default: text)")


def run(options: argparse.Namespace) -> int:
    """Print the likeliest classes of each image."""
    classify = _classifier(options.model, options.top, options.device)
    found = []
    for start in range(0, len(options.images), BATCH):
        found += classify(options.images[start : start + BATCH])
    if options.json:
        print(json.dumps([_entry(p, c) for p, c in zip(options.images, found, strict=True)]))
        return 0
    for path, classes in zip(options.images, found, strict=True):
        print(f"{path}: " + ", ".join(f"{name} {share:.1%}" for name, share in classes))
    return 0


def _classifier(path: str, top: int, device: str) -> Classify:
    """What classifies with the model in a file; exported files need no PyTorch."""
    if path.endswith(".onnx"):
        from qsdformer.runtimes.onnx_predict import load_onnx, open_image

        exported = load_onnx(path)
        return lambda files: exported.predict([open_image(file) for file in files], top)
    from qsdformer.graph.artifact import is_artifact, load_artifact

    if path.endswith(".qsd") or is_artifact(path):
        from qsdformer.runtimes.onnx_predict import open_image

        graph = load_artifact(path)
        return lambda files: graph.predict([open_image(file) for file in files], top)
    return _checkpoint_classifier(path, top, device)


def _checkpoint_classifier(path: str, top: int, device_name: str) -> Classify:
    from qsdformer.data import load_images
    from qsdformer.devices import pick_device
    from qsdformer.models.checkpoint import load_checkpoint
    from qsdformer.tasks.evaluation import top_classes

    device = pick_device(device_name)
    loaded = load_checkpoint(path)
    info = loaded.info
    if info is None:
        raise UserError(
            f"{path} does not say what its images look like (it was imported): "
            "fine-tune it on your data with qsd train first"
        )
    model = loaded.model.to(device)

    def classify(files: Sequence[str]) -> list[list[tuple[str, float]]]:
        return top_classes(model, load_images(files, info).to(device), info.class_names, top)

    return classify


def _entry(path: str, classes: list[tuple[str, float]]) -> dict[str, object]:
    shown = [{"class": name, "probability": share} for name, share in classes]
    return {"image": path, "classes": shown}
