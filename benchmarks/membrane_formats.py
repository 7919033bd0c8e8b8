"""What 16-bit membrane potentials cost against 32 bits, on the Fashion-MNIST test set.

    python benchmarks/membrane_formats.py CKPT [--images 10000]

Prints a line for each format: accuracy, top-1 agreement with multi-bit evaluation, share of
differing spike counts.
"""

from __future__ import annotations

import argparse
from itertools import islice

from qsdformer import load, lower, verify
from qsdformer.data import DataConfig, DataModule

BATCH = 100


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("checkpoint")
    parser.add_argument("--images", type=int, default=10_000)
    options = parser.parse_args()
    model = load(options.checkpoint)
    data = DataModule(DataConfig(name="fashion_mnist"), batch_size=BATCH)
    for bits in (32, 16):
        fraction = lower(model, data.info, membrane_bits=bits).membrane_fraction
        batches = islice(data.val_dataloader(), options.images // BATCH)
        report = verify(model, batches, data.info, executors=["integer"], membrane_bits=bits)
        multi_bit, integer = report.rows
        assert integer.differing is not None
        print(
            f"{bits} bits, {fraction} fractional: accuracy {integer.accuracy:.2%} (multi-bit "
            f"{multi_bit.accuracy:.2%}), same class {integer.agreement:.2%}, other counts "
            f"{integer.differing / integer.counts:.2e}, {report.images:,} images"
        )


if __name__ == "__main__":
    main()
