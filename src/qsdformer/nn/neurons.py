"""Spiking neurons: LIF (binary) and IE-LIF (integer spike counts in training, binary at inference).

Legend: T time steps, B batch, D levels (virtual time steps), u membrane potential, c spike count.
Tensors between layers have T folded into the batch, (T*B, ...); neurons unfold it.

Sources: LIF as in Spike-driven Transformer (Yao et al., NeurIPS 2023); IE-LIF from Quantized
Spike-driven Transformer (Qiu et al., ICLR 2025), where training emits counts and inference emits
each count as D binary spikes.
"""

from __future__ import annotations

import math
from typing import Any, cast, get_args

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from qsdformer.errors import require
from qsdformer.nn.config import MAX_LEVELS, NetworkConfig, Rounding, Surrogate

# Decay of the IE-LIF gradient per unit of membrane potential outside the firing window (0, 1).
OUTSIDE_DECAY = 4.0
# Steepness of LIF's sigmoid surrogate gradient, per unit of membrane potential.
SIGMOID_STEEPNESS = 4.0


def spike_count(u: Tensor, levels: int, window: float = 1.0, rounding: Rounding = "up") -> Tensor:
    """Spike counts, as floats holding integers in 0..D: D*u/window clipped to 0..D and rounded.

    Halves are rounded "up", floor(x + 1/2), or to the "even" neighbour. `window` is the membrane
    potential of the largest count: 1, or D where potentials are in units of counts.
    Computed in float32 or wider, so that the counts of half-precision potentials are those of
    their values; up to `MAX_LEVELS` every count is a number of bfloat16 too.
    """
    wide = u.to(torch.promote_types(u.dtype, torch.float32))
    scaled = torch.mul(wide, levels / window).clamp_(0, levels)
    counts = scaled.round_() if rounding == "even" else scaled.add_(0.5).floor_()
    return counts.to(u.dtype)


def counts_to_spikes(counts: Tensor, levels: int) -> Tensor:
    """Counts (...) to binary spikes (D, ...) in thermometer order: s_d = 1[c > d]."""
    steps = torch.arange(levels, device=counts.device, dtype=counts.dtype)
    return (counts.unsqueeze(0) > steps.view(-1, *[1] * counts.dim())).to(counts.dtype)


def spikes_to_counts(spikes: Tensor) -> Tensor:
    """Binary spikes (D, ...) to counts (...): their sum over virtual time."""
    return spikes.sum(dim=0)


class _CountActivation(torch.autograd.Function):
    """c / D forward; straight-through backward, 1 inside the firing window."""

    @staticmethod
    def forward(
        ctx: Any, u: Tensor, levels: int, decaying: bool, window: float, rounding: Rounding
    ) -> Tensor:
        ctx.save_for_backward(u)
        ctx.decaying, ctx.window = decaying, window
        return spike_count(u, levels, window, rounding).mul_(1.0 / levels)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (u,) = ctx.saved_tensors
        window = ctx.window
        grad = grad if window == 1.0 else grad / window
        if ctx.decaying:
            distance = torch.sub(u, u.clamp(0.0, window)).abs_()
            slope = distance.mul_(-OUTSIDE_DECAY / window).exp_()
            return grad * slope, None, None, None, None
        # The window 0 < u < 1 is that of a hard tanh; one fused kernel.
        slope = torch.ops.aten.hardtanh_backward(grad, u, 0.0, window)
        return slope, None, None, None, None


def count_activation(
    u: Tensor,
    levels: int,
    surrogate: str = "exp",
    window: float = 1.0,
    rounding: Rounding = "up",
) -> Tensor:
    """The stateless IE-LIF: `spike_count(u) / D` with a straight-through gradient.

    The gradient is 1/window for 0 < u < window. Outside it is that times
    exp(-4 * distance / window) for the surrogate "exp", and 0 for "rect" (the publication's).
    """
    decaying = surrogate == "exp"
    return cast(Tensor, _CountActivation.apply(u, levels, decaying, window, rounding))


def ielif_step(
    x: Tensor,
    v: Tensor | None,
    levels: int,
    decay: float,
    surrogate: str = "exp",
    window: float = 1.0,
    rounding: Rounding = "up",
) -> tuple[Tensor, Tensor]:
    """One IE-LIF time step with soft reset: h = decay*v + x, value = count(h)/D, v' = h - value.

    Returns the value c/D and the next membrane potential, both shaped like `x`. In general
    v' = h - window * value.
    """
    h = x if v is None else decay * v + x
    value = count_activation(h, levels, surrogate, window, rounding)
    return value, h - (value if window == 1.0 else value * window)


class _LIFSteps(torch.autograd.Function):
    """LIF over all time steps in one node, which keeps potentials and spikes for its gradient."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, v: Tensor | None, tau: float, threshold: float
    ) -> tuple[Tensor, Tensor]:
        # Written in place: stacking what the steps give would copy all of it once more.
        potentials, spikes = torch.empty_like(x), torch.empty_like(x)
        for x_t, h, s in zip(x.unbind(0), potentials.unbind(0), spikes.unbind(0), strict=True):
            if v is None:
                torch.div(x_t, tau, out=h)
            else:
                torch.sub(x_t, v, out=h).div_(tau).add_(v)
            s.copy_(h).ge_(threshold)  # in floats: several times as fast as by way of bool
            v = torch.addcmul(h, h, s, value=-1)  # h*(1 - s)
        assert v is not None
        ctx.save_for_backward(spikes, potentials)
        ctx.tau, ctx.threshold = tau, threshold
        return spikes, v

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, grad_v: Tensor) -> tuple[Tensor | None, ...]:
        spikes, potentials = ctx.saved_tensors
        to_x, to_v = torch.empty_like(potentials), grad_v
        backwards = (x.unbind(0)[::-1] for x in (potentials, spikes, grad, to_x))
        for h, s, g, to_x_t in zip(*backwards, strict=True):
            sigmoid = torch.sub(h, ctx.threshold).mul_(SIGMOID_STEEPNESS).sigmoid_()
            to_h = torch.ops.aten.sigmoid_backward(g, sigmoid).mul_(SIGMOID_STEEPNESS)
            to_h.add_(to_v).addcmul_(to_v, s, value=-1)
            torch.div(to_h, ctx.tau, out=to_x_t)
            to_v = to_h.sub_(to_x_t)
        return to_x, to_v if ctx.needs_input_grad[1] else None, None, None


def lif_steps(x: Tensor, v: Tensor | None, tau: float, threshold: float) -> tuple[Tensor, Tensor]:
    """LIF over the time steps of `x`, (T, ...), from potential `v`; None is at rest.

    A step is h = v + (x - v)/tau, s = 1[h >= threshold], v' = h*(1 - s): hard reset to 0, through
    which no gradient flows. Returns the spikes (T, ...), whose gradient is the derivative of a
    sigmoid, and the potential after the last step.
    """
    return cast(tuple[Tensor, Tensor], _LIFSteps.apply(x, v, tau, threshold))


class SpikingNeuron(nn.Module):
    """What every spiking neuron has: T time steps in, values count * step out.

    `step` is the value of one spike, so the count behind an output is `output / step`; `levels`
    is the largest count. Input and output are (T*B, ...).
    """

    def __init__(self, levels: int, time_steps: int, gain: float = 1.0) -> None:
        super().__init__()
        self.levels = levels
        self.time_steps = time_steps
        self.gain = gain
        require(self, "levels", 1 <= levels <= MAX_LEVELS, f"1 to {MAX_LEVELS}")
        require(self, "time_steps", time_steps >= 1, "1 or more")

    @property
    def step(self) -> float:
        """Value of one spike at the output."""
        return self.gain / self.levels

    def counts(self, output: Tensor) -> Tensor:
        """Integer spike counts behind this neuron's output (exact, as int64)."""
        # float32 is enough: counts are small whole numbers, and rounded.
        return (output.detach().float() / self.step).round_().long()

    def forward(self, x: Tensor) -> Tensor:
        """Spike values for membrane input `x`, (T*B, ...), of its type.

        Potentials over several time steps are summed in float32 at least.
        """
        half = x.dtype in (torch.bfloat16, torch.float16)
        values = self._run(x.float() if half and self.time_steps > 1 else x).to(x.dtype)
        return values if self.gain == 1.0 else values * self.gain

    def _run(self, x: Tensor) -> Tensor:
        if self.time_steps == 1:
            return self._step(x, None)[0]
        v: Tensor | None = None
        values = []
        for x_t in self._unfolded(x).unbind(0):
            value, v = self._step(x_t, v)
            values.append(value)
        return torch.cat(values)

    def _unfolded(self, x: Tensor) -> Tensor:
        """(T*B, ...) as (T, B, ...)."""
        if x.shape[0] % self.time_steps:
            raise ValueError(
                f"batch of {x.shape[0]} is not a multiple of time_steps={self.time_steps}"
            )
        return x.unflatten(0, (self.time_steps, -1))

    def _step(self, x: Tensor, v: Tensor | None) -> tuple[Tensor, Tensor]:
        raise NotImplementedError


class IELIF(SpikingNeuron):
    """Information-enhanced LIF: emits count/D per time step (paper, eq. for the lower level)."""

    def __init__(
        self,
        levels: int = 4,
        time_steps: int = 1,
        decay: float = 0.25,
        surrogate: str = "exp",
        gain: float = 1.0,
        window: float = 1.0,
        rounding: Rounding = "up",
    ) -> None:
        super().__init__(levels, time_steps, gain)
        self.decay = decay
        self.surrogate = surrogate
        self.window = window
        self.rounding: Rounding = rounding
        require(self, "decay", 0 <= decay <= 1, "in [0, 1]")
        require(self, "surrogate", surrogate in get_args(Surrogate), "exp or rect")
        require(self, "rounding", rounding in get_args(Rounding), "up or even")
        require(self, "window", window > 0, "above 0")

    def _step(self, x: Tensor, v: Tensor | None) -> tuple[Tensor, Tensor]:
        how = (self.surrogate, self.window, self.rounding)
        if self.time_steps == 1:
            return count_activation(x, self.levels, *how), x
        return ielif_step(x, v, self.levels, self.decay, *how)

    def extra_repr(self) -> str:
        """Settings shown by print(model)."""
        text = f"levels={self.levels}, time_steps={self.time_steps}, decay={self.decay}"
        if (self.window, self.rounding) != (1.0, "up"):
            text += f", window={self.window}, rounding={self.rounding}"
        return text


class LIF(SpikingNeuron):
    """Leaky integrate-and-fire with hard reset: binary spikes, one per time step at most."""

    def __init__(
        self, time_steps: int = 4, tau: float = 2.0, threshold: float = 1.0, gain: float = 1.0
    ) -> None:
        super().__init__(1, time_steps, gain)
        self.tau = tau
        self.threshold = threshold
        require(self, "tau", tau >= 1, "at least 1 time step")
        require(self, "threshold", threshold > 0, "above 0")

    def _run(self, x: Tensor) -> Tensor:
        return lif_steps(self._unfolded(x), None, self.tau, self.threshold)[0].flatten(0, 1)

    def _step(self, x: Tensor, v: Tensor | None) -> tuple[Tensor, Tensor]:
        spikes, v = lif_steps(x.unsqueeze(0), v, self.tau, self.threshold)
        return spikes[0], v

    def extra_repr(self) -> str:
        """Settings shown by print(model)."""
        return f"time_steps={self.time_steps}, tau={self.tau}, threshold={self.threshold}"


def firing_rate(spikes: float, neurons: float, levels: int) -> float:
    """Mean of the binary spikes of so many neurons per virtual step: spikes / (neurons * D).

    A neuron counts once for each image and time step in which it gave a count.
    """
    return spikes / max(1.0, neurons * levels)


def make_neuron(
    config: NetworkConfig, gain: float = 1.0, threshold: float | None = None
) -> nn.Module:
    """The neuron that `config` asks for; ReLU or GELU for the counterpart ANN.

    `threshold` is for a LIF neuron whose threshold is not the configuration's.
    """
    if config.neuron == "ielif":
        return IELIF(
            config.levels,
            config.time_steps,
            config.decay,
            config.surrogate,
            gain,
            config.window,
            config.rounding,
        )
    if config.neuron == "lif":
        return LIF(config.time_steps, config.tau, threshold or config.threshold, gain)
    return nn.ReLU() if config.neuron == "relu" else nn.GELU()


def firing_window(config: NetworkConfig, threshold: float | None = None) -> tuple[float, float]:
    """Mean and standard deviation of a membrane potential centred in the firing window.

    IE-LIF fires between 0 and its `window`. A normal distribution of mean 1/2 and deviation 0.3
    of it spreads nearly evenly over the counts 0..4. For LIF the middle is the threshold that a
    constant input must reach: `threshold`, the configuration's unless given, is the level at
    which it fires within a few steps.
    """
    if config.neuron == "lif":
        threshold = threshold or config.threshold
        return threshold, threshold / math.sqrt(2)
    return 0.5 * config.window, 0.3 * config.window
