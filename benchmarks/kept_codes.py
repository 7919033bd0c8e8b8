"""What keeping the weight codes between evaluation passes saves.

    python benchmarks/kept_codes.py [--model NAME] [--size 224] [--batch 1] [--passes 20]

Prints the median time of a pass without gradients that makes every layer's codes anew, as after
each change of the weights, and of one that finds them made. The two take turns, so that a machine
whose speed drifts treats them alike.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time

import torch

from qsdformer import create_model


def main() -> None:
    """Time both and print a line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="metaspikeformer_15m")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--passes", type=int, default=20)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    model = create_model(options.model).eval()
    images = torch.randn(options.batch, 3, options.size, options.size)
    times: dict[str, list[float]] = {"anew": [], "kept": []}
    with torch.inference_mode():
        for _ in range(options.passes + 1):
            model.eval()  # lets go of the codes
            for name in times:
                begin = time.perf_counter()
                model(images)
                times[name].append(1e3 * (time.perf_counter() - begin))
    anew, kept = (statistics.median(values[1:]) for values in times.values())
    print(
        f"{options.model}, {options.batch} x {options.size} px, {options.threads} threads, torch "
        f"{torch.__version__}, {platform.processor() or platform.machine()}: codes anew "
        f"{anew:.1f} ms, kept {kept:.1f} ms, {1 - kept / anew:.0%} less"
    )


if __name__ == "__main__":
    main()
