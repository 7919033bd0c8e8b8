"""What dense networks share: quantised weights, weight decay, groups for layer-wise rates."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, ClassVar, Literal, cast

from torch import nn

from qsdformer.models.dense.config import DenseConfig
from qsdformer.models.metaspikeformer import PyramidTransformer, Stage
from qsdformer.nn.quantizers import quantized_layers, quantized_together

Part = Literal["backbone", "neck", "heads"]


class DenseNetwork(nn.Module):
    """A network of one dense configuration; mixed into those that come from torchvision.

    `PATH` is where the pyramid network of the backbone lies in it, and `PARTS` the modules that
    its parts are; together they hold every parameter.
    """

    PATH = "backbone.body"
    PARTS: ClassVar[dict[Part, tuple[str, ...]]] = {
        "backbone": ("backbone",),
        "neck": ("neck",),
        "heads": ("head",),
    }
    config: DenseConfig

    @property
    def body(self) -> PyramidTransformer:
        """The pyramid network of the backbone."""
        return cast(PyramidTransformer, self.get_submodule(self.PATH))

    @contextlib.contextmanager
    def prepared(self) -> Iterator[None]:
        """For a forward pass inside the block: in training, all weights quantised at once."""
        # A recomputed block quantises its weights anew, so they must not come from outside it.
        if not self.training or cast(Stage, self.body.stages[0]).checkpointing:
            yield
            return
        with quantized_together(list(quantized_layers(self).values())):
            yield

    def no_weight_decay(self) -> set[str]:
        """Names of parameters that weight decay must leave alone: the step sizes."""
        return {name for name, _ in self.named_parameters() if name.endswith("log_step_size")}

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """The backbone's groups for layer-wise rates; neck and heads come after them."""
        prefix = "^" + self.PATH.replace(".", r"\.") + r"\."

        def moved(pattern: Any) -> Any:
            if isinstance(pattern, str):
                return prefix + pattern.removeprefix("^")
            return [(moved(regex), order) for regex, order in pattern]

        return {name: moved(p) for name, p in self.body.group_matcher(coarse=coarse).items()}

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Trade time for memory: recompute the backbone's blocks in the backward pass."""
        self.body.set_grad_checkpointing(enable)

    def part(self, name: Part) -> list[nn.Module]:
        """The modules that are the backbone, the neck or the heads."""
        return [self.get_submodule(path) for path in self.PARTS[name]]
