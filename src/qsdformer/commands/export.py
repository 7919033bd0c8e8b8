"""`qsd export CKPT OUT`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from qsdformer.commands.arguments import image_size
from qsdformer.commands.outputs import beside, check_outputs
from qsdformer.commands.recipe_keys import add_recipe_keys, given_keys
from qsdformer.errors import UserError
from qsdformer.runtimes.sessions import PACKAGES

if TYPE_CHECKING:
    from qsdformer.graph.integer import IntegerGraph
    from qsdformer.models.checkpoint import Loaded
    from qsdformer.runtimes.sessions import Arrangement


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `qsd export`."""
    parser.add_argument(
        "checkpoint", metavar="CKPT", help="a checkpoint of qsd train; for ONNX also a .qsd file"
    )
    parser.add_argument("out", metavar="OUT", help="the file to write, such as model.qsd")
    parser.add_argument(
        "--format",
        choices=("qsd", "onnx"),
        help="qsd: packed artifact; onnx: for ONNX Runtime and OpenVINO "
        "(default: by the suffix of OUT, else qsd)",
    )
    parser.add_argument(
        "--runtime",
        choices=PACKAGES,
        help="with onnx: the runtime in which the file is fast; it is right in both "
        "(default: onnxruntime)",
    )
    parser.add_argument(
        "--image-size",
        type=image_size,
        metavar="N",
        help="side of the images in pixels, or height,width (default: that of training)",
    )
    parser.add_argument(
        "--membrane-bits",
        type=int,
        choices=(16, 32),
        help="with qsd: width of membrane potentials (default: 32)",
    )
    add_recipe_keys(parser, section="data")


def run(options: argparse.Namespace) -> int:
    """Write the file and print how much smaller it is than fp32 weights."""
    from qsdformer.graph.artifact import export, is_artifact
    from qsdformer.models.checkpoint import load_checkpoint

    is_onnx = (options.format or Path(options.out).suffix[1:]) == "onnx"
    if is_onnx and options.membrane_bits is not None:
        raise UserError("--membrane-bits is for .qsd files; the membranes of ONNX are float32")
    if not is_onnx and options.runtime is not None:
        raise UserError("--runtime is for ONNX files: give --format onnx, or leave it out")
    check_outputs([options.out], [options.checkpoint])
    files = [Path(options.out)]
    weights = None  # bytes in fp32; of an artifact not known
    if is_onnx and is_artifact(options.checkpoint):
        graph = _stored(options)
    else:
        loaded = load_checkpoint(options.checkpoint)
        graph = _lowered(loaded, options, options.membrane_bits or 32)
        weights = sum(v.numel() * v.element_size() for v in loaded.model.state_dict().values())
    if is_onnx:
        files = _write_onnx(graph, options.out, options.runtime or PACKAGES[0])
    else:
        export(graph, options.out)
    if options.format is None and Path(options.out).suffix not in (".qsd", ".onnx"):
        note = "is written as a .qsd file; --format says it, or makes an ONNX file"
        print(f"note: {options.out} {note}", file=sys.stderr)
    others = f" with {' and '.join(str(f) for f in files[:-1])} beside it" if files[:-1] else ""
    size = sum(file.stat().st_size for file in files)
    text = f"{size:,} bytes" if size else "written"  # a device or pipe has no size
    if weights is None:
        text += f", made of {options.checkpoint}"
    else:
        text += f", {weights / size:.2f} times smaller than" if size else ", for"
        text += f" the checkpoint's {weights:,} bytes of fp32 weights"
    print(f"{options.out}{others}: {text}", file=beside(options.out))
    return 0


def _stored(options: argparse.Namespace) -> IntegerGraph:
    """The graph of an artifact, which says itself what its images are."""
    from qsdformer.graph.artifact import load_artifact

    if options.image_size is not None or given_keys(options):
        raise UserError(f"{options.checkpoint} says what its images are: leave out options on them")
    return load_artifact(options.checkpoint)


def _lowered(loaded: Loaded, options: argparse.Namespace, bits: int) -> IntegerGraph:
    from qsdformer.tasks.deployment import deployable, lowered, require_whole
    from qsdformer.tasks.stored import SIZE, data_section, described_inputs

    keys = given_keys(options)
    if options.image_size is not None:
        keys[SIZE] = str(options.image_size)
    info = described_inputs(loaded, options.checkpoint, keys)
    section = data_section(loaded, options.checkpoint, keys)
    found = deployable(loaded.model, info, loaded.extra.get("category_ids"), section)
    require_whole(found, options.checkpoint)
    return lowered(found, info, membrane_bits=bits)


def _write_onnx(graph: IntegerGraph, out: str, runtime: Arrangement) -> list[Path]:
    from qsdformer.runtimes.onnx_export import export_onnx

    return export_onnx(graph, out, runtime)
