"""Our models are in timm as soon as both packages are imported, in whatever order.

Importing qsdformer must not import timm, which takes seconds. So where timm is not imported yet,
an import hook waits for it and registers the models right after it.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

TIMM = "timm"
PACKAGE = "qsdformer.models"  # qsdformer-runtime is without it
MODELS = f"{PACKAGE}.families"  # importing it registers what it defines


def register_with_timm() -> None:
    """Register our models in timm, now if it is imported, else when it will be.

    Nothing is done where the models are not installed.
    """
    if importlib.util.find_spec(PACKAGE) is None:
        return
    if TIMM in sys.modules:
        importlib.import_module(MODELS)
    elif not any(isinstance(finder, _AfterTimm) for finder in sys.meta_path):
        sys.meta_path.insert(0, _AfterTimm())


class _AfterTimm:
    """Finds timm as the other finders do, and registers our models when it has been executed."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if name != TIMM:
            return None
        others = [f for f in sys.meta_path if f is not self and hasattr(f, "find_spec")]
        spec = next((s for f in others if (s := f.find_spec(name, path, target))), None)
        if spec is not None and spec.loader is not None:
            self._attach(spec.loader)
        return spec

    def _attach(self, loader: Any) -> None:
        execute = loader.exec_module

        def exec_module(module: ModuleType) -> None:
            execute(module)
            if module.__name__ == TIMM:
                loader.exec_module = execute
                if self in sys.meta_path:
                    sys.meta_path.remove(self)
                importlib.import_module(MODELS)

        loader.exec_module = exec_module
