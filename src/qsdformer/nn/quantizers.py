"""Low-bit weights: learned step size quantisation (LSQ, Esser et al., ICLR 2020).

Codes are integers in [-2^(b-1), 2^(b-1) - 1], or -1, 0, 1 for "ternary", which is stored in 2 bits;
the weight is step size times code, with one step size per output channel. Rounding is half to
even, as torch.round.
"""

from __future__ import annotations

import contextlib
import math
import operator
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, Self, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from qsdformer.nn.config import MAX_BITS, MIN_BITS, TERNARY, Bits, Coding, are_bits


def code_range(bits: Coding) -> tuple[int, int]:
    """Smallest and largest code at `bits` bits, or of "ternary"."""
    if bits is None or not are_bits(bits):
        raise ValueError(
            f"bits={bits!r}: weights have {MIN_BITS} to {MAX_BITS} bits, or are {TERNARY!r}"
        )
    if isinstance(bits, str):
        return -1, 1
    return -(2 ** (bits - 1)), 2 ** (bits - 1) - 1


def initial_step_size(weight: Tensor, bits: Coding) -> Tensor:
    """Starting step size per output channel, 2 * mean|w| / sqrt(Qp); shape (out,).

    In float32 or wider: in half precision small steps would be rounded, or be none.
    """
    _, high = code_range(bits)
    wide = weight.detach().to(torch.promote_types(weight.dtype, torch.float32))
    mean = wide.abs().flatten(1).mean(1)
    return (2 * mean / math.sqrt(high)).clamp_min(torch.finfo(wide.dtype).tiny ** 0.5)


def weight_codes(weight: Tensor, step_size: Tensor, bits: Coding) -> Tensor:
    """Integer codes round(clip(w / step, Qn, Qp)), as floats; `step_size` is (out,)."""
    low, high = code_range(bits)
    return (weight / _per_channel(step_size, weight)).clamp(low, high).round()


def _per_channel(step_size: Tensor, weight: Tensor) -> Tensor:
    return step_size.view(-1, *[1] * (weight.dim() - 1))


class _LSQ(torch.autograd.Function):
    """Quantises any number of weights in one node: per-node costs dominate in small networks."""

    @staticmethod
    def forward(ctx: Any, bits: list[Coding], *tensors: Tensor) -> tuple[Tensor, ...]:
        weights = tensors[: len(bits)]
        outputs, inside, slopes = [], [], []
        for weight, step_size, b in zip(weights, tensors[len(bits) :], bits, strict=True):
            low, high = code_range(b)
            step = _per_channel(step_size, weight)
            scaled = weight / step
            clipped = scaled.clamp(low, high)
            kept = clipped == scaled
            codes = clipped.round()
            # d(step * code)/d(step): code - w/step inside the range, the clipped code outside.
            slopes.append(torch.addcmul(codes, scaled, kept, value=-1.0))
            inside.append(kept)
            outputs.append(codes.mul_(step))
        ctx.scales = [
            1.0 / math.sqrt(weight.numel() * code_range(b)[1])
            for weight, b in zip(weights, bits, strict=True)
        ]
        ctx.save_for_backward(*inside, *slopes)
        return tuple(outputs)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        saved, count = ctx.saved_tensors, len(grads)
        to_weights = [grad * kept for grad, kept in zip(grads, saved[:count], strict=True)]
        to_steps = [
            (grad * slope).flatten(1).sum(1).mul_(scale)
            for grad, slope, scale in zip(grads, saved[count:], ctx.scales, strict=True)
        ]
        return None, *to_weights, *to_steps


def lsq_quantize(weight: Tensor, step_size: Tensor, bits: Coding) -> Tensor:
    """Fake-quantised weight, step_size * code, shaped like `weight`; `step_size` is (out,).

    The gradient passes straight through the rounding for weights inside the code range, and the
    step size's gradient is scaled by 1/sqrt(numel(weight) * Qp) (LSQ, section 2.2).
    """
    return cast(tuple[Tensor, ...], _LSQ.apply([bits], weight, step_size))[0]


def straight_through_codes(weight: Tensor, step_size: Tensor, bits: Coding) -> Tensor:
    """`weight_codes`, to be multiplied by `step_size.detach()`; gradients as `lsq_quantize`'s."""
    # The difference is 0 exactly: it adds nothing to the codes, and its gradient is LSQ's.
    carrier = lsq_quantize(weight, step_size, bits) / _per_channel(step_size.detach(), weight)
    return weight_codes(weight.detach(), step_size.detach(), bits) + (carrier - carrier.detach())


class _QuantWeight(nn.Module):
    """Shared by the quantised layers: a float weight and, below 32 bits, log step sizes.

    The step size is kept as its logarithm, so that it stays positive and an optimiser step
    changes it by a proportion. A state dict without step sizes (a full-precision model's) loads:
    the step sizes then start from the loaded weight.

    Evaluation without gradients keeps the codes for the next pass, one float a weight. They are
    made anew when weight or step size has changed, has been moved or replaced, and after `train()`
    or `eval()`. After a pass with gradients none are kept until then: fused optimisers change
    weights without torch's taking note. Any other write that it does not note (in place through
    `.data` or a NumPy view, a broadcast between processes) needs an `eval()` after it.
    """

    weight: Tensor
    log_step_size: nn.Parameter | None
    coding: Bits  # as the layer was given it
    _prepared: Tensor | None = None  # set inside `quantized_together`
    _kept: _Kept | None = None  # codes of the latest evaluation
    _learns: bool = False  # there was a pass with gradients since `train()` or `eval()`

    def _init_quantizer(self, bits: Bits) -> None:
        self.coding = bits
        if bits is None:
            self.register_parameter("log_step_size", None)
        else:
            rows = self.outputs_first(self.weight)
            # On meta, where values come later, arithmetic imports torch's compiler, for seconds.
            log = rows.new_empty(len(rows)) if rows.is_meta else initial_step_size(rows, bits).log()
            self.log_step_size = nn.Parameter(log.to(self.weight.dtype))

    @property
    def bits(self) -> int | None:
        """The bits that a weight is stored in, 2 for ternary ones; None for full precision."""
        return MIN_BITS if isinstance(self.coding, str) else self.coding

    def outputs_first(self, weight: Tensor) -> Tensor:
        """A weight with the axis of output channels first, or one like that back as it was."""
        return weight

    @property
    def step_size(self) -> Tensor:
        """Step size per output channel, (out,); an error at full precision."""
        if self.log_step_size is None:
            raise ValueError("a full-precision layer has no step size")
        return self.log_step_size.exp()

    def codes(self) -> Tensor:
        """The integer weight codes as int8, shaped like the weight."""
        if self.coding is None:
            raise ValueError("a full-precision layer has no weight codes")
        with torch.no_grad():
            rows = weight_codes(self.outputs_first(self.weight), self.step_size, self.coding)
            return self.outputs_first(rows).to(torch.int8).contiguous()

    def effective_weight(self) -> Tensor:
        """The weight that the layer computes with."""
        if self.coding is None:
            return self.weight
        if self._prepared is not None:
            return self._prepared
        if not self.training and not self._needs_gradients():
            codes, step = self._codes_and_step(self.coding)
            rows = self.outputs_first(codes)
            return self.outputs_first(rows * _per_channel(step, rows))
        if not torch.compiler.is_compiling():
            self._kept, self._learns = None, True
        rows = self.outputs_first(self.weight)
        return self.outputs_first(lsq_quantize(rows, self.step_size, self.coding))

    def _codes_and_step(self, bits: Coding) -> tuple[Tensor, Tensor]:
        """What evaluation computes with: float codes, and the step size that scales their sums."""
        log = self.log_step_size
        assert log is not None
        compiling, first = torch.compiler.is_compiling(), self.outputs_first
        if self._needs_gradients():
            if not compiling:
                self._kept, self._learns = None, True
            step = self.step_size
            rows = straight_through_codes(first(self.weight), step, bits)
            return first(rows), step.detach()
        if compiling or self._learns or not _can_be_kept(self.weight, log):
            step = self.step_size.detach()
            return first(weight_codes(first(self.weight.detach()), step, bits)), step
        kept = self._kept
        if kept is None or not kept.made_from(self.weight, log):
            # Normal tensors also inside inference mode, so that later passes may save them.
            with torch.inference_mode(False), torch.no_grad():
                step = self.step_size
                codes = first(weight_codes(first(self.weight), step, bits))
            kept = _Kept.of((self.weight, log), codes, step)
            # Under a tracer results may be its stand-ins.
            self._kept = kept if type(codes) is Tensor else None
        return kept.codes, kept.step

    def _needs_gradients(self) -> bool:
        log = self.log_step_size
        trains = self.weight.requires_grad or (log is not None and log.requires_grad)
        return trains and torch.is_grad_enabled()

    def train(self, mode: bool = True) -> Self:
        """As of any module; evaluation makes its codes anew."""
        self._kept, self._learns = None, False
        return super().train(mode)

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        self._kept = None  # the copy on the old device or of the old type would only take memory
        return super()._apply(fn, recurse)

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in vars(self).items() if key != "_kept"}

    def reset_step_size(self) -> None:
        """Start the step sizes again from the present weight."""
        if self.coding is not None and self.log_step_size is not None:
            with torch.no_grad():
                rows = self.outputs_first(self.weight)
                self.log_step_size.copy_(initial_step_size(rows, self.coding).log())

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any) -> None:
        key, weight = prefix + "log_step_size", state_dict.get(prefix + "weight")
        if self.coding is not None and key not in state_dict and weight is not None:
            state_dict[key] = initial_step_size(self.outputs_first(weight), self.coding).log()
        super()._load_from_state_dict(state_dict, prefix, *args)


class _Kept(NamedTuple):
    """Codes and step size of a layer, and what tells whether they still are its own.

    The aliases keep the memory, so that no other tensor can come to lie at the same address.
    """

    tensors: tuple[Tensor, ...]
    aliases: tuple[Tensor, ...]
    states: tuple[Any, ...]
    stream: Any
    codes: Tensor
    step: Tensor

    @classmethod
    def of(cls, tensors: tuple[Tensor, ...], codes: Tensor, step: Tensor) -> _Kept:
        aliases = tuple(t.detach() for t in tensors)
        states = tuple(map(_state, tensors))
        return cls(tensors, aliases, states, _stream(tensors[0]), codes, step)

    def made_from(self, *tensors: Tensor) -> bool:
        return (
            all(map(operator.is_, self.tensors, tensors))
            and self.states == tuple(map(_state, tensors))
            and self.stream == _stream(tensors[0])
        )


def _state(x: Tensor) -> tuple[Any, ...]:
    return x._version, x.data_ptr(), x.dtype, x.device, x.shape, x.stride()


def _stream(x: Tensor) -> Any:
    """The CUDA stream in use: what is made on one is not ready on another."""
    return torch.cuda.current_stream(x.device) if x.is_cuda else None


def _can_be_kept(*tensors: Tensor) -> bool:
    """Whether changes to `tensors` show, and what is computed from them now lasts.

    Not so for tensors that stand in for the layer's own (functional calls, parametrisations,
    distributed or traced ones), for those made in inference mode, which count no versions, and
    while a trace or a CUDA graph is recorded.
    """
    return (
        all(type(t) is nn.Parameter and not t.is_inference() and not t.is_meta for t in tensors)
        and not torch.jit.is_tracing()
        and not (tensors[0].is_cuda and torch.cuda.is_current_stream_capturing())
    )


class QuantConv2d(_QuantWeight, nn.Conv2d):
    """A 2-D convolution with `bits`-bit or ternary weights, or full precision for None."""

    def __init__(self, *args: Any, bits: Bits = None, **kwargs: Any) -> None:
        nn.Conv2d.__init__(self, *args, **kwargs)
        self._init_quantizer(bits)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C_in, H, W) to (B, C_out, H', W'), or without B."""
        # In evaluation codes are summed first and scaled once: with spike values k/D, D a power
        # of two, every sum below 2^24 is exact in float32, in any order of additions.
        if self.coding is None or self.training:
            return self._conv_forward(x, self.effective_weight(), self.bias)
        codes, step = self._codes_and_step(self.coding)
        y = self._conv_forward(x, codes, None) * step.view(-1, 1, 1)
        return y if self.bias is None else y + self.bias.view(-1, 1, 1)


class QuantConvTranspose2d(_QuantWeight, nn.ConvTranspose2d):
    """A transposed 2-D convolution with `bits`-bit or ternary weights, or full precision for None.

    The weight is (C_in, C_out / groups, k, k), and each output channel has its step size; groups
    other than 1 are refused. 2x2 with stride 2 also lowers to the integer graph.
    """

    def __init__(self, *args: Any, bits: Bits = None, **kwargs: Any) -> None:
        nn.ConvTranspose2d.__init__(self, *args, **kwargs)
        if self.groups != 1:
            raise ValueError(f"groups={self.groups}: a transposed convolution has one group here")
        self._init_quantizer(bits)

    def outputs_first(self, weight: Tensor) -> Tensor:
        """(C_in, C_out, k, k) as (C_out, C_in, k, k), and back."""
        return weight.transpose(0, 1)

    def forward(self, x: Tensor, output_size: list[int] | None = None) -> Tensor:
        """(B, C_in, H, W) to (B, C_out, H', W'); at 2x2 with stride 2 to twice the size."""
        if output_size is not None:
            raise ValueError("output_size: the size follows from the kernel and the stride")
        options = (self.stride, self.padding, self.output_padding, self.groups, self.dilation)
        if self.coding is None or self.training:
            return F.conv_transpose2d(x, self.effective_weight(), self.bias, *options)  # type: ignore[arg-type]
        codes, step = self._codes_and_step(self.coding)
        y = F.conv_transpose2d(x, codes, None, *options) * step.view(-1, 1, 1)  # type: ignore[arg-type]
        return y if self.bias is None else y + self.bias.view(-1, 1, 1)


class QuantLinear(_QuantWeight, nn.Linear):
    """A linear layer with `bits`-bit or ternary weights, or full precision for None."""

    def __init__(self, *args: Any, bits: Bits = None, **kwargs: Any) -> None:
        nn.Linear.__init__(self, *args, **kwargs)
        self._init_quantizer(bits)

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) to (..., out)."""
        if self.coding is None or self.training:
            return F.linear(x, self.effective_weight(), self.bias)
        codes, step = self._codes_and_step(self.coding)
        y = F.linear(x, codes) * step
        return y if self.bias is None else y + self.bias


QuantLayer = QuantConv2d | QuantConvTranspose2d | QuantLinear


@contextlib.contextmanager
def quantized_together(layers: Sequence[QuantLayer]) -> Iterator[None]:
    """Quantise the weights of all `layers` at once for the forward pass inside the block.

    Same values and gradients as layer by layer, in less time when layers are small. Under
    torch.compile it does nothing: the compiler fuses the layers' own quantisation.
    """
    eager = not torch.compiler.is_compiling()
    # Frozen layers are in evaluation mode, and then compute from their own codes.
    chosen = [m for m in layers if eager and m.bits is not None and m.training]
    if not chosen:
        yield
        return
    logs = cast(list[Tensor], [m.log_step_size for m in chosen])
    sizes = torch.cat(logs).exp().split([log.numel() for log in logs])
    rows = [m.outputs_first(m.weight) for m in chosen]
    weights = _LSQ.apply([m.coding for m in chosen], *rows, *sizes)
    for layer, weight in zip(chosen, cast(tuple[Tensor, ...], weights), strict=True):
        layer._prepared = layer.outputs_first(weight)
        layer._kept = None  # of an evaluation before: room for the step
    try:
        yield
    finally:
        for layer in chosen:
            layer._prepared = None


def quantized_layers(model: nn.Module) -> dict[str, QuantLayer]:
    """The convolutions and linear layers of `model` by name, in order of definition."""
    return {n: m for n, m in model.named_modules() if isinstance(m, QuantLayer)}
