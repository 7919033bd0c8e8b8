"""The neck: a feature pyramid whose sums are membrane shortcuts (Lin et al., CVPR 2017)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from qsdformer.models.dense.config import Upsampling
from qsdformer.models.dense.layers import NeuronConv
from qsdformer.nn.blocks import NormRole
from qsdformer.nn.config import NetworkConfig


def summand_role(config: NetworkConfig, first: bool) -> NormRole:
    """What a norm does whose output is one of several in a sum before a neuron.

    The first one is centred in the firing window and the others start small around 0, so that the
    sum is centred; in an ANN all weigh the same.
    """
    if not config.is_spiking:
        return "plain"
    return "neuron" if first else "branch_end"


def doubled(x: Tensor, mode: Upsampling) -> Tensor:
    """Twice the height and width; both modes are exact in integers."""
    if mode == "nearest":
        return F.interpolate(x, scale_factor=2, mode=mode)
    return F.interpolate(x, scale_factor=2, mode=mode, align_corners=False)


class Pyramid(nn.Module):
    """Maps of a backbone, each twice as fine as the next, to maps of `width` channels.

    Lateral: neuron, 1x1, norm. From coarse to fine: the doubled coarser sum is added. Then
    neuron, 3x3, norm.
    """

    def __init__(
        self,
        config: NetworkConfig,
        channels: Sequence[int],
        width: int,
        upsampling: Upsampling,
    ) -> None:
        super().__init__()
        self.upsampling = upsampling
        coarsest = len(channels) - 1
        self.lateral = nn.ModuleList(
            NeuronConv(config, c, width, 1, role=summand_role(config, i == coarsest))
            for i, c in enumerate(channels)
        )
        self.smooth = nn.ModuleList(NeuronConv(config, width, width, 3) for _ in channels)

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """(B, C_i, H_i, W_i) from fine to coarse, to (B, width, H_i, W_i)."""
        sums = [lateral(x) for lateral, x in zip(self.lateral, maps, strict=True)]
        for i in range(len(sums) - 1, 0, -1):
            sums[i - 1] = sums[i - 1] + doubled(sums[i], self.upsampling)
        return [smooth(x) for smooth, x in zip(self.smooth, sums, strict=True)]
