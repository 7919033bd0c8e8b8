"""Our models are in timm, whichever of the two packages is imported first."""

from __future__ import annotations

import importlib
import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

from qsdformer import registration

TINY = "metaspikeformer_tiny"


@pytest.fixture
def packages(tmp_path, monkeypatch):
    """Stand-ins: a library that lists models, and a module of ours that adds to the list."""
    library = tmp_path / "fake_timm"
    (library / "models").mkdir(parents=True)
    (library / "__init__.py").write_text("from fake_timm.models import known, is_model\n")
    (library / "models" / "__init__.py").write_text(
        "known = []\n\ndef is_model(name):\n    return name in known\n"
    )
    (tmp_path / "fake_ours.py").write_text(
        "import fake_timm\n"
        "assert not fake_timm.is_model('ours')\n"  # needs all of the library
        "fake_timm.known.append('ours')\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(registration, "TIMM", "fake_timm")
    monkeypatch.setattr(registration, "MODELS", "fake_ours")
    others = [f for f in sys.meta_path if not isinstance(f, registration._AfterTimm)]
    monkeypatch.setattr(sys, "meta_path", others)
    yield tmp_path
    for name in ("fake_timm", "fake_timm.models", "fake_ours"):
        sys.modules.pop(name, None)


def _hooks() -> int:
    return sum(isinstance(finder, registration._AfterTimm) for finder in sys.meta_path)


@pytest.mark.parametrize("first", ["fake_timm", "fake_timm.models", "fake_ours"])
def test_models_are_registered_right_after_the_library_is_imported(packages, first):
    registration.register_with_timm()
    registration.register_with_timm()  # no second hook
    assert _hooks() == 1
    assert "fake_timm" not in sys.modules
    importlib.import_module(first)
    library = importlib.import_module("fake_timm")
    assert library.known == ["ours"]
    assert _hooks() == 0
    # The library's loader is as it was, and imports it again without us.
    importlib.reload(library)
    assert library.known == ["ours"]


def test_models_are_registered_at_once_where_the_library_is_imported_already(packages):
    library = importlib.import_module("fake_timm")
    registration.register_with_timm()
    assert library.known == ["ours"]
    assert _hooks() == 0


def test_asking_whether_the_library_is_there_does_not_use_up_the_hook(packages):
    registration.register_with_timm()
    assert importlib.util.find_spec("fake_timm") is not None
    assert importlib.import_module("fake_timm").known == ["ours"]


def test_a_library_that_is_not_installed_is_missing_as_ever(packages):
    (packages / "fake_timm").rename(packages / "elsewhere")
    importlib.invalidate_caches()
    registration.register_with_timm()
    with pytest.raises(ModuleNotFoundError, match="fake_timm"):
        importlib.import_module("fake_timm")


def _python(code: str) -> str:
    return subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True
    ).stdout


def test_importing_the_package_imports_neither_timm_nor_torch():
    heavy = _python("import qsdformer, sys; print({'timm', 'torch', 'numpy'} & set(sys.modules))")
    assert heavy.strip() == "set()"


@pytest.mark.slow
@pytest.mark.parametrize(
    "imports",
    [
        "import qsdformer, timm",
        "import timm, qsdformer",
        "import qsdformer; from timm.models import create_model",
        "from qsdformer import create_model; create_model('metaspikeformer_tiny'); import timm",
    ],
)
def test_timm_makes_our_models_in_whatever_order_the_packages_are_imported(imports):
    code = f"{imports}; import timm; print(type(timm.create_model({TINY!r})).__name__)"
    assert _python(code).split() == ["MetaSpikeFormer"]


def test_the_names_that_the_hook_waits_for_exist():
    assert importlib.util.find_spec(registration.MODELS) is not None
    assert importlib.util.find_spec(registration.TIMM) is not None
    assert Path(importlib.import_module(registration.MODELS).__file__).is_file()
