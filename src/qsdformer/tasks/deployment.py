"""What of a trained network becomes integers, and what is done with the results afterwards.

Of a classifier that is all of it. Of a dense network it is the convolutional part
(`models/dense/maps.py`): the whole of a segmentation network, a RetinaNet up to the decoding of its
boxes, backbone, neck and proposal head of an R-CNN, and the backbone alone where neck and heads
compute in full precision. The box and mask heads of an R-CNN, which run once for each region, are
graphs of their own: they take the spike counts that their first neurons make of what RoIAlign
reads.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from torch import nn

from qsdformer.data import DataInfo
from qsdformer.data.sections import DataSection
from qsdformer.errors import UserError
from qsdformer.graph.integer import IntegerGraph
from qsdformer.graph.lowering import lower
from qsdformer.graph.post import Post
from qsdformer.models.dense.base import DenseNetwork


@dataclass(frozen=True, kw_only=True)
class Deployable:
    """`part` of a `network` is what `qsdformer.lower` takes; `post` what is made of its outputs.

    `heads` are the parts for single regions, by name, and `left_out` says in words what is in none
    of them, apart from post-processing. Both sides of images must be multiples of `multiple`.
    """

    network: nn.Module
    part: nn.Module
    post: Post | None = None
    left_out: str | None = None
    multiple: int = 1
    heads: Mapping[str, Head] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Head:
    """A part for single regions; `info` describes its images, which are spike counts (0..D)."""

    part: nn.Module
    info: DataInfo


def lowered(found: Deployable, info: DataInfo, *, membrane_bits: int = 32) -> IntegerGraph:
    """The integer graph of all that becomes integers, with its post-processing."""
    heads = {
        name: lower(head.part, head.info, membrane_bits=membrane_bits)
        for name, head in found.heads.items()
    }
    return lower(
        found.part,
        info,
        membrane_bits=membrane_bits,
        post=found.post,
        multiple=found.multiple,
        heads=heads,
    )


def deployable(
    network: nn.Module,
    info: DataInfo | None,
    category_ids: Sequence[int] | None = None,
    data: DataSection | None = None,
) -> Deployable:
    """The part of a trained network that becomes integers; `info` names its classes.

    `category_ids` are the numbers of a detector's classes in its data set, by default from 1 on.
    `data` says what size images had for a segmentation network, by default that of `info`.
    """
    if not isinstance(network, DenseNetwork):
        return Deployable(network=network, part=network)
    from qsdformer.tasks.dense_deployment import deployable_dense  # it needs torchvision

    return deployable_dense(network, info, category_ids, data)


def parts_beside(heads: Iterable[str], left_out: str | None = None) -> list[str]:
    """What of a network is beside its main integer graph, in words: what is counted without it."""
    parts = [left_out] if left_out else []
    return [*parts, *(f"{name} head for each region" for name in heads)]


def require_whole(found: Deployable, path: str) -> None:
    """`UserError` for a network of which an exported file would hold a part only."""
    if found.left_out is not None:
        raise UserError(
            f"{path}: its {found.left_out} cannot become integers: train it with weights of 2 to "
            "8 bits and spiking neurons in neck and heads (bits, predictor_bits, neuron: backbone)"
        )
