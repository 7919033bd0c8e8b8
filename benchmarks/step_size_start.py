"""An untrained network of a recipe whose weights' step sizes start otherwise, as a checkpoint.

    python benchmarks/step_size_start.py cifar10-spikformer-tiny --start least-error --seed 0 \
        --checkpoint start.ckpt

Weights are those that `qsd train RECIPE --seed 0` begins with. With --start least-error each
output channel's step size is the one, of 200, whose codes are closest to its weights in the mean
square; with a number it is that many times LSQ's own. Training then goes on with `--start_from
start.ckpt`. Prints the error of each start as a share of the weights' mean square, and with
--trained last.ckpt how far training has led from it.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch import Tensor

from qsdformer.errors import UserError
from qsdformer.models.base import SpikingTransformer
from qsdformer.models.building import build
from qsdformer.models.checkpoint import load_checkpoint, save_checkpoint
from qsdformer.nn.config import Coding
from qsdformer.nn.quantizers import code_range, quantized_layers, weight_codes
from qsdformer.recipes.recipe import load_recipe

LEAST_ERROR = "least-error"
CANDIDATES = 200
CLASSES = 10


def square_error(rows: Tensor, step_size: Tensor, bits: Coding) -> Tensor:
    """Mean square of step size times code less weight, (out,), of weights (out, in)."""
    return (weight_codes(rows, step_size, bits) * step_size[:, None] - rows).square().mean(1)


def least_error_step_size(rows: Tensor, bits: Coding) -> Tensor:
    """The step size of each channel, (out,), with the least square error of those tried.

    They lie evenly between none and that which has the largest weight as the last code below it.
    """
    largest = rows.abs().amax(1) / max(1, code_range(bits)[1])
    tried = torch.arange(1, CANDIDATES + 1)[:, None] / CANDIDATES * largest
    errors = torch.stack([square_error(rows, step_size, bits) for step_size in tried])
    return tried.gather(0, errors.argmin(0, keepdim=True))[0]


@torch.no_grad()
def restart(model: SpikingTransformer, start: str) -> tuple[float, float]:
    """Give all step sizes of `model` another start; the error before and after, as shares."""
    before, after, total = 0.0, 0.0, 0.0
    for layer in quantized_layers(model).values():
        bits, log = layer.coding, layer.log_step_size
        if bits is None or log is None:
            continue
        rows = layer.outputs_first(layer.weight).flatten(1)
        own = layer.step_size
        chosen = least_error_step_size(rows, bits) if start == LEAST_ERROR else own * float(start)
        log.copy_(chosen.log())
        before += float(square_error(rows, own, bits).sum()) * rows.shape[1]
        after += float(square_error(rows, chosen, bits).sum()) * rows.shape[1]
        total += float(rows.square().sum())
    return before / total, after / total


@torch.no_grad()
def way(begun: SpikingTransformer, trained: SpikingTransformer) -> str:
    """How step sizes and weights have changed, smallest to largest of the layers with weight_bits.

    Of step sizes the median of a layer's ratios, of weights the ratio of root mean squares, of
    codes the share that is the first or last of their range.
    """
    steps, weights, ends = [], [], []
    for name, layer in quantized_layers(begun).items():
        after, bits = quantized_layers(trained)[name], layer.coding
        if bits is None or bits != begun.config.weight_bits:
            continue
        steps.append(float((after.step_size / layer.step_size).median()))
        weights.append(float(after.weight.norm() / layer.weight.norm()))
        first, last = code_range(bits)
        codes = after.codes()
        ends.append(100 * float(((codes == first) | (codes == last)).float().mean()))
    return (
        f"step sizes {min(steps):.2f} to {max(steps):.2f} times as large, weights "
        f"{min(weights):.1f} to {max(weights):.1f} times, codes at the ends of their range "
        f"{min(ends):.0f} to {max(ends):.0f} %"
    )


def main() -> None:
    """Parse arguments, build the network and write it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("recipe", metavar="RECIPE")
    parser.add_argument("--start", required=True, help=f"{LEAST_ERROR}, or a factor")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--weight_bits", metavar="BITS", help="in place of the recipe's")
    parser.add_argument("--checkpoint", type=Path, required=True, metavar="FILE")
    parser.add_argument("--trained", type=Path, metavar="CKPT", help="what training made of it")
    options = parser.parse_args()
    if options.start != LEAST_ERROR:
        try:
            above = float(options.start) > 0
        except ValueError:
            above = False
        if not above:
            parser.error(f"--start {options.start}: must be {LEAST_ERROR} or a number above 0")
    try:
        bits = options.weight_bits
        recipe = load_recipe(options.recipe, {} if bits is None else {"weight_bits": bits})
        config = recipe.model.config(in_channels=3, num_classes=CLASSES)
        torch.manual_seed(options.seed)
        model = build(config)
        before, after = restart(model, options.start)
        save_checkpoint(options.checkpoint, model)
        trained = None if options.trained is None else load_checkpoint(options.trained).model
    except UserError as error:
        parser.exit(2, f"error: {error}\n")
    print(f"square error of the weights: {before:.2%} with LSQ's step sizes, {after:.2%} here")
    print(options.checkpoint)
    if trained is not None:
        print(f"after training: {way(model, trained)}")


if __name__ == "__main__":
    main()
