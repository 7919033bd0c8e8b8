"""Dense networks from configurations."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from torch import nn

from qsdformer.models.dense.base import DenseNetwork
from qsdformer.models.dense.config import DenseConfig, DetectionConfig, SegmentationConfig
from qsdformer.models.dense.detection import build_detector
from qsdformer.models.dense.segmentation import SemanticFPN

if TYPE_CHECKING:
    from qsdformer.data.base import DataInfo


def build_dense(config: DenseConfig, info: DataInfo | None = None) -> DenseNetwork:
    """The network of a dense configuration, with new weights.

    `info` says how a detector normalises its images; a segmentation network takes normalised ones.
    """
    if isinstance(config, DetectionConfig):
        network: DenseNetwork = build_detector(config, info)
    else:
        network = SemanticFPN(cast(SegmentationConfig, config))
    if config.norm == "sync":
        nn.SyncBatchNorm.convert_sync_batchnorm(network)
    return network
