"""Seconds that one image of a large network takes through the simulator, on one thread.

The network has random weights and batch statistics of random images, so that it fires.

    python benchmarks/accelerator_speed.py
"""

from __future__ import annotations

import argparse
import time

import numpy as np
import torch

import qsdformer as qsd
from qsdformer.accelerator.design import load_design
from qsdformer.accelerator.results import figures
from qsdformer.accelerator.simulate import simulate


def main() -> None:
    """Parse arguments, simulate, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="metaspikeformer_15m")
    parser.add_argument("--size", type=int, default=224)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = qsd.create_model(options.model, num_classes=10).train()
    with torch.no_grad():
        for _ in range(2):
            model(torch.randn(2, 3, options.size, options.size))
    graph = qsd.lower(model.eval(), image_size=options.size, membrane_bits=16)
    shape = (1, 3, options.size, options.size)
    image = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    for name in ("sdt-sparse", "dense-int"):
        begin = time.perf_counter()
        found = figures(simulate(graph, load_design(name), image))
        seconds = time.perf_counter() - begin
        print(
            f"{options.model} at {options.size} px on {name}: {seconds:.1f} s, reference included; "
            f"{found.synaptic / 1e6:,.0f} M additions, {found.cycles / 1e6:.2f} M cycles"
        )


if __name__ == "__main__":
    main()
