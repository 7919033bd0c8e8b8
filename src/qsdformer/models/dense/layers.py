"""What necks and heads are made of: a neuron, a convolution or linear layer, and a batch norm.

A neuron stands before every layer with weights, predictors included. Where several maps share
weights, each map (level) has a norm of its own, since their statistics differ.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from qsdformer.data.sampling import rank_and_world
from qsdformer.nn.blocks import NormRole, make_norm
from qsdformer.nn.config import NetworkConfig
from qsdformer.nn.neurons import make_neuron
from qsdformer.nn.quantizers import QuantConv2d, QuantLinear


class NeuronConv(nn.Module):
    """Neuron, convolution (odd kernel, same size), batch norm of the level."""

    def __init__(
        self,
        config: NetworkConfig,
        width_in: int,
        width_out: int,
        kernel: int,
        *,
        role: NormRole = "neuron",
        levels: int = 1,
    ) -> None:
        super().__init__()
        self.neuron = make_neuron(config)
        self.conv = QuantConv2d(
            width_in, width_out, kernel, padding=kernel // 2, bias=False, bits=config.weight_bits
        )
        self.norms = nn.ModuleList(make_norm(config, width_out, role) for _ in range(levels))

    def forward(self, x: Tensor, level: int = 0) -> Tensor:
        """(B, C_in, H, W) to (B, C_out, H, W)."""
        return normed(self.norms[level], self.conv(self.neuron(x)))


class NeuronLinear(nn.Module):
    """Neuron, linear layer, batch norm of vectors."""

    def __init__(self, config: NetworkConfig, width_in: int, width_out: int) -> None:
        super().__init__()
        self.neuron = make_neuron(config)
        self.linear = QuantLinear(width_in, width_out, bias=False, bits=config.weight_bits)
        self.norm = make_norm(config, width_out, "neuron", vectors=True)

    def forward(self, x: Tensor) -> Tensor:
        """(N, F_in) to (N, F_out)."""
        return normed(self.norm, self.linear(self.neuron(x)))


class PredictorConv(QuantConv2d):
    """A convolution that makes logits or boxes, with a bias that starts at 0.

    Its weights start as PyTorch's do. Smaller ones (deviation 0.01, as in float detectors) kept
    spiking heads from learning at all: what reaches the layers below is that much weaker.
    """

    def __init__(
        self, config: NetworkConfig, width_in: int, width_out: int, kernel: int = 1
    ) -> None:
        super().__init__(width_in, width_out, kernel, padding=kernel // 2, bits=config.head_bits)
        assert self.bias is not None
        nn.init.zeros_(self.bias)


class PredictorLinear(QuantLinear):
    """A linear layer that makes logits or boxes, as `PredictorConv`."""

    def __init__(self, config: NetworkConfig, width_in: int, width_out: int) -> None:
        super().__init__(width_in, width_out, bits=config.head_bits)
        assert self.bias is not None
        nn.init.zeros_(self.bias)


def normed(norm: nn.Module, x: Tensor) -> Tensor:
    """`norm(x)`; by its running statistics where one value a channel has none of its own.

    A batch of one region, or of one image whose map is a pixel, occurs in training, and would be an
    error.
    """
    assert isinstance(norm, _BatchNorm)
    if norm.training and isinstance(norm, nn.SyncBatchNorm) and rank_and_world()[1] > 1:
        # All processes meet here, whatever they have, and in one type: an empty one would send its
        # own half precision where the others send float32.
        return norm(x if len(x) else x.float())
    if not norm.training or x.numel() != x.shape[1]:
        return norm(x)
    kept = (norm.running_mean, norm.running_var, norm.weight, norm.bias)
    return F.batch_norm(x, *kept, training=False, eps=norm.eps)
