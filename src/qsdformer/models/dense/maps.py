"""The convolutional part of a dense network, which becomes integers, and the rest on its results.

Of a segmentation network that is all of it, of a RetinaNet all but the decoding of its maps, of an
R-CNN backbone, neck and proposal head: its box and mask heads read regions that RoIAlign
interpolates in floating point between the values of the maps, and run once for each region. Where
neck and heads are ReLU or full precision, it is the backbone.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from qsdformer.models.dense.base import DenseNetwork
from qsdformer.models.dense.config import LEVELS, DenseConfig
from qsdformer.models.dense.detection import RetinaNetDetector, subsampled
from qsdformer.models.dense.heads import BOX_VALUES, by_anchor
from qsdformer.models.dense.segmentation import MASK, SemanticFPN

POOLED = LEVELS[:-1]  # maps that regions are read from


def convolutional_part(network: DenseNetwork) -> nn.Module:
    """What `qsdformer.lower` takes of a dense network: images (B, C, H, W) to tensors by name.

    The result shares the weights and the mode of `network`. Segmentation: "mask". RetinaNet:
    "classes_L" and "boxes_L" for each map L of 0, 1, 2, pool. R-CNN: "map_0", "map_1", "map_2",
    "objectness_L" and "deltas_L". With float neck and heads: "features_0", ... of the backbone.
    Images are normalised, and both sides are multiples of the coarsest stride.
    """
    config = network.config
    if not config.lowers_whole:
        part: nn.Module = BackboneMaps(network)
    elif isinstance(network, SemanticFPN):
        return network
    elif isinstance(network, RetinaNetDetector):
        part = RetinaMaps(network)
    else:
        part = ProposalMaps(network)
    return part.train(network.training)


class BackboneMaps(nn.Module):
    """The backbone's maps by name; it has the path that it has in the network."""

    config: DenseConfig

    def __init__(self, network: DenseNetwork) -> None:
        super().__init__()
        self.config = network.config
        (self.path,) = network.PARTS["backbone"]
        *parents, last = self.path.split(".")
        owner: nn.Module = self
        for name in parents:
            owner.add_module(name, nn.Module())
            owner = owner.get_submodule(name)
        owner.add_module(last, network.get_submodule(self.path))

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Images (B, C, H, W) to maps (B, C_i, H_i, W_i)."""
        return {f"features_{i}": x for i, x in enumerate(self.get_submodule(self.path)(images))}


class RetinaMaps(nn.Module):
    """Backbone, neck and heads of a RetinaNet."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.config = network.config
        self.backbone, self.head = network.backbone, network.head

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Images (B, C, H, W) to logits (B, A*K, H_i, W_i) and box changes (B, 4A, H_i, W_i)."""
        classes, boxes = self.head.maps(list(self.backbone(images).values()))
        return {**_named("classes", classes), **_named("boxes", boxes)}


class ProposalMaps(nn.Module):
    """Backbone, neck and proposal head of an R-CNN."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.config = network.config
        self.backbone, self.rpn_head = network.backbone, network.rpn.head

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Images (B, C, H, W) to the maps of regions, objectness and box changes."""
        maps = self.backbone(images)
        objectness, deltas = self.rpn_head(list(maps.values()))
        regions = {f"map_{name}": maps[name] for name in POOLED}
        return {**regions, **_named("objectness", objectness), **_named("deltas", deltas)}


class RegionBoxes(nn.Module):
    """The box head of an R-CNN: what RoIAlign reads (N, C, size, size) to scores and changes."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.config = network.config
        self.box_head = network.roi_heads.box_head
        self.box_predictor = network.roi_heads.box_predictor

    def forward(self, regions: Tensor) -> dict[str, Tensor]:
        """Logits (N, K) and box changes (N, 4K)."""
        scores, deltas = self.box_predictor(self.box_head(regions))
        return {"scores": scores, "deltas": deltas}


class RegionMasks(nn.Module):
    """The mask head of a Mask R-CNN: what RoIAlign reads (N, C, size, size) to masks."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.config = network.config
        self.mask_head = network.roi_heads.mask_head
        self.mask_predictor = network.roi_heads.mask_predictor

    def forward(self, regions: Tensor) -> dict[str, Tensor]:
        """Logits (N, K, 2 * size, 2 * size)."""
        return {"masks": self.mask_predictor(self.mask_head(regions))}


def with_maps(network: DenseNetwork, maps: Mapping[str, Tensor]) -> DenseNetwork:
    """`network` in eval mode with the results of its convolutional part given, for those images.

    A shallow copy: called with the images that `maps` were made of, it does the rest alone, which
    for detectors is decoding boxes, RoIAlign, the heads of regions and non-maximum suppression,
    in floating point.
    """
    if not network.config.lowers_whole:
        features = [maps[f"features_{i}"] for i in range(len(maps))]
        given: dict[str, Any] = {network.PARTS["backbone"][0]: features}
    elif isinstance(network, SemanticFPN):
        given = {"backbone": None, "neck": None, "head": maps[MASK]}
    elif isinstance(network, RetinaNetDetector):
        classes, boxes = _listed(maps, "classes"), _listed(maps, "boxes")
        results = {
            "cls_logits": by_anchor(classes, network.config.num_classes + 1),
            "bbox_regression": by_anchor(boxes, BOX_VALUES),
        }
        # Of the maps themselves only the sizes matter, which are those of the results.
        given = {"backbone": OrderedDict(zip(LEVELS, classes, strict=True)), "head": results}
    else:
        regions = [maps[f"map_{name}"] for name in POOLED]
        pyramid = OrderedDict(zip(LEVELS, [*regions, subsampled(regions[-1])], strict=True))
        proposals = (_listed(maps, "objectness"), _listed(maps, "deltas"))
        given = {"backbone": pyramid, "rpn.head": proposals}
    return _replaced(network, given).eval()


class _Given(nn.Module):
    """A result that is known, whatever the input."""

    def __init__(self, result: Any) -> None:
        super().__init__()
        self.result = result

    def forward(self, *_: Any) -> Any:
        """The result."""
        return self.result


def _replaced(network: DenseNetwork, given: Mapping[str, Any]) -> DenseNetwork:
    """A copy that shares everything with `network` but the modules at the paths of `given`."""
    clone = _shallow(network)
    for path, result in given.items():
        *parents, last = path.split(".")
        owner: nn.Module = clone
        for name in parents:
            owner._modules[name] = _shallow(owner.get_submodule(name))
            owner = owner.get_submodule(name)
        owner._modules[last] = _Given(result)
    return clone


def _shallow(module: Any) -> Any:
    clone = copy.copy(module)
    clone._modules = dict(module._modules)
    return clone


def _listed(maps: Mapping[str, Tensor], kind: str) -> list[Tensor]:
    return [maps[f"{kind}_{name}"] for name in LEVELS]


def _named(kind: str, values: list[Tensor]) -> dict[str, Tensor]:
    return {f"{kind}_{name}": x for name, x in zip(LEVELS, values, strict=True)}
