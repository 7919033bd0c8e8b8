"""Stems of max-pooled 3x3 convolutions ("spiking patch splitting") of Spikformer and SDT v1.

Sources: Spikformer (Zhou et al., ICLR 2023); Spike-driven Transformer (Yao et al., NeurIPS 2023).
Convolutions without bias: a few widen the map, as published four, to 1/8, 1/4, 1/2 and all of the
width, a max pool may follow each; the last adds a position-dependent term. `channels` are those
after each of the few. Tensors are (T*B, C, H, W).
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from qsdformer.nn.blocks import NormRole, make_norm
from qsdformer.nn.config import Bits, NetworkConfig
from qsdformer.nn.neurons import make_neuron
from qsdformer.nn.quantizers import QuantConv2d
from qsdformer.nn.timing import TimeInput, TimeRepeat


class ConvNorm(nn.Module):
    """A 3x3 convolution without bias, and a batch norm."""

    def __init__(
        self,
        config: NetworkConfig,
        width_in: int,
        width_out: int,
        *,
        bits: Bits,
        role: NormRole = "neuron",
    ) -> None:
        super().__init__()
        self.conv = QuantConv2d(width_in, width_out, 3, padding=1, bias=False, bits=bits)
        self.norm = make_norm(config, width_out, role)

    def forward(self, x: Tensor) -> Tensor:
        """(T*B, C_in, H, W) to (T*B, C_out, H, W)."""
        return self.norm(self.conv(x))


def halving_pool(on: bool) -> nn.Module:
    """The 3x3 max pool that halves a map's sides (rounded up), or nothing."""
    return nn.MaxPool2d(3, stride=2, padding=1) if on else nn.Identity()


class _PooledStem(nn.Module):
    """Steps, each a convolution, a norm and perhaps a pool; a convolution for the position.

    A still image passes the first convolution once and is then repeated.
    """

    def __init__(
        self, config: NetworkConfig, channels: Sequence[int], pooling: str, role: NormRole
    ) -> None:
        super().__init__()
        widths = (config.in_channels, *channels)
        self.input = TimeInput(config.time_steps, config.in_channels, repeat=False)
        self.repeat = TimeRepeat(config.time_steps)
        self.convs = nn.ModuleList(
            ConvNorm(
                config,
                widths[i],
                widths[i + 1],
                bits=config.stem_bits if i == 0 else config.weight_bits,
            )
            for i in range(len(channels))
        )
        self.neurons = nn.ModuleList(make_neuron(config) for _ in channels)
        self.pools = nn.ModuleList(halving_pool(flag == "1") for flag in pooling)
        self.position = ConvNorm(config, widths[-1], widths[-1], bits=config.weight_bits, role=role)

    def _steps(self, images: Tensor, count: int) -> Tensor:
        """The first `count` steps, whose pools act on the neurons' values."""
        x = self.repeat(self.convs[0](self.input(images)), images)
        x = self.pools[0](self.neurons[0](x))
        for i in range(1, count):
            x = self.pools[i](self.neurons[i](self.convs[i](x)))
        return x


class MembraneStem(_PooledStem):
    """SDT v1's stem: the last pool and the sum act on membrane potentials.

    Its output is a membrane potential too.
    """

    def __init__(self, config: NetworkConfig, channels: Sequence[int], pooling: str) -> None:
        super().__init__(config, channels, pooling, "branch_end")

    def forward(self, images: Tensor) -> Tensor:
        """(B, C_in, H, W) or (T, B, C_in, H, W) to (T*B, channels[-1], H', W').

        The sides are halved, and rounded up, by every pool.
        """
        x = self.pools[-1](self.convs[-1](self._steps(images, len(self.convs) - 1)))
        return x + self.position(self.neurons[-1](x))


class SpikeStem(_PooledStem):
    """Spikformer's stem: pools and the sum act on spike counts.

    Its output is the sum of two neurons' values, counts in 0..2D.
    """

    def __init__(self, config: NetworkConfig, channels: Sequence[int], pooling: str) -> None:
        super().__init__(config, channels, pooling, "neuron")
        self.position_neuron = make_neuron(config)

    def forward(self, images: Tensor) -> Tensor:
        """(B, C_in, H, W) or (T, B, C_in, H, W) to (T*B, channels[-1], H', W').

        The sides are halved, and rounded up, by every pool.
        """
        x = self._steps(images, len(self.convs))
        return x + self.position_neuron(self.position(x))
