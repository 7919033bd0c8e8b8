"""The native engine built with sanitizers: mutated files, runs, misuse; and the example in C.

A few hundred mutants by default; QSD_FUZZ_MUTANTS=10000 makes more.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import random
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from graph.random_graphs import random_graph
from graph.test_artifact_fuzz import error_of, forged
from mutants import damaged
from PIL import Image
from shell import pasted
from variants import LIF, info_for

import qsdformer as qsd
from qsdformer.graph.artifact import export, load_artifact, to_bytes
from qsdformer.graph.integer import IntegerGraph
from qsdformer.graph.lowering import lower
from qsdformer.runtimes import native
from qsdformer.runtimes.bench import peak_memory

MUTANTS = int(os.environ.get("QSD_FUZZ_MUTANTS", "500"))
SOURCE = Path(__file__).parents[2] / "native"

pytestmark = pytest.mark.skipif(
    not (SOURCE.is_dir() and shutil.which("cmake") and shutil.which("cc")),
    reason="there is no compiler or no CMake",
)
MEMORY, THREADS, NONE = "address,undefined", "thread", ""  # sanitizers
MIB = 2**20


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Builds the programs of `native/` with sanitizers, once, and gives their folder."""

    @functools.cache
    def build(sanitizers: str) -> Path:
        folder = tmp_path_factory.mktemp("native")
        if sanitizers:
            command = ["cc", f"-fsanitize={sanitizers}", "-x", "c", "-", "-o", folder / "empty"]
            program = b"int main(void) { return 0; }"
            tried = subprocess.run(command, input=program, capture_output=True, check=False)
            if tried.returncode or subprocess.run([folder / "empty"], check=False).returncode:
                pytest.skip(f"the compiler has no sanitizers {sanitizers}")
        options = [f"-DQSD_SANITIZE={sanitizers}", "-DQSD_TOOLS=ON"]
        configure = ["cmake", "-S", SOURCE, "-B", folder, *options]
        subprocess.run(configure, check=True, capture_output=True)
        make = ["cmake", "--build", folder, "--parallel", "2"]
        subprocess.run(make, check=True, capture_output=True)
        return folder

    return build


@pytest.fixture(scope="module")
def tools(built: Callable[[str], Path]) -> Path:
    """The folder of the programs that watch their memory."""
    return built(MEMORY)


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


@pytest.mark.slow
def test_the_steps_from_c_that_the_page_names_classify_an_image(tmp_path: Path):
    page = (SOURCE.parent / "docs/native.md").read_text(encoding="utf-8")
    (steps,) = [
        text for text in re.findall(r"^```sh\n(.*?)^```", page, re.M | re.S) if "cc -I" in text
    ]
    for name in ("native", "zoo"):
        (tmp_path / name).symlink_to(SOURCE.parent / name)
    image = np.random.default_rng(0).integers(0, 256, (40, 30, 3), np.uint8)
    Image.fromarray(image).save(tmp_path / "bird.png")
    printed = pasted(steps, tmp_path)
    graph = load_artifact(tmp_path / "zoo/cifar10-small.qsd")
    pixels = np.fromfile(tmp_path / "bird.pixels", np.uint8).reshape(1, 3, 32, 32)
    logits = graph.run(pixels)[0]
    said = f"{graph.class_names[logits.argmax()]} {logits.max()}"
    lines = printed.splitlines()
    assert lines.count(said) == 2  # of the example, and of the program that was linked


# A name, the fields of a model, and whether the pixels are a frame for each time step.
NETWORKS = {
    "one time step": ({}, False),
    "fully spiking": ({"fully_spiking": True, "levels": 8, "time_steps": 4}, False),
    "LIF, frames": ({**LIF, "time_steps": 4}, True),
}


def faults(command: list[str | Path], lively, folder: Path, network: str, **variables: str) -> None:
    """Runs a network in every way and misuses the library in every way; see `faults.c`."""
    fields, frames = NETWORKS[network]
    model = lively(**fields)
    graph = lower(model, info_for(model))
    shape = (4, 1, 3, 32, 32) if frames else (1, 3, 32, 32)
    pixels = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    export(graph, folder / "model.qsd")
    (folder / "pixels").write_bytes(pixels.tobytes())
    words = [*command, folder / "model.qsd", folder / "pixels", str(int(frames))]
    environment = {**os.environ, **variables}
    done = subprocess.run(words, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.split() == [str(value) for value in graph.run(pixels)[0]]


@pytest.mark.slow
@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("sanitizers", [MEMORY, THREADS])
def test_use_and_misuse_of_the_library_are_as_its_header_says(
    built: Callable[[str], Path], lively, tmp_path: Path, network: str, sanitizers: str
):
    faults([built(sanitizers) / "qsd_faults"], lively, tmp_path, network)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("valgrind") is None, reason="valgrind is not installed")
def test_valgrind_finds_nothing(built: Callable[[str], Path], lively, tmp_path: Path):
    watched = ["valgrind", "-q", "--error-exitcode=9", "--leak-check=full"]
    faults([*watched, built(NONE) / "qsd_faults"], lively, tmp_path, "LIF, frames")


# Prints what a program prints, and the most memory in KiB that it had; small itself, because the
# peak of a program begins with that of the one that starts it.
PEAK = """
import resource, subprocess, sys
code = subprocess.run(sys.argv[1:]).returncode
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
sys.exit(code)
"""

# Prints the peak, in MiB, of a Python that has NumPy and an image.
NUMPY = """
import numpy
pixels = numpy.zeros((1, 3, 224, 224), numpy.uint8)
with open("/proc/self/status") as status:
    print(next(int(line.split()[1]) / 1024 for line in status if line.startswith("VmHWM")))
"""


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The network of 15M parameters at 224 pixels, fully spike-driven, and an image for it."""
    torch.manual_seed(0)
    model = qsd.create_model("metaspikeformer_15m", fully_spiking=True).eval()
    info = dataclasses.replace(info_for(model), image_size=224)
    folder = tmp_path_factory.mktemp("large")
    qsd.export(model, folder / "model.qsd", info=info)
    (folder / "pixels").write_bytes(bytes(3 * 224 * 224))
    return [folder / "model.qsd", folder / "pixels"]


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="memory is counted as on Linux")
def test_an_image_through_15_million_parameters_takes_little_memory(
    built: Callable[[str], Path], large: list[Path]
):
    program = built(NONE) / "qsd_example"
    assert program.stat().st_size < 1 * MIB
    command = [sys.executable, "-c", PEAK, program, *large]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert int(done.stdout.split()[-1]) * 1024 < 40 * MIB
    if native.available():
        # Without what Python and NumPy take by themselves, which differs between machines.
        bare = subprocess.run([sys.executable, "-c", NUMPY], capture_output=True, check=True)
        assert peak_memory("native", large[0], (3, 224, 224)) - float(bare.stdout) < 40


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="memory is limited as on Linux")
def test_a_machine_without_memory_is_told_in_one_line(
    built: Callable[[str], Path], large: list[Path]
):
    import resource

    def little() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (24 * MIB, 24 * MIB))

    command = [built(NONE) / "qsd_example", *large]
    done = subprocess.run(command, capture_output=True, text=True, check=False, preexec_fn=little)
    assert done.returncode == 2
    assert "memory" in done.stderr
    assert done.stderr.count("\n") == 1
