"""`qsd import-reference PTH OUT`."""

from __future__ import annotations

import argparse
import sys
import warnings

from qsdformer.commands.arguments import image_size, positive
from qsdformer.commands.outputs import check_outputs


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `qsd import-reference`."""
    parser.add_argument(
        "source",
        metavar="PTH",
        help="a checkpoint published for QSD, SDT v1, Spikformer or E-SpikeFormer (base)",
    )
    parser.add_argument("out", metavar="OUT", help="the checkpoint to write")
    parser.add_argument(
        "--image-size",
        type=image_size,
        metavar="N",
        help="side in pixels, or height,width, of the images that the network was trained on, "
        "prepared as is usual for ImageNet, for qsd predict (default: not said in OUT)",
    )
    group = parser.add_argument_group("what tensors do not tell, asked for where it matters")
    group.add_argument(
        "--heads",
        type=positive,
        metavar="N",
        help="attention heads (default: 8 for Meta-SpikeFormer, else as the file says)",
    )
    group.add_argument(
        "--time-steps",
        type=positive,
        metavar="T",
        help="of LIF networks (default: as the file says)",
    )
    group.add_argument(
        "--pooling",
        metavar="FLAGS",
        help="SDT v1's and Spikformer's max pools, such as 1111 (default: as the file says)",
    )
    group.add_argument(
        "--dvs-mode",
        action=argparse.BooleanOptionalAction,
        help="SDT v1 of CIFAR10-DVS (default: as the file says; no for colour images)",
    )


def run(options: argparse.Namespace) -> int:
    """Convert; sizes, depth and classes come from the tensors."""
    from qsdformer.data.base import as_image_size
    from qsdformer.errors import UserError
    from qsdformer.models.checkpoint import save_checkpoint
    from qsdformer.models.published import import_reference
    from qsdformer.tasks.stored import usual_inputs

    check_outputs([options.out], [options.source])
    with warnings.catch_warnings(record=True, action="always") as notes:
        model = import_reference(
            options.source,
            heads=options.heads,
            time_steps=options.time_steps,
            pooling=options.pooling,
            dvs_mode=options.dvs_mode,
        )
    for note in notes:
        print(f"note: {note.message}", file=sys.stderr)
    config, info = model.config, None
    size = as_image_size(options.image_size)
    if size is not None:
        if config.in_channels != 3:
            raise UserError(
                f"--image-size is for colour images: {options.source} takes maps of "
                f"{config.in_channels} channels"
            )
        try:
            info = usual_inputs(size, config.num_classes)
        except ValueError as error:
            raise UserError(f"--image-size: {error}") from error
    save_checkpoint(options.out, model, info, {"imported_from": str(options.source)})
    millions = sum(p.numel() for p in model.parameters()) / 1e6
    print(
        f"{options.out}: {config.family}{config.summary()}, {config.num_classes} classes, "
        f"{millions:.1f} M parameters"
    )
    return 0
