"""QSDformer: low-bit spike-driven vision transformers, from training to artifact.

Importing the package is cheap: each public name is loaded when it is first used, and the models
are registered in timm when timm is imported.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from qsdformer.registration import register_with_timm

if TYPE_CHECKING:
    from qsdformer.data.base import DataInfo as DataInfo
    from qsdformer.graph.lowering import lower as lower
    from qsdformer.models.building import create_model as create_model
    from qsdformer.models.checkpoint import save as save
    from qsdformer.models.metaspikeformer import MetaSpikeFormer as MetaSpikeFormer
    from qsdformer.models.published import import_reference as import_reference
    from qsdformer.nn.config import ModelConfig as ModelConfig
    from qsdformer.nn.taps import tap as tap
    from qsdformer.runtimes.exporting import export as export
    from qsdformer.runtimes.loading import load as load
    from qsdformer.runtimes.verify import verify as verify

__version__ = "0.1.0"

_HOMES = {
    "DataInfo": "qsdformer.data.base",
    "MetaSpikeFormer": "qsdformer.models.metaspikeformer",
    "ModelConfig": "qsdformer.nn.config",
    "create_model": "qsdformer.models.building",
    "export": "qsdformer.runtimes.exporting",
    "import_reference": "qsdformer.models.published",
    "load": "qsdformer.runtimes.loading",
    "lower": "qsdformer.graph.lowering",
    "save": "qsdformer.models.checkpoint",
    "tap": "qsdformer.nn.taps",
    "verify": "qsdformer.runtimes.verify",
}

__all__ = ["__version__", *sorted(_HOMES)]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'qsdformer' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return __all__


register_with_timm()
