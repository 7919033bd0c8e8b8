import dataclasses
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from variants import info_for

from qsdformer.data import DataInfo
from qsdformer.errors import UserError
from qsdformer.models.checkpoint import KEY, load, load_checkpoint, save, save_checkpoint, write
from qsdformer.models.metaspikeformer import MetaSpikeFormer, create_model

INFO = DataInfo(
    image_size=16, channels=1, class_names=("a", "b", "c"), mean=(0.3,), std=(0.4,), crop_pct=0.9
)


@pytest.fixture
def model() -> MetaSpikeFormer:
    torch.manual_seed(0)
    return create_model(
        "metaspikeformer_tiny", dims=(8, 8, 8, 8), depth=2, heads=2, in_channels=1, num_classes=3
    )


@pytest.fixture
def file(model: MetaSpikeFormer, tmp_path: Path) -> Path:
    path = tmp_path / "model.ckpt"
    save_checkpoint(path, model, INFO, {"note": "x"})
    return path


def test_loaded_model_computes_the_same(model: MetaSpikeFormer, file: Path) -> None:
    images = torch.randn(4, 1, 16, 16)
    loaded = load_checkpoint(file)
    assert not loaded.model.training
    assert loaded.model.config == model.config
    assert torch.equal(loaded.model(images), model.eval()(images))
    assert (loaded.info, loaded.extra) == (INFO, {"note": "x"})
    assert load(file).data_info == INFO


def test_averaged_weights_are_preferred(model: MetaSpikeFormer, file: Path) -> None:
    content = torch.load(file, weights_only=True)
    averaged = {k: v + 1 for k, v in model.state_dict().items()}
    content["state_dict"] |= {f"ema.module.{k}": v for k, v in averaged.items()}
    write(content, file)
    for key, value in load(file).state_dict().items():
        assert torch.equal(value, averaged[key])


def edit(file: Path, change: Any) -> None:
    content = torch.load(file, weights_only=True)
    change(content)
    torch.save(content, file)


HEAD = "model.head.weight"


def bomb() -> list[Any]:
    """A thousand million values, if it were written out."""
    value: list[Any] = ["x"] * 10
    for _ in range(8):
        value = [value] * 10
    return value


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda c: c["state_dict"].pop(HEAD), "lacks weight head.weight"),
        (lambda c: c["state_dict"].update({"model.x": torch.ones(1)}), "unknown weight x"),
        (
            lambda c: c["state_dict"].update({HEAD: torch.ones(4, 8)}),
            "head.weight has shape (4, 8)",
        ),
        (lambda c: c["state_dict"].update({"y": torch.ones(1)}), "unexpected entry y"),
        (lambda c: c.pop(KEY), "not a checkpoint of qsdformer"),
        (lambda c: c[KEY].update(format_version=99), "checkpoint format 99"),
        (lambda c: c[KEY].update(format_version=bomb()), "checkpoint format list"),
        (lambda c: c[KEY].update(extra=bomb()), "extra=list is not a section"),
        (lambda c: c[KEY].pop("model_config"), "damaged checkpoint header"),
        (lambda c: c[KEY]["model_config"].update(levels=0), "levels=0"),
        (lambda c: c[KEY]["model_config"].update(frobs=1), "frobs"),
        (lambda c: c[KEY]["extra"].update(recipe="x"), "recipe='x' is not a section"),
        (lambda c: c[KEY]["extra"].update(recipe={"data": 3}), "data=3 is not a section"),
        (lambda c: c[KEY].update(extra={"recipe": {"train": None}}), "train=None is not a section"),
        (lambda c: c[KEY].update(extra=5), "extra=5 is not a section"),
        (lambda c: c[KEY].pop("extra"), "extra=None is not a section"),
    ],
)
def test_checkpoint_that_does_not_fit_is_refused_by_name(
    file: Path, change: Any, expected: str
) -> None:
    edit(file, change)
    refused(file, expected)


def test_checkpoint_of_another_architecture_is_refused(file: Path) -> None:
    edit(file, lambda c: c[KEY]["model_config"].update(dims=[8, 8, 16, 16]))
    refused(file, "has shape")


def refused(path: Path, expected: str) -> None:
    with pytest.raises(UserError) as caught:
        load_checkpoint(path)
    assert expected in str(caught.value)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kept", [0, 1, 100, 0.5, 0.999])
def test_truncated_checkpoint_is_refused(file: Path, kept: float) -> None:
    content = file.read_bytes()
    file.write_bytes(content[: int(kept * len(content)) if kept < 1 else int(kept)])
    refused(file, "cut short or damaged")


def test_a_flipped_bit_inside_a_tensor_is_noticed(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    refused(file, "damaged")


@pytest.mark.parametrize("content", [b"hello\n" * 100, b"catalog\n" * 100, b"\x89PNG" * 100])
def test_other_files_are_not_checkpoints(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "file"
    path.write_bytes(content)
    refused(path, "not a checkpoint")


def test_missing_file_and_folder_are_named(file: Path, tmp_path: Path) -> None:
    refused(tmp_path / "absent.ckpt", "no checkpoint")
    file.rename(tmp_path / "best.ckpt")
    refused(tmp_path, f"did you mean {tmp_path / 'best.ckpt'}?")


class Malicious:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("way", ["zip", "legacy", "pickle"])
def test_arbitrary_objects_are_refused_and_not_executed(tmp_path: Path, way: str) -> None:
    path, trace = tmp_path / "bad.ckpt", tmp_path / "executed"
    content = {KEY: Malicious(trace)}
    if way == "pickle":
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=way == "zip")
    refused(path, "refused, it holds Python objects")
    assert not trace.exists()


def test_writing_where_one_may_not_is_one_line_and_leaves_nothing(
    model: MetaSpikeFormer, tmp_path: Path
) -> None:
    blocker = tmp_path / "file"
    blocker.write_text("x")
    with pytest.raises(UserError, match="cannot write"):
        save_checkpoint(blocker / "model.ckpt", model)
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_a_model_of_ones_own_loop_is_saved_and_loaded(tmp_path, make_model):
    model = make_model()
    info = info_for(model)
    save(model, tmp_path / "model.ckpt", info)
    loaded = load(tmp_path / "model.ckpt")
    assert loaded.data_info == info
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(loaded(images), model.eval()(images))
    save(model, tmp_path / "bare.ckpt")
    assert load(tmp_path / "bare.ckpt").data_info is None


def test_saving_refuses_what_would_not_load_or_not_fit(tmp_path, make_model):
    model = make_model()
    path = tmp_path / "model.ckpt"
    wrapper = torch.optim.swa_utils.AveragedModel(model)
    with pytest.raises(UserError, match=r"save a AveragedModel .*: save model.module"):
        save(wrapper, path)
    with pytest.raises(UserError, match=r"OptimizedModule .*: save model._orig_mod"):
        save(torch.compile(model), path)
    with pytest.raises(UserError, match=r"cannot save a Linear as a checkpoint$"):
        save(torch.nn.Linear(2, 2), path)
    grey = dataclasses.replace(info_for(model), channels=1, mean=(0.5,), std=(0.5,))
    with pytest.raises(UserError, match="info says 1 channels, but the model takes 3"):
        save(model, path, grey)
    few = dataclasses.replace(info_for(model), class_names=("a", "b"))
    with pytest.raises(UserError, match="info names 2 classes, but the model has 5"):
        save(model, path, few)
    assert not path.exists()
