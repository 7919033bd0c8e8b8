"""The network of any configuration: a classifier, or a dense network around a backbone."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from qsdformer.models.base import SpikingTransformer
from qsdformer.models.building import build
from qsdformer.models.dense.config import DenseConfig
from qsdformer.nn.config import NetworkConfig

if TYPE_CHECKING:
    from qsdformer.data import DataInfo


def build_network(
    config: NetworkConfig | DenseConfig, info: DataInfo | None = None
) -> SpikingTransformer:
    """A network with new weights; `info` is for detectors, and for a classifier's timm record.

    A dense one is to training and checkpoints what a `SpikingTransformer` is: a module with its
    configuration in `config`.
    """
    if isinstance(config, DenseConfig):
        from qsdformer.models.dense.building import build_dense  # torchvision's, for few

        return cast(SpikingTransformer, build_dense(config, info))
    return build(config, info)
