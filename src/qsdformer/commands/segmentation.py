"""`qsd eval` and `qsd predict` of segmentation networks."""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from qsdformer.commands.found import Found, Predict
from qsdformer.commands.pictures import Pictures
from qsdformer.commands.recipe_keys import given_keys

if TYPE_CHECKING:
    import torch
    from PIL import Image
    from torch import Tensor

    from qsdformer.data import DataInfo, DataModule
    from qsdformer.data.segmentation.config import SegmentationData
    from qsdformer.graph.integer import IntegerGraph
    from qsdformer.graph.post import SegmentationPost
    from qsdformer.models.checkpoint import Loaded
    from qsdformer.runtimes.onnx_predict import OnnxModel
    from qsdformer.runtimes.runnable import RunnableGraph
    from qsdformer.tasks.segmenting import MaskEvaluation, Segmenter

MOST_LOGITS = 2**26  # more are not resized to the size of a large image, but the classes found


def evaluate(options: argparse.Namespace, loaded: Loaded, device: torch.device) -> None:
    """Print mIoU, pixel accuracy and a table of the classes."""
    from qsdformer.tasks.segmenting import segmenter_on
    from qsdformer.tasks.stored import data_of

    data = data_of(loaded, options.model, given_keys(options), options.batch_size)
    segmenter = _segmenter(loaded, options.inference, device)
    _evaluate(options, data, segmenter_on(segmenter, device))


def evaluate_exported(options: argparse.Namespace, model: IntegerGraph | OnnxModel) -> None:
    """As `evaluate`, of a file of `qsd export`; larger images pass through it in windows."""
    from qsdformer.commands.exported_data import data_for
    from qsdformer.commands.running import announce, in_fastest_runtime

    data = data_for(options.model, model, given_keys(options), options.batch_size)
    runner = in_fastest_runtime(model, options.threads)
    announce(runner)
    _evaluate(options, data, _exported_segmenter(runner, options.inference))


def _evaluate(
    options: argparse.Namespace,
    data: DataModule,
    segment: Callable[[Tensor, Sequence[int]], Tensor],
) -> None:
    from qsdformer.commands.running import with_progress
    from qsdformer.tasks.evaluation import first_images
    from qsdformer.tasks.segmenting import evaluate_masks

    batches = first_images(data.val_dataloader(), options.limit)
    total = min(data.eval_size, options.limit or data.eval_size)
    shown = with_progress(batches, total, "evaluating")
    result = evaluate_masks(segment, shown, len(data.info.class_names))
    for note in data.notes:
        print(f"note: {note}", file=sys.stderr)
    print_scores(options, data.config.name, data.info.class_names, result)


def print_scores(
    options: argparse.Namespace, name: str, classes: Sequence[str], result: MaskEvaluation
) -> None:
    """As JSON or as text, the classes in the order of their labels."""
    scores = result.scores
    rows = zip(classes, scores.iou, scores.accuracy, scores.share, strict=True)
    if options.json:
        values = {
            "checkpoint": options.model,
            "data": name,
            "miou": scores.mean_iou,
            "pixel_accuracy": scores.pixel_accuracy,
            "classes": [
                {"class": c, "iou": _number(i), "accuracy": _number(a), "share": s}
                for c, i, a, s in rows
            ],
            "images": result.images,
            "images_per_second": result.images_per_second,
        }
        print(json.dumps(values))
        return
    print(
        f"{options.model} on {name}: mIoU {scores.mean_iou:.2%}, pixel accuracy "
        f"{scores.pixel_accuracy:.2%} of {result.images:,} images, "
        f"{result.images_per_second:,.1f} img/s"
    )
    width = max(len("class"), *map(len, classes))
    print(f"  {'class':{width}}      IoU    found   pixels")
    for row in rows:
        shares = "".join(f"{'-':>9}" if math.isnan(v) else f"{v:9.2%}" for v in row[1:])
        print(f"  {row[0]:{width}}{shares}")


def predictor(options: argparse.Namespace, loaded: Loaded, device: torch.device) -> Predict:
    """What colours images by what is found in them, and writes pictures and masks."""
    from qsdformer.data.segmentation.config import SegmentationData
    from qsdformer.tasks.stored import trained_section, unknown_inputs

    if loaded.info is None:
        raise unknown_inputs(options.model)
    segmenter = _segmenter(loaded, None, device)
    config = trained_section(loaded, SegmentationData, loaded.info)
    return _predictor(options, segmenter, loaded.info, _sizes(config, loaded.info), device)


def exported_predictor(options: argparse.Namespace, model: RunnableGraph | OnnxModel) -> Predict:
    """As `predictor`, with a file of `qsd export`."""
    import torch

    from qsdformer.commands.exported_data import info_of
    from qsdformer.data.segmentation.config import SegmentationData

    post = cast("SegmentationPost", model.post)
    info = info_of(model)
    config = SegmentationData(
        image_size=info.image_size,
        shorter_side=post.shorter_side,
        longest_side=post.longest_side,
    )
    segmenter = _exported_segmenter(model, None)
    return _predictor(options, segmenter, info, _sizes(config, info), torch.device("cpu"))


def _predictor(
    options: argparse.Namespace,
    segmenter: Segmenter,
    info: DataInfo,
    size_of: Callable[[np.ndarray], tuple[int, int]],
    device: torch.device,
) -> Predict:
    import torch
    from PIL import Image

    from qsdformer.data.decoding import in_channels
    from qsdformer.data.images import normalise
    from qsdformer.data.segmentation.overlay import overlaid, with_legend
    from qsdformer.data.segmentation.vary import resized_image, resized_mask
    from qsdformer.nn.exact import exact_float32

    pictures = Pictures(Path(options.output), options.images)

    def found_in(image: Image.Image) -> np.ndarray:
        pixels = np.asarray(in_channels(image, info.channels))
        shown = torch.from_numpy(resized_image(pixels, size_of(pixels)).transpose(2, 0, 1).copy())
        size = pixels.shape[:2]
        many = pixels.size * len(info.class_names) > MOST_LOGITS
        with torch.inference_mode(), exact_float32(device):
            images = normalise(shown[None], info).to(device)
            logits = segmenter(images, None if many else size)
        return resized_mask(logits[0].argmax(0).to(torch.uint8).cpu().numpy(), size)

    def predict(opened: Sequence[tuple[str, Image.Image]]) -> Iterator[Found]:
        for path, image in opened:
            mask = found_in(image)
            picture = overlaid(np.asarray(image.convert("RGB")), mask, len(info.class_names))
            drawn, plain = pictures.names_for(path, "", "-mask")
            pictures.save(with_legend(picture, mask, info.class_names), drawn)
            pictures.save(Image.fromarray(mask), plain)
            yield described(path, mask, info.class_names, drawn, plain)

    return predict


def described(
    path: str, mask: np.ndarray, names: Sequence[str], picture: Path, plain: Path
) -> Found:
    """What is said of a mask: the share of each class, the commonest first, and the files."""
    counts = np.bincount(mask.ravel(), minlength=len(names))
    order = [int(index) for index in np.argsort(-counts, kind="stable") if counts[index]]
    shares = [(names[index], float(counts[index] / mask.size)) for index in order]
    text = ", ".join(f"{name} {share:.1%}" for name, share in shares)
    entry: dict[str, Any] = {
        "image": path,
        "classes": [{"class": name, "share": share} for name, share in shares],
        "picture": str(picture),
        "mask": str(plain),
    }
    return Found(line=f"{path}: {text} -> {picture}", entry=entry)


def _segmenter(loaded: Loaded, inference: str | None, device: torch.device) -> Segmenter:
    from qsdformer.recipes.dense import SegmentationRecipe
    from qsdformer.tasks.segmenting import Segmenter
    from qsdformer.tasks.stored import unknown_inputs

    section = SegmentationRecipe.parse(loaded.recipe.get("segmentation"))
    if inference is not None:
        section = dataclasses.replace(section, inference=cast(Any, inference))
    if loaded.info is None:
        raise unknown_inputs("the checkpoint")
    return Segmenter.of(loaded.model.eval().to(device), section, loaded.info)


def _exported_segmenter(model: RunnableGraph | OnnxModel, inference: str | None) -> Segmenter:
    """A network of one size: images that are larger pass through it in windows of that size."""
    from qsdformer.graph.post import SegmentationPost
    from qsdformer.runtimes.dense import ExportedSegmenter
    from qsdformer.tasks.segmenting import Segmenter

    assert isinstance(model.post, SegmentationPost)
    network = ExportedSegmenter(model=model, post=model.post)
    window = None if inference == "whole" else model.preprocessing.inner
    return Segmenter(network=cast(Any, network), window=window)


def _sizes(config: SegmentationData, info: DataInfo) -> Callable[[np.ndarray], tuple[int, int]]:
    """Which size an image gets, as a data section says."""
    from qsdformer.data.segmentation.dataset import working_size

    return lambda pixels: working_size(pixels.shape, config, info)


def _number(value: float) -> float | None:
    """NaN, which JSON does not have, as null."""
    return None if math.isnan(value) else value
