"""Segmentation and detection with a teacher: the tokens of two backbones are compared."""

from __future__ import annotations

from typing import Any, cast

from torch import Tensor, nn

from qsdformer.models.base import SpikingTransformer
from qsdformer.models.dense.base import DenseNetwork
from qsdformer.tasks.detection import Detection
from qsdformer.tasks.distillation import Taught
from qsdformer.tasks.segmentation import Segmentation
from qsdformer.tasks.segmenting import padded


class TaughtDense(Taught):
    """The teacher, which is a backbone too, is shown just what the student's backbone was."""

    _seen: Tensor | None = None
    _watch: Any = None

    @property
    def network(self) -> DenseNetwork:
        """The student with its neck and heads."""
        return cast(DenseNetwork, cast(nn.Module, self.model))

    @property
    def student(self) -> SpikingTransformer:
        """Its backbone."""
        return self.network.body

    def blank(self) -> Tensor:
        """An image with sides that the backbone's strides divide."""
        return padded(super().blank(), self.network.body.config.reductions[-1])

    def teacher_images(self, images: Tensor) -> Tensor:
        """The batch as it came to the student's backbone."""
        assert self._seen is not None
        return self._seen

    def on_fit_start(self) -> None:
        """See from now on what comes to the student's backbone."""
        super().on_fit_start()
        around = self.network.get_submodule(self.network.PATH.rpartition(".")[0])

        def note(module: nn.Module, arguments: tuple[Any, ...]) -> None:
            if module.training and isinstance(arguments[0], Tensor):
                self._seen = arguments[0].detach()

        self._watch = around.register_forward_pre_hook(note)

    def on_fit_end(self) -> None:
        """Leave no hooks behind."""
        super().on_fit_end()
        if self._watch is not None:
            self._watch.remove()
        self._seen = self._watch = None


class TaughtSegmentation(TaughtDense, Segmentation):
    """Segmentation with a teacher."""


class TaughtDetection(TaughtDense, Detection):
    """Detection with a teacher."""
