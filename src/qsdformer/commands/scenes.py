"""`qsd scenes OUT`."""

from __future__ import annotations

import argparse

from qsdformer.commands.arguments import positive


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `qsd scenes`."""
    parser.add_argument("out", metavar="OUT", help="a new folder for images, masks and COCO JSON")
    for name, default in (("train", 15000), ("val", 500)):
        parser.add_argument(
            f"--{name}",
            type=positive,
            default=default,
            metavar="N",
            help=f"scenes of the split {name} (default: {default})",
        )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="(default: 0)")
    parser.add_argument(
        "--root", metavar="FOLDER", help="where Fashion-MNIST is (default: the usual places)"
    )
    parser.add_argument(
        "--download", action="store_true", help="get Fashion-MNIST where it is missing"
    )


def run(options: argparse.Namespace) -> int:
    """Write the scenes and say how many items they have."""
    from qsdformer.commands.running import progress_bar
    from qsdformer.data.detection.scenes import write_scenes
    from qsdformer.errors import UserError

    if options.seed < 0:
        raise UserError(f"--seed {options.seed}: must be 0 or more")
    with progress_bar() as progress:
        task = progress.add_task("making scenes", total=options.train + options.val)
        items = write_scenes(
            options.out,
            train=options.train,
            val=options.val,
            seed=options.seed,
            root=options.root,
            download=options.download,
            done=lambda: progress.advance(task),
        )
    for split, scenes in (("train", options.train), ("val", options.val)):
        print(f"{options.out}/{split}: {scenes:,} scenes with {items[split]:,} items")
    return 0
