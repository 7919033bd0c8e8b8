"""The example in docs/graph.md runs as it stands."""

from __future__ import annotations

import re
from pathlib import Path

import torch

DOC = Path(__file__).parents[1] / "docs" / "graph.md"


def test_the_documented_network_goes_through_verify_and_export(tmp_path, monkeypatch):
    (example,) = re.findall(r"```python\n(.*?)```", DOC.read_text(encoding="utf-8"), re.DOTALL)
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    scope: dict[str, object] = {"__name__": "example"}
    exec(compile(example, str(DOC), "exec"), scope)
    assert (tmp_path / "model.qsd").stat().st_size > 0
