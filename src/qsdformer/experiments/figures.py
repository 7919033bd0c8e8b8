"""Pictures of results, where matplotlib is installed: the extra `plots`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def new_figure(path: Path, size: tuple[float, float]) -> Figure | None:
    """A figure of so many inches to be saved at `path`; without matplotlib one line says so."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        print(f"no {path}: pip install 'qsdformer[plots]' to get the picture", file=sys.stderr)
        return None
    return Figure(figsize=size, layout="constrained")
