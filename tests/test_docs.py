"""What README.md and docs/ tell readers to type exists, and does what they say."""

from __future__ import annotations

import argparse
import importlib
import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from variants import info_for

import qsdformer
from qsdformer.cli import COMMANDS, run
from qsdformer.commands.recipe_keys import given_keys
from qsdformer.experiments.grid import load_grid
from qsdformer.models.checkpoint import save_checkpoint
from qsdformer.recipes import packaged_recipes
from qsdformer.recipes.recipe import load_recipe
from qsdformer.runtimes import native

ROOT = Path(__file__).parents[1]
DOCUMENTS = [ROOT / "README.md", *sorted(ROOT.glob("docs/*.md")), *sorted(ROOT.glob("zoo/*.md"))]


def blocks(document: Path, language: str = "[a-z]*") -> list[str]:
    text = document.read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def commands() -> list[str]:
    """Every line of the documents' blocks that begins with `qsd`, without its comment."""
    lines = [line for doc in DOCUMENTS for block in blocks(doc) for line in block.splitlines()]
    pattern = r"(?:\$ )?(?:[A-Z_]+=\S+ )*(qsd .*)"  # variables before it are of the shell
    return [found[1] for line in lines if (found := re.match(pattern, line))]


class Checked(Exception):
    """A command was understood; nothing is run."""


def understand(options: argparse.Namespace) -> int:
    """In place of a command's `run`: looks at its recipe and its keys, as far as it has them."""
    keys = given_keys(options) if getattr(options, "takes_recipe_keys", False) else {}
    keys.pop("model.start_from", None)  # a file of the reader's
    if hasattr(options, "cell"):  # qsd ablate
        load_grid(options.recipe)
    elif hasattr(options, "recipe"):
        own = options.recipe.startswith("my.")
        assert own or options.recipe in packaged_recipes()
        load_recipe("digits" if own else options.recipe, keys)
    raise Checked


@pytest.mark.parametrize("line", commands())
def test_a_documented_command_is_understood(
    line: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for _, name, _ in COMMANDS:
        module = importlib.import_module(f"qsdformer.commands.{name}")
        monkeypatch.setattr(module, "run", understand)
    words = shlex.split(line, comments=True)[1:]
    expected = SystemExit if "--help" in words else Checked
    if "--weight_bits 9" in line:  # shown for its error
        assert run(words) == 2
        error = capsys.readouterr().err
        assert error.startswith("qsd: error: ")
        assert error in (ROOT / "README.md").read_text(encoding="utf-8")
        return
    with pytest.raises(expected) as caught:
        run(words)
    assert getattr(caught.value, "code", 0) == 0


def test_an_option_that_a_text_mentions_exists() -> None:
    known = {"--help", "--version"}
    for _, name, _ in COMMANDS:
        parser = argparse.ArgumentParser()
        importlib.import_module(f"qsdformer.commands.{name}").add_arguments(parser)
        known |= set(parser._option_string_actions)
    for document in DOCUMENTS:
        prose = re.sub(r"^```.*?^```", "", document.read_text("utf-8"), flags=re.DOTALL | re.M)
        for span in re.findall(r"`([^`\n]+)`", prose):
            found = set(re.findall(r"(?<!\S)--[a-z][\w.-]*", span))
            assert found <= known or span.startswith("benchmarks/"), f"{document.name}: {span}"


def test_a_file_that_a_text_mentions_exists() -> None:
    for document in DOCUMENTS:
        text = document.read_text(encoding="utf-8")
        links = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", text)
        named = re.findall(r"`((?:benchmarks|tests|docs|src)/[^` ]+)", text)
        for there in [document.parent / link for link in links] + [ROOT / name for name in named]:
            assert there.exists(), f"{document.name}: {there}"


def test_the_python_of_the_readme_runs(lively, fixtures: Path) -> None:
    [code] = blocks(ROOT / "README.md", "python")
    folder = Path("runs/quickstart/student")
    folder.mkdir(parents=True)
    qsdformer.save(lively(), folder / "last.ckpt")
    shutil.copy(fixtures / "reference_mini.pth", "w4a1t4_80_3.pth")
    assert "torch.rand(8, 3, 224, 224)" in code
    code = code.replace("torch.rand(8, 3, 224, 224)", "torch.rand(1, 3, 64, 64)")
    scope: dict[str, object] = {"__name__": "example"}
    with torch.device("cpu"):
        exec(compile(code, "README.md", "exec"), scope)
    assert qsdformer.load("model.ckpt").data_info == scope["info"]


def python_of(name: str, scope: dict[str, object]) -> dict[str, object]:
    """What the blocks of a page of docs/ define, run one after the other in `scope`."""
    for code in blocks(ROOT / "docs" / name, "python"):
        exec(compile(code, name, "exec"), scope)
    return scope


def test_the_python_about_dense_networks_runs() -> None:
    pytest.importorskip("segmentation_models_pytorch")
    folder = Path("runs/classifier")
    folder.mkdir(parents=True)
    classifier = qsdformer.create_model("metaspikeformer_tiny", fully_spiking=True, num_classes=5)
    save_checkpoint(folder / "best.ckpt", classifier)
    found = python_of("dense.md", {"__name__": "example"})
    assert tuple(found["mask"].shape) == (1, 11, 48, 64)
    assert found["boxes"].keys() == {"boxes", "labels", "scores", "masks"}
    assert found["model"].eval()(torch.rand(1, 3, 64, 64)).shape == (1, 11, 64, 64)


def test_the_python_about_exported_maps_runs() -> None:
    shutil.copy(ROOT / "zoo" / "camvid-tiny.qsd", "camvid.qsd")
    found = python_of("deploy.md", {"pixels": np.zeros((2, 3, 176, 240), np.uint8)})
    assert found["maps"]["mask"].shape == (2, 11, 88, 120)


def test_the_python_about_the_papers_convention_runs(capsys) -> None:
    found = python_of("energy.md", {})
    assert capsys.readouterr().out.startswith("8.6")
    assert all(value.is_meta for value in found["model"].parameters())


@pytest.mark.skipif(not native.available(), reason="the native engine was not built")
def test_the_python_about_the_native_engine_runs(lively) -> None:
    model = lively()
    qsdformer.export(model, Path("model.qsd"), info_for(model))
    size = info_for(model).image_size
    Image.fromarray(np.zeros((40, 30, 4), np.uint8)).save("image.png")
    found = python_of("native.md", {"pixels": np.zeros((2, 3, size, size), np.uint8)})
    assert np.array_equal(found["graph"].reference.run(found["pixels"]), found["logits"])
