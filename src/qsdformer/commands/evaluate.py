"""`qsd eval CKPT`."""

from __future__ import annotations

import argparse
import dataclasses
import json

from qsdformer.commands.arguments import add_execution_arguments
from qsdformer.commands.recipe_keys import add_recipe_keys, given_keys
from qsdformer.data import DataModule
from qsdformer.models.base import SpikingTransformer
from qsdformer.models.checkpoint import load_checkpoint
from qsdformer.recipes.recipe import parse_data, with_keys
from qsdformer.tasks.activity import measure_activity, overall_activity
from qsdformer.tasks.evaluation import check_fits, evaluate, pick_device


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `qsd eval`."""
    parser.add_argument("checkpoint", metavar="CKPT", help="a checkpoint of qsd train")
    add_execution_arguments(parser)
    parser.add_argument("--json", action="store_true", help="print JSON (default: a line of text)")
    parser.add_argument(
        "--activity",
        action="store_true",
        help="firing rate and share of active groups of 4 channels, layer by layer (default: off)",
    )
    add_recipe_keys(parser, section="data")


def run(options: argparse.Namespace) -> int:
    """Evaluate on the dataset the checkpoint was trained with, or on the one given."""
    keys = given_keys(options)
    device = pick_device(options.device)
    loaded = load_checkpoint(options.checkpoint)
    stored = loaded.extra.get("recipe", {})
    config = parse_data(with_keys({"data": stored.get("data", {})}, keys))
    data = DataModule(config, batch_size=options.batch_size, seed=stored.get("seed", 0))
    check_fits(loaded.model.num_classes, loaded.info, data.info)
    result = evaluate(loaded.model, data.val_dataloader(), device)
    activity = _activity(loaded.model, data) if options.activity else None
    if options.json:
        values = dataclasses.asdict(result)
        if activity is not None:
            values["activity"] = activity
        print(json.dumps({"checkpoint": str(options.checkpoint), "data": config.name, **values}))
    else:
        print(
            f"{options.checkpoint} on {config.name}: top-1 {result.top1:.2%}, top-5 "
            f"{result.top5:.2%} of {result.images:,} images, {result.images_per_second:,.0f} img/s"
        )
        for name, layer in (activity or {}).items():
            print(
                f"  {name:40} firing rate {layer['firing_rate']:.3f}, "
                f"active groups {layer['active_groups']:.3f}"
            )
    return 0


def _activity(model: SpikingTransformer, data: DataModule) -> dict[str, dict[str, float]]:
    """Activity by layer over the evaluation set, and over the whole network as `all layers`."""
    layers = measure_activity(model, (images for images, _ in data.val_dataloader()))
    return {**layers, "all layers": overall_activity(layers)}
