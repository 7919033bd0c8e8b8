"""Where time enters a network and where it leaves; between them T is folded into the batch.

Each is a leaf to a tracer: what depends on shapes is inside. Legend: T time steps, B batch.
"""

from __future__ import annotations

from torch import Tensor, nn

from qsdformer.errors import UserError


class TimeInput(nn.Module):
    """Images as one batch over all time steps: a still image at every step, or a frame a step."""

    def __init__(self, steps: int, channels: int) -> None:
        super().__init__()
        self.steps = steps
        self.channels = channels

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, H, W) or (T, B, C, H, W) to (T*B, C, H, W); `UserError` for other shapes."""
        shape, steps, channels = tuple(images.shape), self.steps, self.channels
        if images.dim() not in (4, 5) or shape[-3] != channels:
            raise UserError(
                f"images of shape {shape}: this model takes (B, {channels}, H, W)"
                + (f" or ({steps}, B, {channels}, H, W)" if steps > 1 else "")
            )
        if images.dim() == 4:
            return images if steps == 1 else images.repeat(steps, 1, 1, 1)
        if shape[0] != steps:
            raise UserError(f"images with {shape[0]} frames: this model has {steps} time steps")
        return images.flatten(0, 1)

    def extra_repr(self) -> str:
        """Settings shown by print(model)."""
        return f"steps={self.steps}, channels={self.channels}"


class TimeMean(nn.Module):
    """The mean over time steps."""

    def __init__(self, steps: int) -> None:
        super().__init__()
        self.steps = steps

    def forward(self, x: Tensor) -> Tensor:
        """(T*B, ...) to (B, ...)."""
        return x if self.steps == 1 else x.unflatten(0, (self.steps, -1)).mean(dim=0)

    def extra_repr(self) -> str:
        """Settings shown by print(model)."""
        return f"steps={self.steps}"
