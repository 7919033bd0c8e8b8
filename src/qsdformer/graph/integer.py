"""The integer graph: what a trained spiking network is once every float has been folded away.

Only NumPy is needed here, so that an artifact runs without PyTorch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from PIL.Image import Image

from qsdformer.graph.images import pixels, top_classes
from qsdformer.graph.ops import Array, Neuron, Op, Preprocessing, Rescale, time_steps
from qsdformer.graph.reference import execute


@dataclass(frozen=True, kw_only=True)
class IntegerGraph:
    """A whole network in integers: operations in execution order; the last one gives the logits.

    `config` is the model's configuration as plain values; `membrane_bits` and
    `membrane_fraction` are the format of membrane potentials. Real logits are
    integer * `logit_scale`.
    """

    ops: tuple[Op, ...]
    preprocessing: Preprocessing
    class_names: tuple[str, ...]
    config: dict[str, Any]
    membrane_bits: int
    membrane_fraction: int

    @property
    def time_steps(self) -> int:
        """T: how many frames an image is shown for."""
        return time_steps(self.ops)

    @property
    def logit_scale(self) -> float:
        """Real value of one unit of the integer logits, a power of two."""
        return 2.0 ** -cast(Rescale, self.ops[-1]).fraction

    def neurons(self) -> Iterator[Neuron]:
        """The neurons, named as in the model."""
        return (op for op in self.ops if isinstance(op, Neuron))

    def run(self, images: Array) -> Array:
        """Integer logits (B, classes) int32 of uint8 images (B, C, H, W) or (T, B, C, H, W).

        The plain reference executor: no floating-point number is involved. Raises `UserError`
        for images of another type or shape.
        """
        return self.run_with_counts(images, collect=False)[0]

    def run_with_counts(
        self, images: Array, collect: bool = True
    ) -> tuple[Array, dict[str, Array]]:
        """`run`, and the spike counts (T*B, C, H, W) uint8 of every neuron by name."""
        return execute(self.ops, self.preprocessing, images, collect=collect)

    def logits(self, images: Array) -> Array:
        """Real logits (B, classes) float64 of uint8 images, as `run` takes them."""
        return self.run(images).astype(np.float64) * self.logit_scale

    def predict(
        self, images: Sequence[Image] | Array, top: int = 5
    ) -> list[list[tuple[str, float]]]:
        """The `top` (class name, probability) pairs of each image, likeliest first.

        `images` are Pillow images of any size and mode, or uint8 pixels (B, C, H, W).
        """
        prepared = images if isinstance(images, np.ndarray) else pixels(images, self.preprocessing)
        return top_classes(self.logits(prepared), self.class_names, top)
