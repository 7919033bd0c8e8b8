"""`qsd eval` and `qsd predict` of detectors."""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from qsdformer.commands.dense import BATCH
from qsdformer.commands.pictures import Pictures
from qsdformer.commands.predict import Found, Predict
from qsdformer.commands.recipe_keys import given_keys
from qsdformer.errors import UserError
from qsdformer.files import write_text

if TYPE_CHECKING:
    import torch
    from PIL import Image
    from torch import Tensor

    from qsdformer.data.detection.dataset import DetectionBatch
    from qsdformer.data.detection.module import DetectionDataModule
    from qsdformer.models.checkpoint import Loaded
    from qsdformer.tasks.detecting import Detect, DetectionEvaluation, Detections

RESULTS = "results.json"  # of qsd predict, in COCO's result format


def evaluate(options: argparse.Namespace, loaded: Loaded, device: torch.device) -> None:
    """Print average precision of boxes and masks, and a table of the classes."""
    from qsdformer.commands.running import progress_bar
    from qsdformer.tasks.detecting import evaluate_boxes
    from qsdformer.tasks.stored import data_of

    if options.activity:
        raise UserError("--activity is for classification models: leave it out")
    module = data_of(loaded, options.model, given_keys(options), options.batch_size or BATCH)
    data = cast("DetectionDataModule", module)
    config: Any = loaded.model.config
    total = min(data.eval_size, options.limit or data.eval_size)
    with progress_bar() as progress:
        task = progress.add_task("evaluating", total=total)
        result = evaluate_boxes(
            _detector(loaded, device),
            _shown(data.val_dataloader(), total, lambda n: progress.advance(task, n)),
            len(data.info.class_names),
            masks=config.has_masks,
            category_ids=data.category_ids if options.results else None,
        )
    for note in data.notes:
        print(f"note: {note}", file=sys.stderr)
    if options.results:
        write_text(options.results, json.dumps(result.results) + "\n")
    print_scores(options, data.config.name, data.info.class_names, result)


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
    from qsdformer.data.detection.drawing import drawn
    from qsdformer.tasks.detecting import coco_results
    from qsdformer.tasks.pictures import LIKELY, as_drawn
    from qsdformer.tasks.stored import unknown_inputs

    info = loaded.info
    if info is None:
        raise unknown_inputs(options.model)
    detect, prepare = _detector(loaded, device), _preparation(loaded)
    category_ids = category_ids_of(loaded)
    pictures = Pictures(Path(options.output))
    results: list[dict[str, Any]] = []

    def predict(opened: Sequence[tuple[str, Image.Image]]) -> Iterator[Found]:
        for path, image in opened:
            (found,) = detect([prepare(image)], [(image.height, image.width)])
            kept = {key: value[found["scores"] >= LIKELY] for key, value in found.items()}
            picture = pictures.name_for(path)
            pictures.save(drawn(image, as_drawn(kept), info.class_names), picture)
            listed = coco_results(found, pictures.count, category_ids)
            results.extend(listed)
            write_text(pictures.folder / RESULTS, json.dumps(results) + "\n")
            yield described(path, kept, listed, info.class_names, picture)

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


def category_ids_of(loaded: Loaded) -> tuple[int, ...]:
    """What the files that a detector was trained on call its classes; 1, 2, ... if it says none."""
    from qsdformer.tasks.detection import CATEGORY_IDS

    classes = cast(Any, loaded.model.config).num_classes
    ids = loaded.extra.get(CATEGORY_IDS)
    if isinstance(ids, list) and len(ids) == classes and all(isinstance(i, int) for i in ids):
        return tuple(ids)
    return tuple(range(1, classes + 1))


def _detector(loaded: Loaded, device: torch.device) -> Detect:
    import torch

    from qsdformer.nn.exact import exact_float32
    from qsdformer.tasks.detecting import detections

    detector = cast(Any, loaded.model.eval().to(device))

    def detect(images: list[Tensor], sizes: list[tuple[int, int]]) -> list[Detections]:
        with torch.inference_mode(), exact_float32(device):
            found = detector.detect([image.to(device) for image in images], sizes)
        return [detections(one) for one in found]

    return detect


def _preparation(loaded: Loaded) -> Callable[[Image.Image], Tensor]:
    """How an image is resized, as the recipe's data section says."""
    from qsdformer.data.decoding import in_channels
    from qsdformer.data.detection.config import DetectionData
    from qsdformer.data.detection.dataset import Preparation
    from qsdformer.recipes.recipe import parse_data

    assert loaded.info is not None
    config = DetectionData(image_size=loaded.info.image_size)
    if loaded.recipe.get("data"):
        parsed = parse_data(loaded.recipe)
        assert isinstance(parsed, DetectionData)
        config = parsed
    preparation = Preparation.of(config, loaded.info)
    return lambda image: preparation(in_channels(image, preparation.channels))


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
