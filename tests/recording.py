"""A callback that notes what a run does, and can end it as Ctrl-C would."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Callback


class Record(Callback):
    """Notes the loss of every step and stops, as Ctrl-C would, at `interrupt_at`."""

    def __init__(self, interrupt_at: int = -1) -> None:
        self.losses: dict[int, float] = {}
        self.interrupt_at = interrupt_at

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, *args: Any) -> None:
        self.losses[trainer.global_step] = outputs["loss"].item()
        if trainer.global_step == self.interrupt_at:
            raise KeyboardInterrupt
