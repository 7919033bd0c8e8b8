"""What the networks of all families are to training, checkpoints and timm."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from qsdformer.nn.config import NetworkConfig
from qsdformer.nn.quantizers import QuantLinear


class SpikingTransformer(nn.Module):
    """A network, or its counterpart ANN, built from one configuration, with a linear head.

    Images are (B, C, H, W), shown at every time step, or (T, B, C, H, W) with one frame a step.
    Logits are (B, classes), the mean over time steps; without a head, features (B, C).
    """

    config: NetworkConfig
    head: nn.Module
    # What timm knows of its own models, so that it can save ours and build them again.
    _model_args: dict[str, Any]
    _make_record: Callable[[], dict[str, Any]]
    _record: dict[str, Any] | None = None

    def __init__(self, config: NetworkConfig, features: int) -> None:
        super().__init__()
        self.config = config
        self.num_features = self.head_hidden_size = features

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, classes)."""
        raise NotImplementedError

    def _make_head(self) -> nn.Module:
        config = self.config
        if config.num_classes == 0:
            return nn.Identity()
        return QuantLinear(self.num_features, config.num_classes, bits=config.head_bits)

    @property
    def num_classes(self) -> int:
        """Classes of the head; 0 where there is none."""
        return self.config.num_classes

    # What follows is timm's interface.

    @property
    def pretrained_cfg(self) -> dict[str, Any]:
        """timm's record of images and layers, made when it is first asked for: that takes timm."""
        if self._record is None:
            self._record = self._make_record()
        return self._record

    @pretrained_cfg.setter
    def pretrained_cfg(self, record: dict[str, Any]) -> None:
        self._record = record

    default_cfg = pretrained_cfg  # its older name

    @property
    def in_chans(self) -> int:
        """Channels of an image, as timm calls them."""
        return self.config.in_channels

    def get_classifier(self) -> nn.Module:
        """The linear head."""
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """A new head for `num_classes` classes; 0 removes it.

        It has the device and type of the other weights, and the network's mode.
        """
        if global_pool not in (None, "", "avg"):
            raise ValueError(f"global_pool={global_pool!r}: only 'avg' is available")
        self.config = self.config.replace(num_classes=num_classes)
        like = next(self.parameters())
        self.head = self._make_head().to(like.device, like.dtype).train(self.training)

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Regular expressions that sort parameters into stem and blocks, for layer-wise rates."""
        raise NotImplementedError

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Trade time for memory, where the family can."""
        if enable:
            raise ValueError(f"{self.config.family} networks have no gradient checkpointing")

    def no_weight_decay(self) -> set[str]:
        """Names of parameters that weight decay must leave alone: the step sizes."""
        return {name for name, _ in self.named_parameters() if name.endswith("log_step_size")}
