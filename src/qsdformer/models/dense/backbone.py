"""A pyramid network as the backbone of a dense task: its feature maps, some of it perhaps fixed.

Legend: T time steps, B batch. Maps are means over time, (B, C_i, H / stride_i, W / stride_i).
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Self, cast

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from qsdformer.errors import UserError
from qsdformer.models.building import build
from qsdformer.models.dense.config import NormKind
from qsdformer.models.metaspikeformer import PyramidTransformer
from qsdformer.nn.config import PyramidConfig


class Backbone(nn.Module):
    """Images (B, C, H, W) to the maps of membrane potentials at `indices` of the strides.

    `strides` and `channels` say what the maps are. Sides of images must be multiples of the last
    stride. The first `frozen_stages` stages are not trained; their norms, and with norm="frozen"
    all of them, use and keep their statistics also in training mode.
    """

    def __init__(
        self,
        config: PyramidConfig,
        indices: Sequence[int],
        *,
        norm: NormKind = "batch",
        frozen_stages: int = 0,
    ) -> None:
        super().__init__()
        self.body = cast(PyramidTransformer, build(config.replace(num_classes=0)))
        self.indices = tuple(indices)
        self.body.prune_intermediate_layers(self.indices)
        maps = [self.body.feature_info[i] for i in self.indices]
        self.strides = tuple(int(cast(int, m["reduction"])) for m in maps)
        self.channels = tuple(int(cast(int, m["num_chs"])) for m in maps)
        self.norm = norm
        self.frozen_stages = frozen_stages
        for stage in self.body.stages[:frozen_stages]:
            stage.requires_grad_(False)
        self.train()  # nothing else need ever call it: a new module is in training mode already

    def forward(self, images: Tensor) -> list[Tensor]:
        """Maps from fine to coarse; `UserError` for images whose sides do not fit."""
        multiple = self.strides[-1]
        height, width = images.shape[-2:]
        if height % multiple or width % multiple:
            raise UserError(
                f"images of {height}x{width} pixels: both sides must be multiples of {multiple}, "
                "so that maps double exactly; pad or resize them"
            )
        maps = self.body.forward_intermediates(images, self.indices, intermediates_only=True)
        return cast(list[Tensor], maps)

    def train(self, mode: bool = True) -> Self:
        """As of any module, except that what is frozen stays in eval mode."""
        super().train(mode)
        for stage in self.body.stages[: self.frozen_stages]:
            stage.eval()
        if self.norm == "frozen":
            for module in self.body.modules():
                if isinstance(module, _BatchNorm):
                    module.eval()
        return self


def check_strides(strides: Sequence[int], what: str) -> None:
    """`UserError` unless strides increase from map to map, as `what` needs."""
    if any(b <= a for a, b in itertools.pairwise(strides)):
        raise UserError(
            f"feature maps at strides {', '.join(map(str, strides))}: {what} needs strides that "
            "increase from map to map; leave out a map that repeats one"
        )
