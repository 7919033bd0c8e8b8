"""The package as a wheel, with a C compiler and without one, installed in a clean environment."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CHECK = ROOT / "tests" / "wheel_check.py"
SOURCES = ("pyproject.toml", "README.md", "LICENSE", ".gitignore", "src", "native", "runtime")
DISTRIBUTIONS = (".", "runtime")  # the package, and what runs exported files without PyTorch
BUILT = (
    "libqsd.*",
    "build",
    "__pycache__",
    "CMakeFiles",
    "CMakeCache.txt",
    "CMakeInit.txt",
    "*.egg-info",
)
UNREACHABLE = ("ConnectionError", "Temporary failure", "Max retries")

slow = pytest.mark.slow
needs_compiler = pytest.mark.skipif(
    not (shutil.which("cmake") and shutil.which("cc")), reason="there is no compiler or no CMake"
)


@pytest.fixture
def sources(tmp_path: Path) -> Path:
    """The package's sources, as a clean clone has them."""
    folder = tmp_path / "sources"
    folder.mkdir()
    for name in SOURCES:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns(*BUILT))
        else:
            shutil.copy(ROOT / name, folder / name)
    return folder


def clean_environment(**variables: str) -> dict[str, str]:
    """This process's environment without what points at this checkout, and with `variables`."""
    left_out = {"PYTHONPATH", "QSD_NATIVE_LIBRARY", "QSD_NATIVE_ISA", "CC", "CFLAGS"}
    kept = {name: value for name, value in os.environ.items() if name not in left_out}
    return {**kept, **variables}


def build(project: Path, **variables: str) -> tuple[Path, str]:
    """The wheel that pip makes, and what pip says."""
    folder = project.parent / "wheels"
    command = [sys.executable, "-m", "pip", "wheel", "-v", "--no-deps", "-w", folder, project]
    if importlib.util.find_spec("scikit_build_core"):
        command.append("--no-build-isolation")
    done = subprocess.run(
        command,
        env=clean_environment(**variables),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if done.returncode and any(words in done.stdout for words in UNREACHABLE):
        pytest.skip("the build backend is not installed and cannot be fetched")
    assert done.returncode == 0, done.stdout[-4000:]
    [wheel] = folder.glob("*.whl")
    return wheel, done.stdout


def installed(wheel: Path, folder: Path) -> Path:
    """The Python of a clean environment with the wheel; it borrows NumPy and the like of ours."""
    venv.create(folder, with_pip=False)
    python = folder / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", python]
    options = ["--quiet", "--no-deps", "--no-index"]
    subprocess.run([*pip, "install", *options, wheel], env=clean_environment(), check=True)
    [packages] = (folder / "lib").glob("python*/site-packages")
    (packages / "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return python


def check(python: Path, *words: str) -> list[str]:
    """The lines of wheel_check.py: where the package is, and what ran."""
    done = subprocess.run(
        [python, CHECK, *words],
        env=clean_environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout.splitlines()


@slow
@needs_compiler
@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_a_wheel_runs_artifacts_natively_in_a_clean_environment(
    distribution: str, sources: Path, tmp_path: Path
):
    wheel, said = build(sources / distribution)
    assert "The native engine is built." in said
    assert wheel.stem.split("-")[2:4] == ["py3", "none"]  # one for every Python
    python = installed(wheel, tmp_path / "clean")
    place, ran = check(python)
    assert Path(place).is_relative_to(tmp_path / "clean")
    assert ran.startswith("the native engine")
    words = [python.parent / "qsd", "--version"]
    subprocess.run(words, env=clean_environment(), check=True, capture_output=True)


@slow
@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_without_a_compiler_the_package_is_built_and_says_what_is_missing(
    distribution: str, sources: Path, tmp_path: Path
):
    (sources / "src/qsdformer/runtimes/libqsd.so").write_text("left from an editable install")
    tools = tmp_path / "tools"  # no compiler here, but what else would have to be fetched
    tools.mkdir()
    for name in ("cmake", "ninja", "make"):
        if there := shutil.which(name):
            (tools / name).symlink_to(there)
    wheel, said = build(sources / distribution, PATH=str(tools), CC=str(tools / "none"))
    assert "No native engine: it needs a C compiler" in said
    assert wheel.name.endswith("py3-none-any.whl")
    python = installed(wheel, tmp_path / "clean")
    place, ran = check(python, "--reference")
    assert Path(place).is_relative_to(tmp_path / "clean")
    assert ran.startswith("the reference, in NumPy: the native engine was not built")


def test_wheels_of_a_release_are_tested_by_a_script_that_is_there():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["cibuildwheel"]
    python, script = settings["test-command"].split()
    assert (python, ROOT / script.removeprefix("{project}/")) == ("python", CHECK)
    assert settings["linux"]["archs"] == ["x86_64", "aarch64"]
