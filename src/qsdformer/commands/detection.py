"""`qsd eval` and `qsd predict` of detectors."""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from qsdformer.commands.found import Found, Predict
from qsdformer.commands.outputs import check_outputs
from qsdformer.commands.pictures import Pictures
from qsdformer.commands.recipe_keys import given_keys
from qsdformer.files import write_text

if TYPE_CHECKING:
    import torch
    from PIL import Image
    from torch import Tensor

    from qsdformer.data.detection.dataset import DetectionBatch
    from qsdformer.data.detection.module import DetectionDataModule
    from qsdformer.graph.integer import IntegerGraph
    from qsdformer.models.checkpoint import Loaded
    from qsdformer.runtimes.onnx_predict import OnnxModel
    from qsdformer.runtimes.runnable import RunnableGraph
    from qsdformer.tasks.detecting import Detect, DetectionEvaluation, Detections

RESULTS = "results.json"  # of qsd predict, in COCO's result format


def evaluate(options: argparse.Namespace, loaded: Loaded, device: torch.device) -> None:
    """Print average precision of boxes and masks, and a table of the classes."""
    from qsdformer.tasks.detecting import detector_on
    from qsdformer.tasks.stored import data_of

    data = data_of(loaded, options.model, given_keys(options), options.batch_size)
    config: Any = loaded.model.config
    detect = detector_on(loaded.model, device)
    _evaluate(options, cast(Any, data), detect, masks=config.has_masks)


def evaluate_exported(options: argparse.Namespace, model: IntegerGraph | OnnxModel) -> None:
    """As `evaluate`, of a file of `qsd export`."""
    from qsdformer.commands.exported_data import data_for
    from qsdformer.commands.running import announce, in_fastest_runtime

    data = data_for(options.model, model, given_keys(options), options.batch_size)
    runner = in_fastest_runtime(model, options.threads)
    announce(runner)
    post: Any = model.post
    _evaluate(options, cast(Any, data), _exported_detector(runner), masks=post.has_masks)


def _evaluate(
    options: argparse.Namespace, data: DetectionDataModule, detect: Detect, *, masks: bool
) -> None:
    from qsdformer.commands.running import progress_bar
    from qsdformer.tasks.detecting import evaluate_boxes

    check_outputs([options.results], [options.model], data.files)
    total = min(data.eval_size, options.limit or data.eval_size)
    with progress_bar() as progress:
        task = progress.add_task("evaluating", total=total)
        result = evaluate_boxes(
            detect,
            _shown(data.val_dataloader(), total, lambda n: progress.advance(task, n)),
            len(data.info.class_names),
            masks=masks,
            category_ids=data.category_ids if options.results else None,
        )
    for note in data.notes:
        print(f"note: {note}", file=sys.stderr)
    print_scores(options, data.config.name, data.info.class_names, result)
    if options.results:
        write_text(options.results, json.dumps(result.results) + "\n")
        print(f"what was found is in {options.results}", file=sys.stderr)


def print_scores(
    options: argparse.Namespace, name: str, classes: Sequence[str], result: DetectionEvaluation
) -> None:
    """As JSON or as text, the classes in the order of their labels."""
    kinds = {"box": result.scores.box}
    if result.scores.mask is not None:
        kinds["mask"] = result.scores.mask
    if options.json:
        values: dict[str, Any] = {"checkpoint": options.model, "data": name}
        for kind, found in kinds.items():
            values |= {f"{kind}_{key}": getattr(found, key) for key in ("ap", "ap50", "ap75")}
        values["classes"] = [
            {"class": class_name}
            | {f"{kind}_ap": _number(p.of_class[i]) for kind, p in kinds.items()}
            | {f"{kind}_ap50": _number(p.of_class50[i]) for kind, p in kinds.items()}
            for i, class_name in enumerate(classes)
        ]
        speed = {"images": result.images, "images_per_second": result.images_per_second}
        print(json.dumps({**values, **speed}))
        return
    summary = ", ".join(
        f"{kind} AP50 {found.ap50:.2%}, AP {found.ap:.2%}, AP75 {found.ap75:.2%}"
        for kind, found in kinds.items()
    )
    speed_text = f"{result.images:,} images, {result.images_per_second:,.1f} img/s"
    print(f"{options.model} on {name}: {summary} of {speed_text}")
    width = max(len("class"), *map(len, classes))
    heads = "".join(f"{kind + ' AP50':>12}{kind + ' AP':>10}" for kind in kinds)
    print(f"  {'class':{width}}{heads}")
    for index, class_name in enumerate(classes):
        cells = "".join(
            f"{_share(found.of_class50[index]):>12}{_share(found.of_class[index]):>10}"
            for found in kinds.values()
        )
        print(f"  {class_name:{width}}{cells}")


def predictor(options: argparse.Namespace, loaded: Loaded, device: torch.device) -> Predict:
    """What draws boxes and masks on images, and keeps all that is found in COCO's result format."""
    from qsdformer.data.decoding import in_channels
    from qsdformer.data.detection.config import DetectionData
    from qsdformer.data.detection.dataset import Preparation
    from qsdformer.tasks.detecting import detector_on
    from qsdformer.tasks.stored import trained_section, unknown_inputs

    info = loaded.info
    if info is None:
        raise unknown_inputs(options.model)
    preparation = Preparation.of(trained_section(loaded, DetectionData, info), info)

    def prepare(image: Image.Image) -> Tensor:
        return preparation(in_channels(image, preparation.channels))

    ids = category_ids_of(loaded.extra.get("category_ids"), info.class_names)
    return _predictor(options, detector_on(loaded.model, device), prepare, info.class_names, ids)


def exported_predictor(options: argparse.Namespace, model: RunnableGraph | OnnxModel) -> Predict:
    """As `predictor`, with a file of `qsd export`."""
    from qsdformer.data.decoding import in_channels
    from qsdformer.data.detection.vary import resized_image, to_tensor
    from qsdformer.graph.post import DetectionPost, RegionPost

    pre, post = model.preprocessing, model.post
    assert isinstance(post, DetectionPost | RegionPost)

    def prepare(image: Image.Image) -> Tensor:
        coloured = in_channels(image, pre.channels)
        return to_tensor(resized_image(coloured, pre.place_of((image.height, image.width))))

    detect = _exported_detector(model)
    return _predictor(options, detect, prepare, post.class_names, post.category_ids)


def _predictor(
    options: argparse.Namespace,
    detect: Detect,
    prepare: Callable[[Image.Image], Tensor],
    names: Sequence[str],
    category_ids: Sequence[int],
) -> Predict:
    from qsdformer.data.detection.drawing import drawn
    from qsdformer.tasks.detecting import coco_results
    from qsdformer.tasks.pictures import as_drawn

    pictures = Pictures(Path(options.output), options.images)
    results: list[dict[str, Any]] = []
    write_text(pictures.folder / RESULTS, "[]\n")  # not an older one, if no image can be read

    def predict(opened: Sequence[tuple[str, Image.Image]]) -> Iterator[Found]:
        for path, image in opened:
            (found,) = detect([prepare(image)], [(image.height, image.width)])
            kept = {
                key: value[found["scores"] >= options.min_score] for key, value in found.items()
            }
            (picture,) = pictures.names_for(path, "")
            pictures.save(drawn(image, as_drawn(kept), names), picture)
            listed = coco_results(found, pictures.position, category_ids)
            results.extend(listed)
            yield described(path, kept, listed, names, picture)
        write_text(pictures.folder / RESULTS, json.dumps(results) + "\n")

    return predict


def described(
    path: str,
    kept: Detections,
    listed: list[dict[str, Any]],
    names: Sequence[str],
    picture: Path,
) -> Found:
    """What is said of an image: the objects `kept`, the likeliest first, and all in `listed`."""
    objects = [
        f"{names[label - 1]} {score:.0%}"
        for label, score in zip(kept["labels"].tolist(), kept["scores"].tolist(), strict=True)
    ]
    entry = {"image": path, "picture": str(picture), "detections": listed}
    return Found(line=f"{path}: {', '.join(objects) or 'nothing'} -> {picture}", entry=entry)


def category_ids_of(stored: Any, class_names: Sequence[str]) -> tuple[int, ...]:
    """What files call the classes, as a checkpoint says; 1, 2, ... where it does not."""
    from qsdformer.data.detection.records import numbered_categories

    if isinstance(stored, list) and len(stored) == len(class_names):
        return tuple(int(number) for number in stored)
    return numbered_categories(class_names)


def _exported_detector(model: RunnableGraph | OnnxModel) -> Detect:
    from qsdformer.graph.post import DetectionPost, RegionPost
    from qsdformer.runtimes.dense import ExportedDetector

    assert isinstance(model.post, DetectionPost | RegionPost)
    return ExportedDetector(model=model, post=model.post).detect


def _shown(
    batches: Iterable[DetectionBatch], limit: int, advance: Callable[[int], object]
) -> Iterator[DetectionBatch]:
    """The first `limit` images, whose number is told as they are done."""
    for images, targets in batches:
        yield images[:limit], targets[:limit]
        advance(len(images[:limit]))
        limit -= len(images)
        if limit <= 0:
            return


def _share(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.2%}"


def _number(value: float) -> float | None:
    """NaN, which JSON does not have, as null."""
    return None if math.isnan(value) else value
