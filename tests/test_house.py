"""No room knows more than it should."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import qsdformer
from qsdformer.models.registry import families

SOURCES = Path(qsdformer.__file__).parent


@pytest.mark.parametrize("room", ["graph", "runtimes", "analysis", "accelerator"])
def test_deployment_and_analysis_name_no_architecture(room: str) -> None:
    names = [family.name for family in families().values()]
    networks = [family.network.__name__ for family in families().values()]
    pattern = re.compile("|".join([*names, *networks]), re.IGNORECASE)
    files = sorted((SOURCES / room).rglob("*.py"))
    assert files
    found = {f.name: pattern.findall(f.read_text(encoding="utf-8")) for f in files}
    assert not {name: hits for name, hits in found.items() if hits}
