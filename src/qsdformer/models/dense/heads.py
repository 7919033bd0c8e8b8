"""Heads of detectors, with the call signatures that torchvision's R-CNNs and RetinaNet expect.

What boxes are computed from is float32, whatever precision the layers have: in half precision
coordinates beyond 256 would be whole pixels at best.

Legend: A anchors a place, K classes with the background, N regions, F features of a region. Maps
share the weights of a head, and each has its own batch norms.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torchvision.models.detection import _utils as det_utils
from torchvision.models.detection.retinanet import (
    RetinaNetClassificationHead,
    RetinaNetHead,
    RetinaNetRegressionHead,
)

from qsdformer.models.dense.config import DetectionConfig
from qsdformer.models.dense.layers import (
    NeuronConv,
    NeuronLinear,
    PredictorConv,
    PredictorLinear,
    normed,
)
from qsdformer.nn.blocks import make_norm
from qsdformer.nn.config import NetworkConfig
from qsdformer.nn.neurons import make_neuron
from qsdformer.nn.quantizers import QuantConvTranspose2d

# Share of anchors that a new RetinaNet takes for objects (Lin et al., ICCV 2017).
PRIOR_PROBABILITY = 0.01
BOX_VALUES = 4


class Tower(nn.Module):
    """Convolutions of 3x3 with their neurons, one norm for each map, and a last neuron."""

    def __init__(
        self, config: NetworkConfig, width_in: int, width: int, convs: int, levels: int
    ) -> None:
        super().__init__()
        self.convs = nn.ModuleList(
            NeuronConv(config, width_in if i == 0 else width, width, 3, levels=levels)
            for i in range(convs)
        )
        self.neuron = make_neuron(config)

    def forward(self, x: Tensor, level: int) -> Tensor:
        """(B, width_in, H, W) to (B, width, H, W)."""
        for conv in self.convs:
            x = conv(x, level)
        return self.neuron(x)


class RPNHead(nn.Module):
    """Objectness and box changes at every place of every map, for the proposals of an R-CNN."""

    def __init__(
        self, config: NetworkConfig, width_in: int, width: int, anchors: int, levels: int
    ) -> None:
        super().__init__()
        self.tower = Tower(config, width_in, width, 1, levels)
        self.objectness = PredictorConv(config, width, anchors)
        self.deltas = PredictorConv(config, width, anchors * BOX_VALUES)

    def forward(self, maps: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Maps (B, C, H_i, W_i) to objectness (B, A, H_i, W_i) and changes (B, 4A, H_i, W_i)."""
        towers = [self.tower(x, level) for level, x in enumerate(maps)]
        return (
            [self.objectness(x).float() for x in towers],
            [self.deltas(x).float() for x in towers],
        )


class BoxHead(nn.Module):
    """Two linear layers on the features of a region."""

    def __init__(self, config: NetworkConfig, width_in: int, size: int, width: int) -> None:
        super().__init__()
        self.fc1 = NeuronLinear(config, width_in * size**2, width)
        self.fc2 = NeuronLinear(config, width, width)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, size, size) to (N, F)."""
        return self.fc2(self.fc1(x.flatten(1)))


class BoxPredictor(nn.Module):
    """A neuron, then classes and box changes of a region."""

    def __init__(self, config: NetworkConfig, width: int, classes: int) -> None:
        super().__init__()
        self.neuron = make_neuron(config)
        self.scores = PredictorLinear(config, width, classes)
        self.deltas = PredictorLinear(config, width, classes * BOX_VALUES)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(N, F) to logits (N, K) and changes (N, 4K)."""
        x = self.neuron(x)
        return self.scores(x).float(), self.deltas(x).float()


class MaskHead(nn.Module):
    """Convolutions of 3x3 on the features of a region."""

    def __init__(self, config: NetworkConfig, width_in: int, width: int, convs: int) -> None:
        super().__init__()
        self.convs = nn.ModuleList(
            NeuronConv(config, width_in if i == 0 else width, width, 3) for i in range(convs)
        )

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, size, size) to (N, width, size, size)."""
        for conv in self.convs:
            x = conv(x)
        return x


class MaskPredictor(nn.Module):
    """Neuron, 2x2 transposed convolution, norm, neuron, and a 1x1 to one mask for each class."""

    def __init__(self, config: NetworkConfig, width: int, classes: int) -> None:
        super().__init__()
        self.neuron1 = make_neuron(config)
        self.up = QuantConvTranspose2d(width, width, 2, 2, bias=False, bits=config.weight_bits)
        self.norm = make_norm(config, width, "neuron")
        self.neuron2 = make_neuron(config)
        self.masks = PredictorConv(config, width, classes)

    def forward(self, x: Tensor) -> Tensor:
        """(N, width, size, size) to logits (N, K, 2*size, 2*size)."""
        x = normed(self.norm, self.up(self.neuron1(x)))
        return self.masks(self.neuron2(x)).float()


class _RetinaClasses(RetinaNetClassificationHead):
    """torchvision's focal loss on our layers."""

    def __init__(self, config: NetworkConfig, sizes: _TowerSizes, anchors: int, classes: int):
        nn.Module.__init__(self)
        self.num_classes, self.num_anchors = classes, anchors
        self.BETWEEN_THRESHOLDS = det_utils.Matcher.BETWEEN_THRESHOLDS
        self.tower = Tower(config, *sizes)
        self.predictor = PredictorConv(config, sizes[1], anchors * classes, 3)
        assert self.predictor.bias is not None
        nn.init.constant_(
            self.predictor.bias, math.log(PRIOR_PROBABILITY / (1 - PRIOR_PROBABILITY))
        )

    def maps(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Logits (B, A*K, H_i, W_i) of each map."""
        return [self.predictor(self.tower(x, level)).float() for level, x in enumerate(maps)]

    def forward(self, x: list[Tensor]) -> Tensor:
        """Logits (B, anchors of all maps, K)."""
        return by_anchor(self.maps(x), self.num_classes)


class _RetinaBoxes(RetinaNetRegressionHead):
    """torchvision's box loss on our layers."""

    def __init__(self, config: NetworkConfig, sizes: _TowerSizes, anchors: int):
        nn.Module.__init__(self)
        self.box_coder = det_utils.BoxCoder(weights=(1.0, 1.0, 1.0, 1.0))
        self._loss_type = "l1"
        self.tower = Tower(config, *sizes)
        self.predictor = PredictorConv(config, sizes[1], anchors * BOX_VALUES, 3)

    def maps(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Box changes (B, 4A, H_i, W_i) of each map."""
        return [self.predictor(self.tower(x, level)).float() for level, x in enumerate(maps)]

    def forward(self, x: list[Tensor]) -> Tensor:
        """Box changes (B, anchors of all maps, 4)."""
        return by_anchor(self.maps(x), BOX_VALUES)


_TowerSizes = tuple[int, int, int, int]  # width in, width, convolutions, maps


class RetinaHead(RetinaNetHead):
    """Classes and boxes at every place of every map, with torchvision's losses."""

    def __init__(self, config: DetectionConfig, anchors: int, classes: int, levels: int) -> None:
        nn.Module.__init__(self)
        sizes = (config.neck_width, config.head_width, config.head_convs, levels)
        self.classification_head = _RetinaClasses(config.heads, sizes, anchors, classes)
        self.regression_head = _RetinaBoxes(config.heads, sizes, anchors)

    def maps(self, maps: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Logits (B, A*K, H_i, W_i) and box changes (B, 4A, H_i, W_i) of each map."""
        return self.classification_head.maps(maps), self.regression_head.maps(maps)


def by_anchor(maps: Sequence[Tensor], values: int) -> Tensor:
    """(B, A*values, H_i, W_i) of each map to (B, anchors of all maps, values), as torchvision's."""
    found = [
        x.unflatten(1, (-1, values)).permute(0, 3, 4, 1, 2).reshape(len(x), -1, values)
        for x in maps
    ]
    return torch.cat(found, dim=1)
