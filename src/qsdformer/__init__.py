"""QSDformer: low-bit spike-driven vision transformers, from training to artifact.

Importing the package is cheap: each public name is loaded when it is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from qsdformer.backbone import MetaSpikeFormer as MetaSpikeFormer
    from qsdformer.backbone import create_model as create_model
    from qsdformer.config import ModelConfig as ModelConfig
    from qsdformer.deploy.artifact import export as export
    from qsdformer.deploy.lowering import lower as lower
    from qsdformer.deploy.verify import verify as verify
    from qsdformer.loading import load as load
    from qsdformer.reference import import_reference as import_reference
    from qsdformer.taps import tap as tap

__version__ = "0.1.0"

_HOMES = {
    "MetaSpikeFormer": "qsdformer.backbone",
    "ModelConfig": "qsdformer.config",
    "create_model": "qsdformer.backbone",
    "export": "qsdformer.deploy.artifact",
    "import_reference": "qsdformer.reference",
    "load": "qsdformer.loading",
    "lower": "qsdformer.deploy.lowering",
    "tap": "qsdformer.taps",
    "verify": "qsdformer.deploy.verify",
}

__all__ = ["__version__", *sorted(_HOMES)]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'qsdformer' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return __all__
