"""The native engine built with sanitizers: mutated files, a run, and the example in C.

A few hundred mutants by default; QSD_FUZZ_MUTANTS=10000 makes more.
"""

from __future__ import annotations

import os
import random
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from graph.random_graphs import random_graph
from graph.test_artifact_fuzz import error_of, forged
from mutants import damaged

from qsdformer.graph.artifact import export, to_bytes
from qsdformer.graph.integer import IntegerGraph

MUTANTS = int(os.environ.get("QSD_FUZZ_MUTANTS", "500"))
SOURCE = Path(__file__).parents[2] / "native"

pytestmark = pytest.mark.skipif(
    not (SOURCE.is_dir() and shutil.which("cmake") and shutil.which("cc")),
    reason="there is no compiler or no CMake",
)


@pytest.fixture(scope="module")
def tools(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the fuzzer and the example, built with sanitizers."""
    folder = tmp_path_factory.mktemp("sanitized")
    options = ["-DQSD_SANITIZE=ON", "-DQSD_TOOLS=ON"]
    subprocess.run(["cmake", "-S", SOURCE, "-B", folder, *options], check=True, capture_output=True)
    build = ["cmake", "--build", folder, "--parallel", "2"]
    subprocess.run(build, check=True, capture_output=True)
    return folder


def verdicts(tools: Path, files: list[bytes]) -> list[int]:
    """The status that the C reader gives each file; a report of a sanitizer fails the test."""
    stream = b"".join(len(data).to_bytes(8, "little") + data for data in files)
    done = subprocess.run([tools / "qsd_fuzz"], input=stream, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode(errors="replace")[-3000:]
    assert len(done.stdout) == len(files)
    return [status - ord("0") for status in done.stdout]


@pytest.mark.slow
@pytest.mark.parametrize("mutate", [damaged, forged])
def test_mutants_crash_nothing_and_both_readers_agree(
    tools: Path, small_graph: IntegerGraph, mutate
):
    files = [to_bytes(random_graph(seed)) for seed in range(20)] + [to_bytes(small_graph)] * 20
    rng = random.Random(2)
    mutants = [mutate(files[number % len(files)], rng) for number in range(MUTANTS // 2)]
    for number, (data, status) in enumerate(zip(mutants, verdicts(tools, mutants), strict=True)):
        refused = error_of(data)
        # The C reader also refuses what would need much memory.
        if status in (1, 2):
            assert refused is not None, number
        if status == 0:
            assert refused is None, (number, refused)


@pytest.mark.slow
def test_whole_files_are_read_and_run_without_a_report(tools: Path, small_graph: IntegerGraph):
    files = [to_bytes(random_graph(seed)) for seed in range(60)] + [to_bytes(small_graph)]
    assert set(verdicts(tools, files)) == {0}


@pytest.mark.slow
def test_the_example_classifies_without_python(
    tools: Path, small_graph: IntegerGraph, tmp_path: Path
):
    size = small_graph.preprocessing.image_size
    pixels = np.random.default_rng(0).integers(0, 256, (1, 3, size, size), np.uint8)
    export(small_graph, tmp_path / "model.qsd")
    (tmp_path / "pixels").write_bytes(pixels.tobytes())
    command = [tools / "qsd_example", tmp_path / "model.qsd", tmp_path / "pixels"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    logits = small_graph.run(pixels)[0]
    best = int(logits.argmax())
    assert done.stdout.splitlines()[0] == f"{small_graph.class_names[best]} {logits[best]}"
    (tmp_path / "pixels").write_bytes(b"too short")
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "bytes of pixels" in done.stderr
