"""`qsd verify MODEL`."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

from qsdformer.commands.arguments import add_device_argument, add_limit, check_exported, positive
from qsdformer.commands.recipe_keys import add_recipe_keys, given_keys
from qsdformer.errors import UserError
from qsdformer.terminal import table_console

if TYPE_CHECKING:
    from torch import nn

    from qsdformer.data import DataInfo, DataModule
    from qsdformer.data.preprocessing import Preprocessing
    from qsdformer.graph.integer import IntegerGraph


REGION_IMAGES = 4  # whose regions the heads of a detector are verified on


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `qsd verify`."""
    parser.add_argument(
        "model",
        metavar="MODEL",
        help="a checkpoint of qsd train, or a .qsd file of qsd export, which needs --data.name "
        "or --data.root",
    )
    add_limit(parser, "verify")
    parser.add_argument(
        "--batch-size",
        type=positive,
        default=64,
        metavar="N",
        help="images at a time (default: 64)",
    )
    parser.add_argument(
        "--membrane-bits",
        type=int,
        choices=(16, 32),
        help="of a checkpoint: width of membrane potentials in the integer graph (default: 32)",
    )
    parser.add_argument(
        "--executor",
        action="append",
        metavar="NAME",
        help="a way of execution, such as integer; may be repeated "
        "(default: all that are installed)",
    )
    add_device_argument(parser)
    add_recipe_keys(parser, section="data")


def run(options: argparse.Namespace) -> int:
    """Print how the ways of execution compare; status 1 if a promise is broken."""
    from qsdformer.commands.exported_data import pixel_batches
    from qsdformer.commands.running import progress_bar
    from qsdformer.runtimes.verify import verify

    subject = _load(options)
    data = subject.data
    total = min(data.eval_size, options.limit or data.eval_size)
    with progress_bar() as progress:
        task = progress.add_task("verifying", total=total)
        report = verify(
            subject.model,
            pixel_batches(data, total, subject.pre, subject.task),
            data.info,
            executors=options.executor,
            on_images=lambda n: progress.advance(task, n),
            **subject.lowering,
        )
    print(f"{options.model} on {data.config.name}")
    if subject.left_out is not None:
        print(f"verified is what becomes integers: all but its {subject.left_out}")
    table_console().print(report.table())
    for name in report.missing:
        print(f"{name}: not installed")
    heads_ok = [_verify_head(name, options, subject, total) for name in subject.heads]
    return 0 if report.ok and all(heads_ok) else 1


def _verify_head(name: str, options: argparse.Namespace, subject: _Subject, total: int) -> bool:
    """Print how the executions of a head compare on the regions of the images."""
    import torch

    from qsdformer.graph.post import RegionPost
    from qsdformer.runtimes.dense import ExportedDetector
    from qsdformer.runtimes.runnable import runnable
    from qsdformer.runtimes.verify import verify
    from qsdformer.tasks.evaluation import first_images

    assert subject.graph is not None
    post = subject.graph.post
    assert isinstance(post, RegionPost)
    detector = ExportedDetector(model=runnable(subject.graph), post=post)
    batches = first_images(subject.data.val_dataloader(), min(total, REGION_IMAGES))
    counts = (detector.region_counts(cast(Any, images)) for images, _ in batches)
    regions = [torch.from_numpy(found[name]) for found in counts if name in found]
    if not regions:
        print(f"no regions reach the head {name!r}")
        return True
    model, info = subject.heads[name]
    bits: dict[str, Any] = {k: v for k, v in subject.lowering.items() if k != "multiple"}
    report = verify(model, regions, info, executors=options.executor, **bits)
    print(f"the head {name!r}, on the regions of the images")
    table_console().print(report.table())
    return report.ok


@dataclass(frozen=True, kw_only=True)
class _Subject:
    """What is verified, and the images for it; `pre` of a dense network says what it takes.

    `lowering` are options of `lower` for a checkpoint; exported files are lowered already.
    """

    model: nn.Module | IntegerGraph
    data: DataModule
    pre: Preprocessing | None
    task: str
    lowering: Mapping[str, Any] = field(default_factory=dict)
    left_out: str | None = None
    graph: IntegerGraph | None = None  # of a detector with heads for regions
    heads: Mapping[str, tuple[nn.Module | IntegerGraph, DataInfo | None]] = field(
        default_factory=dict
    )


def _load(options: argparse.Namespace) -> _Subject:
    from qsdformer.commands.exported_data import data_for
    from qsdformer.data.preprocessing import Preprocessing
    from qsdformer.devices import pick_device
    from qsdformer.graph.integer import IntegerGraph
    from qsdformer.runtimes.exported import load_exported, task_of
    from qsdformer.tasks.deployment import deployable, lowered
    from qsdformer.tasks.stored import load_with_data

    keys = given_keys(options)
    exported = load_exported(options.model)
    if exported is None:
        device = pick_device(options.device)
        loaded, data = load_with_data(options.model, keys, options.batch_size)
        found = deployable(loaded.model, loaded.info or data.info)
        bits = options.membrane_bits or 32
        graph = lowered(found, data.info, membrane_bits=bits) if found.heads else None
        return _Subject(
            model=found.part.to(device),
            data=data,
            pre=Preprocessing.of(data.info, found.multiple),
            task=loaded.task,
            lowering={"membrane_bits": bits, "multiple": found.multiple},
            left_out=found.left_out,
            graph=graph,
            heads={name: (head.part, head.info) for name, head in found.heads.items()},
        )
    if not isinstance(exported, IntegerGraph):
        raise UserError(
            f"{options.model} is an ONNX file, which has one way of execution: give the checkpoint "
            "or a .qsd file, or measure its accuracy with qsd eval"
        )
    check_exported(options.model, device=options.device, membrane_bits=options.membrane_bits)
    data = data_for(options.model, exported, keys, options.batch_size)
    return _Subject(
        model=exported,
        data=data,
        pre=exported.preprocessing,
        task=task_of(exported),
        graph=exported if exported.heads else None,
        heads={name: (head, None) for name, head in exported.heads.items()},
    )
