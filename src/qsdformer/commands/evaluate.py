"""`qsd eval MODEL`."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING

from qsdformer.commands.arguments import (
    add_execution_arguments,
    add_limit,
    add_threads_argument,
    check_exported,
    check_task,
)
from qsdformer.commands.recipe_keys import add_recipe_keys, given_keys

if TYPE_CHECKING:
    from torch import Tensor, nn

    from qsdformer.data import DataModule
    from qsdformer.graph.integer import IntegerGraph
    from qsdformer.runtimes.onnx_predict import OnnxModel
    from qsdformer.tasks.evaluation import Evaluation

Activity = Mapping[str, Mapping[str, float]]
# Options that are for models of one task.
OF_TASK = {
    "activity": ["classification"],
    "inference": ["segmentation"],
    "results": ["detection"],
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `qsd eval`."""
    parser.add_argument(
        "model",
        metavar="MODEL",
        help="a checkpoint of qsd train, or a .qsd or .onnx file of qsd export, which needs "
        "--data.name or --data.root",
    )
    add_execution_arguments(parser)
    add_threads_argument(parser)
    add_limit(parser, "evaluate")
    parser.add_argument("--json", action="store_true", help="print JSON (default: a line of text)")
    parser.add_argument(
        "--activity",
        action="store_true",
        help="firing rate and share of active groups of 4 channels, layer by layer (default: off)",
    )
    parser.add_argument(
        "--inference",
        choices=["whole", "slide"],
        help="segmentation: whole images or windows (default: as the recipe says)",
    )
    parser.add_argument(
        "--results",
        metavar="FILE",
        help="detection: write all that is found in COCO's result format (default: nothing)",
    )
    add_recipe_keys(parser, section="data")


def run(options: argparse.Namespace) -> int:
    """Evaluate on the dataset the checkpoint was trained with, or on the one given."""
    from qsdformer.runtimes.exported import load_exported

    exported = load_exported(options.model, options.threads)
    if exported is None:
        _evaluate_checkpoint(options)
    else:
        _evaluate_exported(options, exported)
    return 0


def _evaluate_checkpoint(options: argparse.Namespace) -> None:
    import torch

    from qsdformer.commands.dense import evaluate_dense
    from qsdformer.devices import pick_device
    from qsdformer.models.checkpoint import load_checkpoint
    from qsdformer.tasks.evaluation import evaluate, first_images
    from qsdformer.tasks.stored import data_of

    keys = given_keys(options)
    device = pick_device(options.device)
    if options.threads:
        torch.set_num_threads(options.threads)
    loaded = load_checkpoint(options.model)
    check_task(options, loaded.task, OF_TASK)
    if loaded.task != "classification":
        evaluate_dense(options, loaded, device)
        return
    data = data_of(loaded, options.model, keys, options.batch_size)
    batches = first_images(data.val_dataloader(), options.limit)
    result = evaluate(loaded.model, _shown(batches, data, options), device)
    activity = _activity(loaded.model, data, options.limit) if options.activity else None
    _print(options, data, result, activity)


def _evaluate_exported(options: argparse.Namespace, model: IntegerGraph | OnnxModel) -> None:
    """The accuracy of integers, which take the pixels that the float model would normalise."""
    import torch

    from qsdformer.commands.dense import evaluate_exported
    from qsdformer.commands.exported_data import data_for, pixel_batches
    from qsdformer.commands.running import announce, in_fastest_runtime
    from qsdformer.runtimes.exported import task_of
    from qsdformer.runtimes.native_activity import NativeActivity
    from qsdformer.tasks.evaluation import evaluate_logits

    check_exported(options.model, device=options.device)
    check_task(options, task_of(model), OF_TASK)
    if model.post is not None:
        evaluate_exported(options, model)
        return
    data = data_for(options.model, model, given_keys(options), options.batch_size)
    runner = in_fastest_runtime(model, options.threads)
    counter = NativeActivity(runner) if options.activity else None
    announce(runner)

    def logits_of(pixels: Tensor) -> Tensor:
        return torch.from_numpy(runner.logits(pixels.numpy()))

    batches = _shown(pixel_batches(data, options.limit), data, options)
    result = evaluate_logits(logits_of, batches)
    _print(options, data, result, counter.shares(result.images) if counter else None)


def _shown(
    batches: Iterable[tuple[Tensor, Tensor]], data: DataModule, options: argparse.Namespace
) -> Iterator[tuple[Tensor, Tensor]]:
    from qsdformer.commands.running import with_progress

    return with_progress(
        batches, min(data.eval_size, options.limit or data.eval_size), "evaluating"
    )


def _print(
    options: argparse.Namespace, data: DataModule, result: Evaluation, activity: Activity | None
) -> None:
    name = data.config.name
    for note in data.notes:
        print(f"note: {note}", file=sys.stderr)
    if options.json:
        values = {"checkpoint": options.model, "data": name, **dataclasses.asdict(result)}
        print(json.dumps(values if activity is None else {**values, "activity": activity}))
        return
    print(
        f"{options.model} on {name}: top-1 {result.top1:.2%}, top-5 "
        f"{result.top5:.2%} of {result.images:,} images, {result.images_per_second:,.0f} img/s"
    )
    for layer, shares in (activity or {}).items():
        print(
            f"  {layer:40} firing rate {shares['firing_rate']:.3f}, "
            f"active groups {shares['active_groups']:.3f}"
        )


def _activity(model: nn.Module, data: DataModule, limit: int | None) -> Activity:
    """Activity by layer over the evaluation images, and over the whole network as `all layers`."""
    from qsdformer.tasks.activity import measure_activity, overall_activity
    from qsdformer.tasks.evaluation import first_images

    batches = first_images(data.val_dataloader(), limit)
    layers = measure_activity(model, (images for images, _ in batches))
    return {**layers, "all layers": overall_activity(layers)}
