"""What share of a dense network its backbone, neck and heads are: parameters and bytes.

Bytes are those that inference needs: weights at their bits, and 4 bytes for every other number,
which are biases, step sizes and, for each channel of a batch norm, a factor and an offset.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from qsdformer.models.dense.base import DenseNetwork
from qsdformer.nn.quantizers import QuantLayer

FULL_BYTES = 4  # of a number in fp32
NORM_NUMBERS = 2  # factor and offset, once statistics and affine part are one
TOTAL = "total"


@dataclass(frozen=True, kw_only=True)
class Share:
    """A part of a network: its parameters, and the bytes that they are at fp32 and packed."""

    part: str
    parameters: int
    full_bytes: int
    packed_bytes: int


def shares(network: DenseNetwork) -> list[Share]:
    """Backbone, neck, heads, and their total."""
    parts = [_share(part, network.part(part)) for part in network.PARTS]
    total = Share(
        part=TOTAL,
        parameters=sum(s.parameters for s in parts),
        full_bytes=sum(s.full_bytes for s in parts),
        packed_bytes=sum(s.packed_bytes for s in parts),
    )
    return [*parts, total]


def shares_table(found: Sequence[Share]) -> str:
    """A Markdown table of shares; percentages are of the last line, the total."""
    whole = found[-1]
    lines = [
        "| part | parameters | share | fp32 kB | packed kB | share |",
        "|---|---|---|---|---|---|",
    ]
    for s in found:
        of_parameters, of_bytes = (
            f"{100 * part / max(1, total):.1f} %"
            for part, total in (
                (s.parameters, whole.parameters),
                (s.packed_bytes, whole.packed_bytes),
            )
        )
        sizes = f"{s.full_bytes / 1000:.1f} | {s.packed_bytes / 1000:.1f}"
        lines.append(f"| {s.part} | {s.parameters:,} | {of_parameters} | {sizes} | {of_bytes} |")
    return "\n".join(lines)


def _share(part: str, modules: Sequence[nn.Module]) -> Share:
    parameters = packed = 0
    for module in (m for top in modules for m in top.modules()):
        own = {name: p.numel() for name, p in module.named_parameters(recurse=False)}
        # Step sizes are parameters of training; the full-precision network has none.
        parameters += sum(n for name, n in own.items() if name != "log_step_size")
        if isinstance(module, _BatchNorm):
            packed += NORM_NUMBERS * FULL_BYTES * module.num_features
        elif isinstance(module, QuantLayer) and module.bits is not None:
            packed += math.ceil(own.pop("weight") * module.bits / 8)
            packed += FULL_BYTES * sum(own.values())
        else:
            packed += FULL_BYTES * sum(own.values())
    return Share(
        part=part,
        parameters=parameters,
        full_bytes=FULL_BYTES * parameters,
        packed_bytes=packed,
    )
