"""`qsd import-reference PTH OUT`."""

from __future__ import annotations

import argparse

from qsdformer.commands.arguments import positive


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `qsd import-reference`."""
    parser.add_argument("source", metavar="PTH", help="a checkpoint published with the paper")
    parser.add_argument("out", metavar="OUT", help="the checkpoint to write")
    parser.add_argument(
        "--heads",
        type=positive,
        default=8,
        metavar="N",
        help="attention heads, which the tensors do not tell (default: 8)",
    )


def run(options: argparse.Namespace) -> int:
    """Convert; sizes, depth and classes come from the tensors."""
    from qsdformer.models.checkpoint import save_checkpoint
    from qsdformer.models.published import import_reference

    model = import_reference(options.source, heads=options.heads)
    save_checkpoint(options.out, model, extra={"imported_from": str(options.source)})
    config = model.config
    size = sum(p.numel() for p in model.parameters()) / 1e6
    print(
        f"{options.out}: dims {', '.join(map(str, config.dims))}, depth {config.depth}, "
        f"{config.num_classes} classes, {size:.1f} M parameters"
    )
    return 0
