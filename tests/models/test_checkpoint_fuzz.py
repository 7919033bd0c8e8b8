"""Mutated checkpoints: refused in one line, or read; never a crash, never a large allocation.

A hundred mutants by default; QSD_FUZZ_MUTANTS=2000 makes more.
"""

from __future__ import annotations

import copy
import io
import os
import random
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from mutants import change, damaged
from variants import info_for

from qsdformer.errors import UserError
from qsdformer.models.checkpoint import KEY, load_checkpoint, save_checkpoint

MUTANTS = int(os.environ.get("QSD_FUZZ_MUTANTS", "100"))
MEMORY = 64  # MiB that reading a file of 0.1 MB may take
HUGE = (10**7, 10**9, 2**40)


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory, make_model: Any) -> bytes:
    """A small checkpoint, as training writes one."""
    model = make_model()
    path = tmp_path_factory.mktemp("fuzz") / "model.ckpt"
    recipe = {"seed": 0, "data": {"name": "digits"}, "train": {"epochs": 3}}
    save_checkpoint(path, model, info_for(model), {"recipe": recipe, "epoch": 1})
    return path.read_bytes()


def content_of(data: bytes) -> Any:
    return torch.load(io.BytesIO(data), weights_only=True)


def saved(content: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def forged(data: bytes, rng: random.Random) -> bytes:
    """Another header, other keys or other tensors, in a file that is intact."""
    content = content_of(data)
    for _ in range(rng.randint(1, 3)):
        kind = rng.randrange(4)
        state, config = content["state_dict"], content[KEY].get("model_config")
        key = rng.choice(list(state)) if state else ""
        if kind == 0 and isinstance(config, dict) and config:
            config[rng.choice(list(config))] = rng.choice((*HUGE, [10**6] * 4, -1, None, "x"))
        elif kind == 1 and key:
            huge = torch.zeros(1).expand(rng.choice(HUGE))
            state[key] = rng.choice(
                (huge, torch.zeros(2, 3), torch.full((), torch.nan), 3, state[key].to_sparse())
            )
        elif kind == 2 and key:
            del state[key]
        else:
            change(content[KEY], rng)
    return saved(content)


def repacked(data: bytes, rng: random.Random) -> bytes:
    """A changed pickle, or another compression, with right checksums."""
    buffer = io.BytesIO()
    method = rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))
    with (
        zipfile.ZipFile(io.BytesIO(data)) as source,
        zipfile.ZipFile(buffer, "w", method) as target,
    ):
        for name in source.namelist():
            part = source.read(name)
            target.writestr(name, damaged(part, rng) if name.endswith("data.pkl") else part)
    return buffer.getvalue()


def peak_memory(action: Callable[[], None]) -> float:
    """By how many MiB the memory of this process grew at most during `action`."""
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from here
    before = memory("VmRSS")
    action()
    return memory("VmHWM") - before


def memory(field: str) -> float:
    status = Path("/proc/self/status").read_text()
    return next(int(x.split()[1]) for x in status.splitlines() if x.startswith(field)) / 1024


@pytest.mark.parametrize("mutate", [damaged, forged, repacked])
def test_no_mutant_crashes_the_reader_or_makes_it_allocate(
    original: bytes, mutate: Any, tmp_path: Path
) -> None:
    rng = random.Random(0)
    path = tmp_path / "model.ckpt"
    outcomes = {"refused": 0, "read": 0}

    def read_all() -> None:
        for number in range(MUTANTS // 3):
            path.write_bytes(mutate(original, rng))
            try:
                load_checkpoint(path)
                outcomes["read"] += 1
            except UserError as error:
                outcomes["refused"] += 1
                message = str(error)
                assert message.startswith(str(path)), number
                assert "\n" not in message, number
                assert len(message) < 600, number

    assert peak_memory(read_all) < MEMORY
    assert outcomes["refused"] > 0.5 * MUTANTS / 3


def refused(path: Path, data: bytes) -> str:
    path.write_bytes(data)
    with pytest.raises(UserError) as caught:
        load_checkpoint(path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [
        ("depth", 10**7, "depth=10000000: must be at most 1024"),
        ("depth", 1000, "depth=1000 with "),
        ("dims", [65536] * 4, "has shape"),
        ("dims", [10**9] * 4, "at most 65536 each"),
        ("num_classes", 10**7, "has shape"),
        ("num_classes", 10**12, "num_classes=1000000000000: must be"),
        ("time_steps", 10**9, "time_steps=1000000000: must be"),
        ("stem_kernel", 10**9 + 1, "stem_kernel=1000000001: must be"),
        ("stem_kernel", 255, "has shape"),
        ("levels", 10**9, "levels=1000000000: must be"),
    ],
)
def test_a_header_that_claims_huge_sizes_is_refused_without_building_them(
    original: bytes, tmp_path: Path, field: str, value: Any, expected: str
) -> None:
    content = content_of(original)
    content[KEY]["model_config"][field] = value
    path = tmp_path / "model.ckpt"
    data = saved(content)

    def read() -> None:
        assert expected in refused(path, data)

    assert peak_memory(read) < MEMORY


def test_a_small_file_that_inflates_is_refused(original: bytes, tmp_path: Path) -> None:
    content = content_of(original)
    content["state_dict"]["model.head.weight"] = torch.zeros(2**25)
    buffer = io.BytesIO()
    with (
        zipfile.ZipFile(io.BytesIO(saved(content))) as source,
        zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as target,
    ):
        for name in source.namelist():
            target.writestr(name, source.read(name))
    del content
    data = buffer.getvalue()
    assert len(data) < 500_000
    path = tmp_path / "model.ckpt"

    def read() -> None:
        assert "damaged" in refused(path, data)

    assert peak_memory(read) < MEMORY


def test_one_number_that_stands_for_many_is_refused(original: bytes, tmp_path: Path) -> None:
    content = content_of(original)
    content[KEY]["model_config"]["num_classes"] = 10**6
    content["state_dict"]["model.head.weight"] = torch.zeros(1).expand(10**6, 8)
    state = copy.copy(content["state_dict"])
    for key, value in state.items():
        if key.startswith("model.head") and value.shape[:1] == (5,):
            content["state_dict"][key] = torch.zeros(1).expand(10**6, *value.shape[1:])
    content[KEY]["data_info"] = None
    assert "bytes, more than it has" in refused(tmp_path / "model.ckpt", saved(content))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_numbers_are_refused_by_name(
    original: bytes, tmp_path: Path, value: float
) -> None:
    content = content_of(original)
    content["state_dict"]["model.head.weight"][0, 0] = value
    message = refused(tmp_path / "model.ckpt", saved(content))
    assert "weight head.weight is not finite" in message
