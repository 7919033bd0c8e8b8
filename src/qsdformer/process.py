"""How the process of a training command is started."""

from __future__ import annotations

import os
import sys

# glibc otherwise returns each freed activation to the kernel and faults it in again: on 2 CPU
# cores training is about a fifth faster when it keeps them. Read at process start only.
ALLOCATOR = {
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": "17179869184",  # bytes
    "MALLOC_TOP_PAD_": "67108864",  # bytes
}
RESTARTED = "QSD_RESTARTED"


def restart_with_allocator_settings() -> None:
    """On Linux without a GPU, start this process again with glibc told to keep freed memory.

    Does nothing the second time, or where the user has set any of these himself.
    """
    gpu = os.path.exists("/dev/nvidiactl")
    if not sys.platform.startswith("linux") or gpu or RESTARTED in os.environ:
        return
    if any(name in os.environ for name in ALLOCATOR):
        return
    if sys.stdout is not None:  # which may be closed
        sys.stdout.flush()
    environment = {**os.environ, **ALLOCATOR, RESTARTED: "1"}
    os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], environment)
