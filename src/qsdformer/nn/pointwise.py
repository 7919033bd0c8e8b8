"""Spike-driven attention whose q, k, v and output are plain 1x1 convolutions.

Shared by SDT v1, Spikformer and E-SpikeFormer, which differ in the core: how q, k and v become
one map. Tensors are (T*B, C, H, W); N = H*W tokens, h heads.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from qsdformer.nn.attention import SoftmaxAttention, from_heads, to_heads
from qsdformer.nn.blocks import NormRole, make_norm
from qsdformer.nn.config import NetworkConfig
from qsdformer.nn.neurons import IELIF, make_neuron
from qsdformer.nn.quantizers import QuantConv2d


class Pointwise(nn.Module):
    """A 1x1 convolution and a batch norm."""

    def __init__(
        self,
        config: NetworkConfig,
        width_in: int,
        width_out: int,
        *,
        role: NormRole,
        bias: bool = False,
    ) -> None:
        super().__init__()
        self.conv = QuantConv2d(width_in, width_out, 1, bias=bias, bits=config.weight_bits)
        self.norm = make_norm(config, width_out, role)

    def forward(self, x: Tensor) -> Tensor:
        """(T*B, C_in, H, W) to (T*B, C_out, H, W)."""
        return self.norm(self.conv(x))


class PointwiseAttention(nn.Module):
    """q, k, v by 1x1 convolutions and neurons, a core, and a 1x1 convolution.

    `core` takes q, k (T*B, C, H, W) and v (T*B, value_ratio*C, H, W) and gives a map like v; the
    norm and the neuron that follow it may be missing. In the counterpart ANN it is softmax
    attention, and q, k, v are real values; the taps `q_neuron`, `k_neuron`, `v_neuron` exist in
    both. Residual branches of spikes ("spikes") have their neuron at the end, others at the
    beginning.
    """

    q: nn.Module
    k: nn.Module
    v: nn.Module
    q_neuron: nn.Module
    k_neuron: nn.Module
    v_neuron: nn.Module

    def __init__(
        self,
        config: NetworkConfig,
        width: int,
        heads: int,
        core: nn.Module,
        *,
        norm: nn.Module | None = None,
        neuron: nn.Module | None = None,
        value_ratio: int = 1,
        qkv_bias: bool = False,
        output_bias: bool = False,
        spikes: bool = False,
    ) -> None:
        super().__init__()
        inner, spiking = width * value_ratio, config.is_spiking
        self.neuron = nn.Identity() if spikes else make_neuron(config)
        for name, wide in (("q", width), ("k", width), ("v", inner)):
            self.add_module(name, Pointwise(config, width, wide, role="qkv", bias=qkv_bias))
            self.add_module(f"{name}_neuron", make_neuron(config) if spiking else nn.Identity())
        self.core = core if spiking else SoftmaxAttention(heads)
        self.attention_norm = norm if spiking and norm is not None else nn.Identity()
        self.attention_neuron = neuron if spiking and neuron is not None else nn.Identity()
        role: NormRole = "neuron" if spikes else "branch_end"
        self.projection = Pointwise(config, inner, width, role=role, bias=output_bias)
        self.output_neuron = make_neuron(config) if spikes else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """(T*B, C, H, W) to the same shape."""
        x = self.neuron(x)
        q = self.q_neuron(self.q(x))
        k = self.k_neuron(self.k(x))
        v = self.v_neuron(self.v(x))
        attended = self.attention_neuron(self.attention_norm(self.core(q, k, v)))
        return self.output_neuron(self.projection(attended))


class MaskAttention(nn.Module):
    """SDT v1's core: where k and v coincide in any token, a channel of q passes, else it is 0.

    A neuron makes the mask g (T*B, C, 1, 1) from the coincidences, the sum of k*v over all tokens.
    As published it is a LIF neuron of threshold 1/2, which fires where there is one coincidence
    or more. With IE-LIF neurons of D levels the mask stays binary, so that q * g has no more
    than D counts: one level, which fires where the sum of k*v (values count/D) of a time step is
    1/2 or more; at D = 1 that is the published mask. `norm` puts a batch norm before it: a learned
    threshold.

    `dvs_mode` adds the max pools of the published CIFAR10-DVS network: on k and v, and on the
    (token, channel) planes of k*v and q*g.
    """

    def __init__(
        self,
        config: NetworkConfig,
        width: int,
        heads: int,
        *,
        threshold: float,
        norm: bool,
        dvs_mode: bool,
    ) -> None:
        super().__init__()
        self.heads = heads

        def pool() -> nn.Module:
            return nn.MaxPool2d(3, stride=1, padding=1) if dvs_mode else nn.Identity()

        def plane_pool() -> nn.Module:
            return PlanePool(heads) if dvs_mode else nn.Identity()

        self.k_pool, self.v_pool = pool(), pool()
        self.product_pool, self.output_pool = plane_pool(), plane_pool()
        self.mask_norm = (
            make_norm(config, width, "qkv", threshold=threshold) if norm else nn.Identity()
        )
        # Without a memory: what one time step has beyond the threshold says nothing of the next.
        binary = IELIF(1, config.time_steps, decay=0.0, surrogate=config.surrogate)
        lif = config.neuron == "lif"
        self.mask_neuron = make_neuron(config, threshold=threshold) if lif else binary

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """q, k, v (T*B, C, H, W) to the same shape."""
        products = self.product_pool(self.k_pool(k) * self.v_pool(v))
        coincidences = products.sum(dim=(2, 3), keepdim=True)
        mask = self.mask_neuron(self.mask_norm(coincidences))
        return self.output_pool(q * mask)


class PlanePool(nn.Module):
    """A 3x3 max pool, stride 1, over the (token, channel) plane of each head; a leaf to a tracer.

    It mixes neighbouring channels and neighbouring tokens in row-major order: an oddity of SDT v1
    on CIFAR10-DVS, kept for its checkpoints.
    """

    def __init__(self, heads: int) -> None:
        super().__init__()
        self.heads = heads

    def forward(self, x: Tensor) -> Tensor:
        """(T*B, C, H, W) to the same shape."""
        pooled = F.max_pool2d(to_heads(x, self.heads), 3, stride=1, padding=1)
        return from_heads(pooled, *x.shape[-2:])

    def extra_repr(self) -> str:
        """Settings shown by print(model)."""
        return f"heads={self.heads}"
