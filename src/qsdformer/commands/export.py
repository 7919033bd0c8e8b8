"""`qsd export CKPT OUT`."""

from __future__ import annotations

import argparse
from pathlib import Path

from qsdformer.checkpoint import load_checkpoint
from qsdformer.deploy.artifact import export


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `qsd export`."""
    parser.add_argument("checkpoint", metavar="CKPT", help="a checkpoint of qsd train")
    parser.add_argument("out", metavar="OUT", help="the file to write, such as model.qsd")
    parser.add_argument(
        "--membrane-bits",
        type=int,
        choices=(16, 32),
        default=32,
        help="width of membrane potentials (default: 32)",
    )


def run(options: argparse.Namespace) -> int:
    """Write the packed artifact and print how much smaller it is than fp32 weights."""
    loaded = load_checkpoint(options.checkpoint)
    export(loaded.model, options.out, info=loaded.info, membrane_bits=options.membrane_bits)
    weights = sum(v.numel() * v.element_size() for v in loaded.model.state_dict().values())
    size = Path(options.out).stat().st_size
    print(
        f"{options.out}: {size:,} bytes, {weights / size:.2f} times smaller than the checkpoint's "
        f"{weights:,} bytes of fp32 weights"
    )
    return 0
