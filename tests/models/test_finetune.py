"""Fine-tuning starts from what fits of another network, and says what did not."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from variants import info_for

from qsdformer.data import DataInfo
from qsdformer.errors import UserError
from qsdformer.models.checkpoint import KEY, read, save_checkpoint, write
from qsdformer.models.finetune import adapt_channels, start_from
from qsdformer.models.metaspikeformer import MetaSpikeFormer
from qsdformer.models.published import import_reference
from qsdformer.nn.quantizers import initial_step_size, quantized_layers

Make = Callable[..., MetaSpikeFormer]


@pytest.fixture
def saved(lively: Make, tmp_path: Path) -> Path:
    """A checkpoint of a 3-channel network with 5 classes, 4-bit weights, 8-bit stem and head."""
    model = lively()
    save_checkpoint(tmp_path / "start.ckpt", model, info_for(model))
    return tmp_path / "start.ckpt"


def other(make_model: Make, **fields: Any) -> tuple[MetaSpikeFormer, DataInfo]:
    torch.manual_seed(9)
    model = make_model(**fields)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return model, info_for(model)


def test_the_same_network_takes_everything(make_model: Make, lively: Make, saved: Path) -> None:
    model, info = other(make_model)
    [line] = start_from(model, saved, info)
    assert line.endswith("100.0% of this model's values")
    wanted = lively().state_dict()
    assert all(torch.equal(value, wanted[key]) for key, value in model.state_dict().items())


def test_a_head_for_other_classes_starts_anew(make_model: Make, lively: Make, saved: Path) -> None:
    for count in (7, 5):
        model, info = other(make_model, num_classes=count)
        before = model.head.weight.clone()
        info = dataclasses.replace(info, class_names=tuple(f"other {i}" for i in range(count)))
        lines = start_from(model, saved, info)
        why = "5 other classes" if count == 5 else "5 classes there, 7 here"
        assert lines[1:] == [
            f"  newly initialised: head.weight, head.bias, head.log_step_size ({why})"
        ]
        assert torch.equal(model.head.weight, before)
        state = lively().state_dict()
        taken = {k for k, v in model.state_dict().items() if k in state and v.equal(state[k])}
        assert {k for k in state if not k.startswith("head.")} <= taken


@pytest.mark.parametrize(("before", "now"), [(3, 1), (1, 3)])
def test_grey_images_give_the_first_convolution_what_they_gave_it_in_colour(
    make_model: Make, lively: Make, tmp_path: Path, before: int, now: int
) -> None:
    old = lively(in_channels=before)
    save_checkpoint(tmp_path / "a.ckpt", old, info_for(old))
    model, info = other(make_model, in_channels=now)
    lines = start_from(model, tmp_path / "a.ckpt", info)
    assert lines[1] == f"  adapted to {now} channels: stages.0.downsample.conv.weight"
    layer, old_layer = model.stages[0].downsample.conv, old.stages[0].downsample.conv
    grey = torch.randn(2, 1, 16, 16)
    outputs = [
        torch.nn.functional.conv2d(grey.expand(-1, channels, -1, -1), one.weight)
        for one, channels in ((old_layer, before), (layer, now))
    ]
    torch.testing.assert_close(*outputs, atol=1e-5, rtol=1e-5)
    assert torch.equal(layer.log_step_size, initial_step_size(layer.weight, 8).log())
    assert "stages.0.downsample.conv" in lines[2]


@pytest.mark.parametrize(("before", "now"), [(2, 3), (4, 1), (2, 4), (3, 6), (1, 5)])
def test_any_number_of_channels_becomes_any_other_with_the_same_sums(before: int, now: int) -> None:
    state = {"stem": torch.randn(2, before, 3, 3)}
    weight = state["stem"]
    assert adapt_channels(state, "stem", now)
    assert state["stem"].shape == (2, now, 3, 3)
    torch.testing.assert_close(state["stem"].sum(1), weight.sum(1))


def test_other_bits_start_their_step_sizes_from_the_loaded_weights(
    make_model: Make, lively: Make, saved: Path
) -> None:
    model, info = other(make_model, weight_bits=2, levels=2)
    lines = start_from(model, saved, info)
    assert lines[1].startswith("  step sizes started from the weights: stages.0.blocks.0.sepconv.")
    old = quantized_layers(lively())
    for name, layer in quantized_layers(model).items():
        assert torch.equal(layer.weight, old[name].weight)
        kept = layer.bits == old[name].bits
        start = initial_step_size(layer.weight, layer.bits).log()
        wanted = old[name].log_step_size if kept else start
        assert torch.equal(layer.log_step_size, wanted), name


def test_ternary_weights_do_not_take_the_step_sizes_of_two_bits(make_model, tmp_path) -> None:
    old = make_model(weight_bits=2)
    save_checkpoint(tmp_path / "a.ckpt", old, info_for(old))
    model, info = other(make_model, weight_bits="ternary")
    lines = start_from(model, tmp_path / "a.ckpt", info)
    assert lines[1].startswith("  step sizes started from the weights: ")
    layer = model.stages[0].blocks[0].conv1
    assert torch.equal(layer.log_step_size, initial_step_size(layer.weight, "ternary").log())


def test_full_precision_first_then_bits_and_another_neuron(
    make_model: Make, lively: Make, tmp_path: Path
) -> None:
    full = {"weight_bits": None, "stem_bits": None, "head_bits": None}
    old = lively(**full)
    save_checkpoint(tmp_path / "full.ckpt", old, info_for(old))
    for fields in ({}, {"neuron": "lif", "time_steps": 2}):
        model, info = other(make_model, **fields)
        lines = start_from(model, tmp_path / "full.ckpt", info)
        assert len(lines) == 2
        for name, layer in quantized_layers(model).items():
            assert torch.equal(layer.weight, quantized_layers(old)[name].weight)
            assert torch.equal(
                layer.log_step_size, initial_step_size(layer.weight, layer.bits).log()
            )


def test_averaged_weights_are_what_is_taken(make_model: Make, saved: Path) -> None:
    content = read(saved)
    state = content["state_dict"]
    averaged = {k.replace("model.", "ema.module.", 1): v + 1 for k, v in state.items()}
    write({KEY: content[KEY], "state_dict": {**state, **averaged}}, saved)
    model, info = other(make_model)
    start_from(model, saved, info)
    assert torch.equal(model.head.weight, state["model.head.weight"] + 1)


def test_a_published_network_is_taken_whole_but_for_its_head(
    fixtures: Path, tmp_path: Path
) -> None:
    old = import_reference(fixtures / "reference_mini.pth", heads=2)
    save_checkpoint(tmp_path / "mini.ckpt", old)
    model = MetaSpikeFormer(old.config.replace(num_classes=3))
    lines = start_from(model, tmp_path / "mini.ckpt", info_for(model))
    assert len(lines) == 2
    assert lines[1].startswith("  newly initialised: head.weight")


def test_a_layer_that_only_one_of_the_two_has_is_named(make_model: Make, saved: Path) -> None:
    model, info = other(make_model, attention_norm=False)
    assert start_from(model, saved, info)[1].startswith(
        "  left out, not in this model: stages.3.blocks.0.attention.attention_norm."
    )
    model, info = other(make_model, layer_scale=0.1)
    assert "newly initialised: stages.3.blocks.0.scale1.scale" in start_from(model, saved, info)[1]


def test_a_network_of_another_shape_is_refused_unchanged(make_model: Make, saved: Path) -> None:
    model, info = other(make_model, dims=(8, 12, 16, 16))
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(UserError, match=r"only \d+% of this model's weights") as error:
        start_from(model, saved, info)
    assert "\n" not in str(error.value)
    assert all(value.equal(before[key]) for key, value in model.state_dict().items())
