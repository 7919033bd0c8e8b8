"""`qsd predict MODEL IMAGE...`."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from PIL import Image

from qsdformer.commands.arguments import (
    add_threads_argument,
    check_exported,
    check_task,
    positive,
    share,
)
from qsdformer.commands.found import Found, Predict
from qsdformer.data.decoding import EXTENSIONS, find_images, open_image
from qsdformer.errors import UserError

if TYPE_CHECKING:
    import torch

    from qsdformer.models.checkpoint import Loaded

# Of images held in memory at a time, and of their pixels: a photo may have 12 million.
MOST_IMAGES, MOST_PIXELS = 64, 2**24
DRAWN = ["segmentation", "detection"]
# Options that are for models of some tasks, and what they are where they are not given.
OF_TASK = {"top": ["classification"], "output": DRAWN, "min_score": ["detection"]}
DEFAULTS = {"top": 5, "output": "predictions", "min_score": 0.3}


# The likeliest (class name, probability) pairs of each image.
Classify = Callable[[Sequence[Image.Image]], list[list[tuple[str, float]]]]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `qsd predict`."""
    parser.add_argument(
        "model",
        metavar="MODEL",
        help="a checkpoint of qsd train, or a .qsd or .onnx file of qsd export",
    )
    parser.add_argument("images", metavar="IMAGE", nargs="+", help="image files or folders")
    parser.add_argument(
        "--top",
        type=positive,
        metavar="N",
        help="classification: classes to show for each image (default: 5)",
    )
    parser.add_argument(
        "--device",
        default="auto",
        help="of a checkpoint: cpu, cuda, ...; auto prefers CUDA (default: auto)",
    )
    add_threads_argument(parser)
    parser.add_argument(
        "--output",
        metavar="DIR",
        help="folder for pictures of what a segmentation or detection model finds "
        "(default: predictions)",
    )
    parser.add_argument(
        "--min-score",
        type=share,
        metavar="X",
        help="detection: draw and name what is at least this likely (default: 0.3)",
    )
    parser.add_argument("--json", action="store_true", help="print JSON (default: text)")


def run(options: argparse.Namespace) -> int:
    """Print the likeliest classes of each image; status 2 if there were files it cannot read."""
    paths = options.images = _image_paths(options.images)
    predict = _predictor(options)
    entries = []
    predicted = 0
    for opened in _opened(paths):
        predicted += len(opened)
        for found in predict(opened):
            if options.json:
                entries.append(found.entry)
            else:
                print(found.line)
    if options.json:
        print(json.dumps(entries))
    return 2 if predicted < len(paths) else 0


def _image_paths(given: Sequence[str]) -> list[str]:
    """The files given, with the image files below each folder in its place."""
    paths = []
    for path in given:
        if not os.path.isdir(path):
            paths.append(path)
            continue
        images, _ = find_images(path)
        if not images:
            raise UserError(f"{path} holds no images; they end in {', '.join(EXTENSIONS)}")
        paths += images
    return paths


def _opened(paths: Sequence[str]) -> Iterator[list[tuple[str, Image.Image]]]:
    """The images that can be read, some at a time; the others are named on standard error."""
    opened, pixels = [], 0
    for path in paths:
        try:
            image = open_image(path)
        except UserError as error:
            print(f"qsd: error: {error}", file=sys.stderr)
            continue
        opened.append((path, image))
        pixels += image.width * image.height
        if len(opened) == MOST_IMAGES or pixels >= MOST_PIXELS:
            yield opened
            opened, pixels = [], 0
    if opened:
        yield opened


def _choose_options(options: argparse.Namespace, task: str) -> None:
    """Refuse what is not for models of this task, and fill in what was not given."""
    check_task(options, task, OF_TASK)
    for name, value in DEFAULTS.items():
        if getattr(options, name) is None:
            setattr(options, name, value)


def _predictor(options: argparse.Namespace) -> Predict:
    """What predicts with the model in a file, as its task is; exported files need no PyTorch."""
    from qsdformer.commands.running import announce, in_fastest_runtime
    from qsdformer.runtimes.exported import load_exported, task_of

    exported = load_exported(options.model, options.threads)
    if exported is not None:
        check_exported(options.model, device=options.device)
        _choose_options(options, task_of(exported))
        model = in_fastest_runtime(exported, options.threads)
        announce(model)
        if model.post is not None:
            from qsdformer.commands.dense import exported_predictor

            return exported_predictor(options, model)
        return _classes(lambda images: model.predict(images, options.top))
    import torch

    from qsdformer.commands.dense import dense_predictor
    from qsdformer.devices import pick_device
    from qsdformer.models.checkpoint import load_checkpoint

    device = pick_device(options.device)
    if options.threads:
        torch.set_num_threads(options.threads)
    loaded = load_checkpoint(options.model)
    _choose_options(options, loaded.task)
    if loaded.task != "classification":
        return dense_predictor(options, loaded, device)
    return _classes(_checkpoint_classifier(options, loaded, device))


def _checkpoint_classifier(
    options: argparse.Namespace, loaded: Loaded, device: torch.device
) -> Classify:
    import torch

    from qsdformer.data.images import prepare
    from qsdformer.graph.classes import top_classes
    from qsdformer.nn.exact import exact_float32
    from qsdformer.tasks.stored import unknown_inputs

    info = loaded.info
    if info is None:
        raise unknown_inputs(options.model)
    model = loaded.model.to(device)

    def classify(images: Sequence[Image.Image]) -> list[list[tuple[str, float]]]:
        with torch.inference_mode(), exact_float32(device):
            logits = model(prepare(images, info).to(device)).cpu().double().numpy()
        return top_classes(logits, info.class_names, options.top)

    return classify


def _classes(classify: Classify) -> Predict:
    """What says of each image its likeliest classes."""

    def predict(opened: Sequence[tuple[str, Image.Image]]) -> Iterator[Found]:
        found = classify([image for _, image in opened])
        for (path, _), classes in zip(opened, found, strict=True):
            shown = [{"class": name, "probability": share} for name, share in classes]
            text = ", ".join(f"{name} {share:.1%}" for name, share in classes)
            yield Found(line=f"{path}: {text}", entry={"image": path, "classes": shown})

    return predict
