"""Peak memory and time of a distilled training step against a plain one, at 224 px.

Each kind of step runs in a process of its own, whose peak resident memory the system reports:

    python benchmarks/distillation_memory.py --batch 8
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import subprocess
import sys
import time

import torch
from torch import Tensor
from torch.nn import functional as F

from qsdformer.models.metaspikeformer import MetaSpikeFormer, model_config
from qsdformer.tasks import fgd as distillation
from qsdformer.tasks.fgd import fgd_loss
from qsdformer.tasks.teachers import FeatureReader, Teacher

KINDS = {
    "nothing": "models only, no step",
    "plain": "plain step",
    "teacher": "plain step and the teacher's forward pass",
    "kept": "distilled step, every similarity kept for the backward pass",
    "distilled": "distilled step, similarities recomputed one by one",
}
STEPS = 3


def measure(kind: str, size: str, batch: int, pixels: int) -> dict[str, float]:
    """Peak MiB of this process and seconds a step, the fastest of a few."""
    torch.manual_seed(0)
    config = model_config(size, weight_bits=4, levels=4, num_classes=100)
    student = MetaSpikeFormer(config).train()
    teacher = Teacher(MetaSpikeFormer(config.ann()))
    if kind == "kept":
        distillation.RECOMPUTED_TOKENS = 10**9
    reader = FeatureReader(student, teacher.features)
    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-4)
    images, labels = torch.randn(batch, 3, pixels, pixels), torch.zeros(batch, dtype=torch.long)
    seconds = []
    for _ in range(STEPS if kind != "nothing" else 0):
        begin = time.perf_counter()
        reader.clear()
        loss: Tensor = F.cross_entropy(student(images), labels)
        if kind not in ("plain", "nothing"):
            targets = teacher(images)[1]
            if kind != "teacher":
                loss = loss + fgd_loss(reader.blocks(), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        seconds.append(time.perf_counter() - begin)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024  # Linux gives KiB
    return {"peak_mib": peak, "seconds": min(seconds, default=0.0)}


def main() -> None:
    """Run every kind in its own process and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", default="metaspikeformer_15m", help="a named size")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--pixels", type=int, default=224)
    parser.add_argument("--kind", choices=KINDS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.kind:
        values = measure(options.kind, options.size, options.batch, options.pixels)
        print(json.dumps(values))
        return
    threads = torch.get_num_threads()
    print(
        f"{options.size}, {options.pixels} px, batch {options.batch}, {threads} threads, ", end=""
    )
    print(f"torch {torch.__version__}, {platform.machine()}")
    print("| step | peak MiB | seconds |\n|---|---:|---:|")
    for kind, title in KINDS.items():
        done = subprocess.run(
            [sys.executable, __file__, *sys.argv[1:], "--kind", kind],
            check=True,
            capture_output=True,
            text=True,
        )
        values = json.loads(done.stdout)
        print(f"| {title} | {values['peak_mib']:,.0f} | {values['seconds']:.2f} |", flush=True)


if __name__ == "__main__":
    main()
