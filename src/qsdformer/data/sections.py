"""The data section of each task; read without PyTorch."""

from __future__ import annotations

from typing import Any, Protocol

from qsdformer.data.base import EvaluateOn
from qsdformer.data.config import DataConfig
from qsdformer.data.detection.config import DetectionData
from qsdformer.data.segmentation.config import SegmentationData


class DataSection(Protocol):
    """What the data sections of all tasks have, for what is said and done with any of them."""

    @property
    def name(self) -> str:
        """The source."""
        ...

    @property
    def root(self) -> str | None:
        """The folder of the source."""
        ...

    @property
    def image_size(self) -> Any:
        """Pixels: one or two numbers, or None for the source's own."""
        ...

    @property
    def train_limit(self) -> int | None:
        """Train on this many images."""
        ...

    @property
    def evaluate_on(self) -> EvaluateOn:
        """The images evaluated on."""
        ...

    @property
    def workers(self) -> int:
        """Loader processes."""
        ...


DATA_SECTIONS: dict[str, type] = {
    "classification": DataConfig,
    "segmentation": SegmentationData,
    "detection": DetectionData,
}
