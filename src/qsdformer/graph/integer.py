"""The integer graph: what a trained spiking network is once every float has been folded away.

Only NumPy is needed here, so that an artifact runs without PyTorch.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
from PIL.Image import Image

from qsdformer.data.preprocessing import Preprocessing, pixels
from qsdformer.errors import UserError
from qsdformer.graph.classes import top_classes
from qsdformer.graph.ops import (
    FACTOR_BITS,
    IELIF,
    LIF,
    LOGITS,
    Array,
    Frames,
    Neuron,
    Op,
    Rescale,
    time_steps,
)
from qsdformer.graph.post import Post
from qsdformer.graph.reference import checked_images, execute


@dataclass(frozen=True, kw_only=True)
class Output:
    """A result besides the logits: a name, the operation it is the value of, and its scale.

    `scale` is the real value of one unit, one number for all channels or one for each.
    """

    name: str
    op: str
    scale: tuple[float, ...]


@dataclass(frozen=True, kw_only=True, repr=False)
class IntegerGraph:
    """A whole network in integers: operations in execution order.

    With class names the last operation gives the logits; real logits are integer * `logit_scale`.
    `outputs` are further results, feature maps for instance; without class names the only ones.
    `post` says what is made of them, and `heads` are graphs for single regions of an image, by
    name: their pixels are the spike counts that their first neurons make of a region. `config` is
    the model's configuration as plain values; `membrane_bits` and `membrane_fraction` are the
    format of membrane potentials.
    """

    ops: tuple[Op, ...]
    preprocessing: Preprocessing
    class_names: tuple[str, ...]
    config: dict[str, Any]
    membrane_bits: int
    membrane_fraction: int
    outputs: tuple[Output, ...] = ()
    post: Post | None = None
    heads: dict[str, IntegerGraph] = field(default_factory=dict)

    def __repr__(self) -> str:
        """Its size; the operations themselves would fill many screens."""
        results = f"{len(self.class_names)} classes"
        if not self.class_names:
            results = f"{len(self.outputs)} outputs"
        return (
            f"<IntegerGraph: {len(self.ops)} operations, {results}, "
            f"{self.membrane_bits}-bit membranes>"
        )

    @property
    def time_steps(self) -> int:
        """T: how many frames an image is shown for."""
        return time_steps(self.ops)

    @property
    def takes_frames(self) -> bool:
        """Whether the input must have a time axis: (T, B, C, H, W), one frame a time step."""
        return any(isinstance(op, Frames) for op in self.ops)

    @property
    def logit_scale(self) -> float:
        """Real value of one unit of the integer logits, a power of two."""
        self._require_logits()
        return 2.0 ** -cast(Rescale, self.ops[-1]).fraction

    @property
    def results(self) -> tuple[Output, ...]:
        """All outputs; the logits of a classifier are the last one."""
        if not self.class_names:
            return self.outputs
        logits = Output(name=LOGITS, op=self.ops[-1].name, scale=(self.logit_scale,))
        return (*self.outputs, logits)

    @property
    def reference(self) -> IntegerGraph:
        """The graph whose `run` is the reference executor: this one."""
        return self

    def neurons(self) -> Iterator[Neuron]:
        """The neurons, named as in the model."""
        return (op for op in self.ops if isinstance(op, Neuron))

    @property
    def input_thresholds(self) -> tuple[float, ...]:
        """The real potentials from which the first neuron emits 1, 2, ... spikes."""
        neuron, one = next(self.neurons()), 2.0**self.membrane_fraction
        if isinstance(neuron, LIF):
            return (neuron.threshold * 2**FACTOR_BITS / neuron.leak / one,)
        assert isinstance(neuron, IELIF)
        return tuple(float(t) / one for t in neuron.thresholds)

    def check_images(self, images: Array) -> None:
        """`UserError` for images that `run` would not take."""
        checked_images(self.ops, self.preprocessing, images, logits=bool(self.class_names))

    def run(self, images: Array) -> Array:
        """Integer logits (B, classes) int32 of uint8 images (B, C, H, W) or (T, B, C, H, W).

        The plain reference executor: no floating-point number is involved. Raises `UserError`
        for images of another type or shape, and for a network without logits.
        """
        return self.run_with_counts(images, collect=False)[0]

    def run_with_counts(
        self, images: Array, collect: bool = True
    ) -> tuple[Array, dict[str, Array]]:
        """`run`, and the spike counts (T*B, C, H, W) uint8 of every neuron by name."""
        self._require_logits()
        last = self.ops[-1].name
        values, counts = self.run_values(images, (last,), collect=collect)
        return values[last][:, :, 0, 0], counts

    def run_outputs(self, images: Array) -> dict[str, Array]:
        """The integers of all `results` by name: int32 (T*B, C, H, W), time slowest.

        The logits of a classifier are among them as (B, classes, 1, 1).
        """
        return self.run_results(images, collect=False)[0]

    def real_outputs(self, images: Array) -> dict[str, Array]:
        """`run_outputs` as real numbers, float64."""
        return self.as_real(self.run_outputs(images))

    def as_real(self, values: Mapping[str, Array]) -> dict[str, Array]:
        """The real numbers, float64, that integers of outputs by name stand for."""
        scales = {o.name: np.array(o.scale).reshape(-1, 1, 1) for o in self.results}
        return {name: value * scales[name] for name, value in values.items()}

    def real_results(self, values: Mapping[str, Array]) -> Array | dict[str, Array]:
        """`as_real`; of a classifier its logits (B, classes) alone."""
        found = self.as_real(values)
        return found[LOGITS][:, :, 0, 0] if self.class_names else found

    def run_results(
        self, images: Array, collect: bool = True
    ) -> tuple[dict[str, Array], dict[str, Array]]:
        """`run_outputs`, and the spike counts (T*B, C, H, W) uint8 of every neuron by name."""
        names = {output.op for output in self.results}
        values, counts = self.run_values(images, names, collect=collect)
        return {output.name: values[output.op] for output in self.results}, counts

    def run_values(
        self, images: Array, names: Collection[str], *, collect: bool = False
    ) -> tuple[dict[str, Array], dict[str, Array]]:
        """The integers (T*B, C, H, W) int32 of the operations `names`, and counts by neuron."""
        logits = bool(self.class_names)
        return execute(
            self.ops, self.preprocessing, images, wanted=names, logits=logits, collect=collect
        )

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

    def _require_logits(self) -> None:
        if not self.class_names:
            names = ", ".join(output.name for output in self.outputs)
            raise UserError(f"this network has no logits; its outputs are {names}")
