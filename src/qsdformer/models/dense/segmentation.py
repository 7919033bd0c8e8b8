"""Semantic segmentation by feature pyramid (Kirillov et al., CVPR 2019), spiking or ANN.

One class for both: neurons and bits come from the configuration.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor, nn

from qsdformer.models.dense.backbone import Backbone
from qsdformer.models.dense.base import DenseNetwork
from qsdformer.models.dense.config import SEGMENTATION_MAPS, SegmentationConfig, Upsampling
from qsdformer.models.dense.layers import NeuronConv, PredictorConv
from qsdformer.models.dense.pyramid import Pyramid, summand_role
from qsdformer.nn.config import NetworkConfig
from qsdformer.nn.neurons import make_neuron

MASK = "mask"  # the name of the result


class SemanticFPN(DenseNetwork):
    """Images (B, C, H, W) to {"mask": logits (B, classes, H/s, W/s)}, s the stem's stride."""

    def __init__(self, config: SegmentationConfig) -> None:
        super().__init__()
        self.config = config
        layers, width = config.heads, config.neck_width
        self.backbone = Backbone(
            config.backbone, SEGMENTATION_MAPS, norm=config.norm, frozen_stages=config.frozen_stages
        )
        self.neck = Pyramid(layers, self.backbone.channels, width, config.upsampling)
        self.head = SemanticHead(
            layers,
            width,
            config.head_width,
            config.num_classes,
            self.backbone.strides,
            config.upsampling,
        )

    @property
    def stride(self) -> int:
        """Pixels of an image along one side of a pixel of the result."""
        return self.backbone.strides[0]

    @property
    def multiple(self) -> int:
        """What both sides of an image must be multiples of."""
        return self.backbone.strides[-1]

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Logits of every class at the stride of the finest map."""
        with self.prepared():
            return {MASK: self.head(self.neck(self.backbone(images)))}


class SemanticHead(nn.Module):
    """Each map is brought to the finest one's size; their sum, a neuron, and a 1x1 to classes.

    A map 2^n times as coarse passes n times neuron, 3x3, norm, x2; the finest one passes neuron,
    3x3, norm.
    """

    def __init__(
        self,
        config: NetworkConfig,
        width_in: int,
        width: int,
        classes: int,
        strides: Sequence[int],
        upsampling: Upsampling,
    ) -> None:
        super().__init__()
        self.paths = nn.ModuleList(
            nn.Sequential(
                *_path(config, width_in, width, int(math.log2(s / strides[0])), upsampling)
            )
            for s in strides
        )
        self.neuron = make_neuron(config)
        self.predictor = PredictorConv(config, width, classes)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Maps from fine to coarse (B, width_in, H_i, W_i) to logits (B, classes, H_0, W_0)."""
        total: Tensor | None = None
        for x, path in zip(maps, self.paths, strict=True):
            total = path(x) if total is None else total + path(x)
        return self.predictor(self.neuron(total))


def _path(
    config: NetworkConfig, width_in: int, width: int, doublings: int, upsampling: Upsampling
) -> list[nn.Module]:
    """Convolutions that bring a map to the finest one's size; its result is one of a sum."""
    convs = max(1, doublings)
    layers: list[nn.Module] = []
    for i in range(convs):
        role = "neuron" if i < convs - 1 else summand_role(config, doublings == 0)
        layers.append(NeuronConv(config, width_in if i == 0 else width, width, 3, role=role))
        if doublings:
            layers.append(nn.Upsample(scale_factor=2, mode=upsampling))
    return layers
