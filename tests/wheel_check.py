"""Does the installed package run .qsd files natively, to the integers of the reference?

Needs NumPy and Pillow only, and imports nothing else of the tests: for wheels in an environment of
their own. Prints where the package is and what ran.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

import qsdformer

FIXTURES = Path(__file__).parent / "fixtures"


def main() -> None:
    """Compare stored networks with their stored logits."""
    ran = ""
    for name in ("v1_published", "v1_lif_t4"):
        stored = np.load(FIXTURES / f"{name}.npz")
        images = stored["images"].repeat(4, axis=2).repeat(4, axis=3)
        for threads in (1, 2):
            graph = qsdformer.load(FIXTURES / f"{name}.qsd", threads=threads)
            assert np.array_equal(graph.run(images), stored["logits"]), name
            ran = graph.runtime
        assert np.array_equal(graph.reference.run(images), stored["logits"]), name
    print(Path(qsdformer.__file__).parent)
    print(ran)
    if "--reference" not in sys.argv[1:]:
        assert ran.startswith("the native engine"), ran


if __name__ == "__main__":
    main()
