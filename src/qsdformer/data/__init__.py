"""Images in, batches out: one data module for all sources, one file for each source.

Configurations come without PyTorch; what needs it is loaded when it is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from qsdformer.data.base import DataInfo

if TYPE_CHECKING:
    from qsdformer.data.config import DataConfig
    from qsdformer.data.images import load_images
    from qsdformer.data.module import DataModule

__all__ = ["DataConfig", "DataInfo", "DataModule", "load_images"]

# Asked for by name, and loaded then; DataConfig too, as qsdformer-runtime reads no recipes.
_HOMES = {
    "DataConfig": "qsdformer.data.config",
    "DataModule": "qsdformer.data.module",
    "load_images": "qsdformer.data.images",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'qsdformer.data' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
