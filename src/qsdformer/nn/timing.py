"""Where time steps begin and end in a network.

Legend: T time steps, B batch. Tensors between layers have T folded into the batch, (T*B, ...),
time slowest. Images are still, (B, C, H, W), and shown at every time step, or one frame a time
step, (T, B, C, H, W).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from qsdformer.errors import UserError


def repeated(x: Tensor, steps: int) -> Tensor:
    """(B, ...) to (T*B, ...), of the memory format of `x`, which `Tensor.repeat` would not keep."""
    return torch.cat([x] * steps) if steps > 1 else x


class TimeInput(nn.Module):
    """Checks images and folds the time axis of frames into the batch.

    Still images pass as they are where `repeat` is False, for a `TimeRepeat` behind the first
    layer; else they are repeated here. `channels` None takes any number of them; `smallest` is
    the least height and width.
    """

    def __init__(
        self,
        steps: int = 1,
        channels: int | None = None,
        smallest: int = 1,
        *,
        repeat: bool = True,
    ) -> None:
        super().__init__()
        self.steps = steps
        self.channels = channels
        self.smallest = smallest
        self.repeat = repeat

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, C, H, W) or (T, B, C, H, W) to (B, C, H, W) or (T*B, C, H, W).

        Raises `UserError` for images of another shape.
        """
        steps, shape = self.steps, tuple(images.shape)
        wrong = self.channels is not None and len(shape) > 2 and shape[-3] != self.channels
        if images.dim() not in (4, 5) or wrong:
            channels = "C" if self.channels is None else self.channels
            raise UserError(
                f"images of shape {shape}: this model takes (B, {channels}, H, W)"
                + (f" or ({steps}, B, {channels}, H, W)" if steps > 1 else "")
            )
        if min(shape[-2:]) < self.smallest:
            raise UserError(
                f"images of {shape[-2]}x{shape[-1]} pixels: this model needs "
                f"{self.smallest} or more"
            )
        if images.dim() == 5:
            if shape[0] != steps:
                raise UserError(f"images with {shape[0]} frames: this model has {steps} time steps")
            return images.flatten(0, 1)
        return repeated(images, steps) if self.repeat else images

    def extra_repr(self) -> str:
        """Settings shown by print(model)."""
        return f"steps={self.steps}, channels={self.channels}, repeat={self.repeat}"


class TimeRepeat(nn.Module):
    """Repeats what a layer made of still images, so that they pass that layer once."""

    def __init__(self, steps: int) -> None:
        super().__init__()
        self.steps = steps

    def forward(self, x: Tensor, images: Tensor) -> Tensor:
        """(B, ...) to (T*B, ...) for still `images`; frames (T, B, C, H, W) have made T*B."""
        return x if images.dim() == 5 else repeated(x, self.steps)

    def extra_repr(self) -> str:
        """Settings shown by print(model)."""
        return f"steps={self.steps}"


class TimeMean(nn.Module):
    """Mean over time steps."""

    def __init__(self, steps: int) -> None:
        super().__init__()
        self.steps = steps

    def forward(self, x: Tensor) -> Tensor:
        """(T*B, ...) to (B, ...)."""
        return x if self.steps == 1 else x.unflatten(0, (self.steps, -1)).mean(dim=0)

    def extra_repr(self) -> str:
        """Settings shown by print(model)."""
        return f"steps={self.steps}"
