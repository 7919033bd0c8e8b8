"""Meta-SpikeFormer: the backbone, its named sizes, and its place in timm.

Paper: Meta-SpikeFormer, Spike-driven Transformer V2 (Yao et al., ICLR 2024), quantised as in
QSD-Transformer (Qiu et al., ICLR 2025). Legend: T time steps, B batch.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from qsdformer.models.base import SpikingTransformer
from qsdformer.models.building import create_model as create_model
from qsdformer.models.registry import model_config as model_config
from qsdformer.nn.attention import TransformerBlock
from qsdformer.nn.blocks import ConvBlock, Downsample
from qsdformer.nn.config import ModelConfig, PyramidConfig
from qsdformer.nn.neurons import make_neuron
from qsdformer.nn.quantizers import quantized_layers, quantized_together
from qsdformer.nn.timing import TimeInput, TimeMean, TimeRepeat


class _Replay:
    """Context of a recomputation: batch norms start from, and keep, the statistics of before.

    Without it each recomputation would update the running statistics once more, and
    `border_conv`, which reads them in training, would compute another output than the first pass.
    """

    def __init__(self, block: nn.Module) -> None:
        self.norms = [m for m in block.modules() if isinstance(m, _BatchNorm)]
        self.before = [_copies(m) for m in self.norms]

    def __enter__(self) -> None:
        # Exchanged rather than written to: autograd would refuse tensors changed in place.
        self.after = [dict(m._buffers) for m in self.norms]
        for norm, buffers in zip(self.norms, self.before, strict=True):
            norm._buffers.update(buffers)

    def __exit__(self, *_: object) -> None:
        for norm, buffers in zip(self.norms, self.after, strict=True):
            norm._buffers.update(buffers)


def _recomputed(block: nn.Module, x: Tensor) -> Tensor:
    """`block(x)`, computed again in the backward pass instead of kept."""
    replay = _Replay(block)
    return checkpoint(
        block, x, use_reentrant=False, context_fn=lambda: (contextlib.nullcontext(), replay)
    )


def _copies(module: nn.Module) -> dict[str, Tensor | None]:
    return {k: None if b is None else b.clone() for k, b in module._buffers.items()}


class Stage(nn.Module):
    """A downsampling convolution and the blocks at its resolution."""

    def __init__(self, downsample: Downsample, blocks: list[nn.Module]) -> None:
        super().__init__()
        self.downsample = downsample
        self.blocks = nn.ModuleList(blocks)
        self.checkpointing = False

    def forward(self, x: Tensor, between: Callable[[Tensor], Tensor] | None = None) -> Tensor:
        """(B, C_in, H, W) to (B, C_out, H/stride, W/stride).

        `between` stands after the downsampling: the repetition of a still image.
        """
        x = self.downsample(x)
        x = x if between is None else between(x)
        recompute = self.checkpointing and torch.is_grad_enabled()
        for block in self.blocks:
            x = _recomputed(block, x) if recompute else block(x)
        return x


class PyramidTransformer(SpikingTransformer):
    """Five stages of blocks behind downsampling convolutions, their transformer blocks to choose.

    Images are (B, C, H, W), shown at every time step, or (T, B, C, H, W) with one frame a step.
    Logits are (B, classes). Stage 1 of the publication is `stages.0` (stem) and `stages.1`.
    """

    config: PyramidConfig

    def __init__(self, config: PyramidConfig) -> None:
        super().__init__(config, config.dims[-1])
        self.input = TimeInput(
            config.time_steps, config.in_channels, config.reductions[-1] // 2 + 1, repeat=False
        )
        self.repeat = TimeRepeat(config.time_steps)
        self.time_mean = TimeMean(config.time_steps)
        w = config.dims
        widths = (w[0] // 2, *w)
        deep = config.stage_depths
        rates = [config.drop_path_rate * i / (config.depth - 1) for i in range(config.depth)]

        def transformers(width: int, rates: list[float]) -> list[nn.Module]:
            return [self._transformer_block(width, rate) for rate in rates]

        blocks: list[list[nn.Module]] = [
            [ConvBlock(config, widths[0])],
            [ConvBlock(config, widths[1])],
            [ConvBlock(config, widths[2]), ConvBlock(config, widths[2])],
            transformers(widths[3], rates[: deep[0]]),
            transformers(widths[4], rates[deep[0] :]),
        ]
        strides = (config.stem_stride, 2, 2, 2, 1)
        self.stages = nn.ModuleList(
            Stage(
                Downsample(
                    config,
                    config.in_channels if i == 0 else widths[i - 1],
                    widths[i],
                    stride=strides[i],
                    stem=i == 0,
                ),
                blocks[i],
            )
            for i in range(5)
        )
        self.neuron = make_neuron(config)
        self.head = self._make_head()
        # One entry per stride; the last stride's map is the end of the last stage there.
        self.feature_stages: tuple[int, ...] = (0, 1, 2, 4)
        self.feature_info = [
            {"num_chs": widths[stage], "reduction": reduction, "module": f"stages.{stage}"}
            for stage, reduction in zip(self.feature_stages, config.reductions, strict=True)
        ]

    def _transformer_block(self, width: int, drop_path_rate: float) -> nn.Module:
        raise NotImplementedError

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, classes), the mean over time steps; without a head, features (B, C)."""
        # A recomputed block quantises its weights anew, so they must not come from outside it.
        if not self.training or self.stages[0].checkpointing:
            return self.forward_head(self.forward_features(images))
        with quantized_together(list(quantized_layers(self).values())):
            return self.forward_head(self.forward_features(images))

    def forward_features(self, images: Tensor) -> Tensor:
        """Membrane potentials after the last stage, (T*B, C, H, W)."""
        x = self._stem(images)
        for stage in self.stages[1:]:
            x = stage(x)
        return x

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Spatial mean, neuron, mean over time steps, linear head: (T*B, C, H, W) to logits."""
        x = self.time_mean(self.neuron(x.mean(dim=(2, 3))))
        return x if pre_logits else self.head(x)

    def _stem(self, images: Tensor) -> Tensor:
        """The first stage; a still image passes its convolution once and is then repeated."""
        return self.stages[0](self.input(images), lambda x: self.repeat(x, images))

    # What follows is timm's interface.

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | Sequence[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> Any:
        """Feature maps (B, C, H, W), mean over time steps, at `indices` of `feature_info`.

        Returns the maps, or (last features, maps) unless `intermediates_only`.
        """
        if output_fmt != "NCHW":
            raise ValueError(f"output_fmt={output_fmt!r}: only 'NCHW' is available")
        if norm:
            raise ValueError("norm=True: this model has no final norm to apply")
        wanted = self._feature_indices(indices)
        last = self.feature_stages[max(wanted)] if stop_early else len(self.stages) - 1
        maps = []
        for number in range(min(last, len(self.stages) - 1) + 1):
            x = self._stem(x) if number == 0 else self.stages[number](x)
            if number in self.feature_stages and self.feature_stages.index(number) in wanted:
                maps.append(self.time_mean(x))
        return maps if intermediates_only else (x, maps)

    def _feature_indices(self, indices: int | Sequence[int] | None) -> list[int]:
        count = len(self.feature_stages)
        if indices is None:
            return list(range(count))
        if isinstance(indices, int):
            if not 1 <= indices <= count:
                raise ValueError(f"the last {indices} feature maps: there are {count}")
            indices = range(count - indices, count)
        if not indices or any(not -count <= i < count for i in indices):
            raise ValueError(
                f"feature indices {list(indices)}: one or more, in {-count}..{count - 1}"
            )
        return [i % count for i in indices]

    def prune_intermediate_layers(
        self,
        indices: int | Sequence[int] = 1,
        prune_norm: bool = False,
        prune_head: bool = True,
    ) -> list[int]:
        """Drop the stages after the last wanted feature map, and the head."""
        wanted = self._feature_indices(indices)
        kept = max(wanted) + 1
        self.stages = self.stages[: self.feature_stages[kept - 1] + 1]
        self.feature_stages = self.feature_stages[:kept]
        self.feature_info = self.feature_info[:kept]
        if prune_head:
            self.reset_classifier(0)
        return wanted

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Regular expressions that sort parameters into stem and blocks, for layer-wise rates."""
        if coarse:
            return {"stem": r"^stages\.0\.downsample", "blocks": r"^stages\.(\d+)"}
        return {
            "stem": r"^stages\.0\.downsample",
            "blocks": [
                (r"^stages\.(\d+)\.downsample", (0,)),
                (r"^stages\.(\d+)\.blocks\.(\d+)", None),
            ],
        }

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Trade time for memory: recompute blocks in the backward pass."""
        for stage in self.stages:
            if isinstance(stage, Stage):
                stage.checkpointing = enable


class MetaSpikeFormer(PyramidTransformer):
    """A spike-driven vision transformer, or its counterpart ANN, built from one configuration."""

    config: ModelConfig

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)

    def _transformer_block(self, width: int, drop_path_rate: float) -> nn.Module:
        return TransformerBlock(self.config, width, drop_path_rate)
