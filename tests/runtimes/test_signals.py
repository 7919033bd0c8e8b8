"""Inference runtimes leave a process in which signals can still be handled."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from qsdformer.runtimes.onnx_export import onnx_model
from qsdformer.runtimes.sessions import RUNTIMES

SCRIPT = """
import gc, os, signal, sys
import numpy as np
from qsdformer.runtimes.sessions import RUNTIMES

start = RUNTIMES[sys.argv[1]][1]
image = np.zeros((1, 3, 32, 32), np.uint8)
first, second = start(sys.argv[2], 1), start(sys.argv[2], 1)
for infer in (first, second):
    infer(image, None)
del infer, first, second
gc.collect()
signal.signal(signal.SIGTERM, lambda *_: print("handled"))
os.kill(os.getpid(), signal.SIGTERM)
"""


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_a_signal_is_handled_after_models_have_been_run_and_freed(
    runtime: str, small_graph, tmp_path: Path
):
    arrangement, _ = RUNTIMES[runtime]
    pytest.importorskip(arrangement)
    path = tmp_path / "model.onnx"
    path.write_bytes(onnx_model(small_graph, arrangement).SerializeToString())
    words = [sys.executable, "-c", SCRIPT, runtime, str(path)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (0, "handled\n"), done.stderr
