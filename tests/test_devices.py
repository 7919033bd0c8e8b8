"""Models run where they are told to, and a device that is not there is named as such."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from variants import info_for, random_pixels

from qsdformer import load, save
from qsdformer.analysis.report import collect
from qsdformer.cli import run
from qsdformer.devices import pick_device
from qsdformer.errors import UserError
from qsdformer.graph.lowering import lower
from qsdformer.runtimes import executors
from qsdformer.runtimes import verify as verification

MISSING = ["cuda:99", "cuda:-3", "xpu", "gpu", "nonsense", ""]


@pytest.mark.parametrize("name", MISSING)
def test_a_device_that_is_not_there_is_an_error_of_one_line(name):
    with pytest.raises(UserError, match=r"^cannot use device .*; try --device cpu$") as caught:
        pick_device(name)
    assert "\n" not in str(caught.value)


def test_auto_is_a_device_that_is_there():
    assert pick_device().type == ("cuda" if torch.cuda.is_available() else "cpu")
    assert pick_device("cpu") == torch.device("cpu")


def test_a_device_without_memory_is_said_to_be_so(monkeypatch):
    def full(*_args: object, **_options: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 MiB.\nMore lines")

    monkeypatch.setattr(torch, "empty", full)
    with pytest.raises(UserError, match=r"cannot use device 'cuda': CUDA out of memory.*MiB\.;"):
        pick_device("cuda")


def test_loading_to_a_missing_device_does_not_call_the_file_damaged(make_model, tmp_path):
    save(make_model(), tmp_path / "model.ckpt")
    with pytest.raises(UserError, match="cannot use device 'cuda:99'"):
        load(tmp_path / "model.ckpt", device="cuda:99")
    assert next(load(tmp_path / "model.ckpt", device="meta").parameters()).is_meta


@pytest.mark.parametrize("command", ["verify", "report", "eval", "analyze"])
def test_commands_take_a_device_and_refuse_a_missing_one_in_one_line(command, tmp_path, capsys):
    assert run([command, str(tmp_path / "any.ckpt"), "--device", "cuda:99"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("qsd: error: cannot use device 'cuda:99'")
    assert error.count("\n") == 1


def test_verify_moves_the_model_to_the_device(lively, tmp_path, monkeypatch, capsys):
    model = lively(in_channels=1, num_classes=10)
    save(model, tmp_path / "model.ckpt")
    seen = []

    def verify(model, *_args: object, **_options: object) -> SimpleNamespace:
        seen.append(next(model.parameters()).device.type)
        return SimpleNamespace(table=lambda: "", missing=(), ok=True)

    monkeypatch.setattr(verification, "verify", verify)
    arguments = ["verify", str(tmp_path / "model.ckpt"), "--data.name", "digits"]
    assert run([*arguments, "--device", "meta"]) == 0
    assert run([*arguments, "--device", "cpu"]) == 0
    assert seen == ["meta", "cpu"]


def test_report_measures_on_the_device_and_draws_on_the_cpu(lively, tmp_path, monkeypatch):
    model = lively(in_channels=1, num_classes=10)
    save(model, tmp_path / "model.ckpt")
    seen = []
    analyze = collect.analyze

    def analyzed(subject, *, limit, device):
        seen.append(device)
        return analyze(subject, limit=limit, device="cpu")

    monkeypatch.setattr(collect, "analyze", analyzed)
    keys = {"data.name": "digits"}
    path = str(tmp_path / "model.ckpt")
    result = collect.collect(path, keys, limit=4, batch_size=4, device="somewhere")
    assert seen == ["somewhere"]
    assert next(result.subject.model.parameters()).device.type == "cpu"


@pytest.mark.parametrize("name", ["multi-bit", "binary spikes"])
def test_executors_feed_images_to_the_device_of_the_model(lively, monkeypatch, name):
    model = lively()
    graph = lower(model, info_for(model))
    seen = []

    def record(_model, images):
        seen.append(images.device.type)
        return SimpleNamespace(outputs={"logits": torch.zeros(len(images), 5)}, counts={})

    monkeypatch.setattr(executors, "run_binary_of", record)
    monkeypatch.setattr(executors, "multi_bit_of", lambda m, x: (record(m, x).outputs, {}))
    execute = executors.EXECUTORS[name].factory(model.to("meta"), graph)
    assert execute is not None
    execute(random_pixels(model).numpy(), True)
    assert seen == ["meta"]
