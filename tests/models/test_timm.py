"""The backbone behaves in timm as timm's own do."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path

import pytest
import timm
import torch
from timm.models import group_parameters, save_for_hf
from timm.optim import create_optimizer_v2
from timm.utils.model import freeze_batch_norm_2d
from torch import nn
from torch.nn import functional as F

from qsdformer.data import DataInfo
from qsdformer.data.base import IMAGENET_MEAN, IMAGENET_STD
from qsdformer.errors import UserError
from qsdformer.models import metaspikeformer as backbone
from qsdformer.models.building import timm_inputs
from qsdformer.models.checkpoint import load, save
from qsdformer.models.configs.metaspikeformer import SIZES
from qsdformer.nn.quantizers import QuantLinear

TINY = "metaspikeformer_tiny"


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return timm.create_model(TINY, num_classes=10, in_chans=1).eval()


def test_all_sizes_are_registered():
    assert set(timm.list_models("metaspikeformer*")) == set(SIZES)


def test_names_that_timm_lists_for_the_module_exist():
    assert all(hasattr(backbone, name) for name in backbone.__all__)


def test_create_model_takes_timms_names_and_ours():
    model = timm.create_model(
        TINY, num_classes=10, in_chans=1, drop_path_rate=0.1, weight_bits=2, levels=8
    )
    config = model.config
    assert (config.num_classes, config.in_channels, config.drop_path_rate) == (10, 1, 0.1)
    assert (config.weight_bits, config.levels, config.dims) == (2, 8, (16, 32, 64, 80))
    assert model(torch.randn(2, 1, 32, 32)).shape == (2, 10)
    assert timm.create_model(TINY).config.num_classes == 1000


def test_what_timms_scripts_always_pass_is_accepted():
    model = timm.create_model(
        TINY, pretrained=False, in_chans=3, num_classes=5, drop_rate=0.0, drop_path_rate=None,
        drop_block_rate=None, global_pool="avg", bn_momentum=None, bn_eps=None, scriptable=False,
        checkpoint_path=None,
    )  # fmt: skip
    assert model.num_classes == 5


def test_what_a_neuron_decides_need_not_be_given():
    assert timm.create_model(TINY, neuron="lif").config.levels == 1
    assert timm.create_model(TINY, neuron="relu").config.attention == "softmax"


def test_timm_drops_none_so_the_word_stands_for_full_precision():
    config = timm.create_model(TINY, weight_bits="none", head_bits="none", rectify="none").config
    assert (config.weight_bits, config.stem_bits, config.head_bits) == (None, 8, None)
    assert config.rectify == "none"


@pytest.mark.parametrize("make", [timm.create_model, backbone.create_model])
def test_channels_go_by_timms_name_and_by_ours_and_must_agree(make):
    assert make(TINY, in_chans=1).config.in_channels == 1
    assert make(TINY, in_channels=1).config.in_channels == 1
    model = make(TINY, in_chans=1, in_channels=1)
    assert (model.config.in_channels, model.in_chans) == (1, 1)
    with pytest.raises(UserError, match=r"in_chans=1 and in_channels=3: give one"):
        make(TINY, in_chans=1, in_channels=3)


def _own_model() -> backbone.MetaSpikeFormer:
    model = backbone.create_model(TINY, in_chans=1, num_classes=10, weight_bits=None, levels=8)
    model.reset_classifier(7)
    return model


def _loaded_model(tmp_path: Path) -> backbone.MetaSpikeFormer:
    odd = backbone.create_model(TINY, dims=(4, 6, 8, 8), depth=2, neuron="relu", num_classes=3)
    save(odd, tmp_path / "model.ckpt")
    return load(tmp_path / "model.ckpt")


@pytest.mark.parametrize("safe", [False, True])
@pytest.mark.parametrize("origin", ["timm", "spikformer", "ours", "checkpoint"])
def test_timm_saves_a_model_of_ours_and_builds_it_again(tmp_path, origin, safe):
    torch.manual_seed(0)
    model = {
        "timm": lambda: timm.create_model(TINY, num_classes=4, weight_bits="none", time_steps=2),
        "spikformer": lambda: timm.create_model("spikformer_tiny", num_classes=4),
        "ours": _own_model,
        "checkpoint": lambda: _loaded_model(tmp_path),
    }[origin]()
    save_for_hf(model, tmp_path / "hub", safe_serialization=safe)
    again = timm.create_model(f"local-dir:{tmp_path / 'hub'}", pretrained=True)
    assert again.config == model.config
    images = torch.randn(2, model.in_chans, 32, 32)
    assert torch.equal(again.eval()(images), model.eval()(images))


def test_a_saved_model_tells_timm_what_images_it_was_trained_on(tmp_path):
    info = DataInfo(
        image_size=(20, 28), channels=1, class_names=("a", "b", "c"), mean=(0.3,), std=(0.2,)
    )
    model = backbone.create_model(TINY, dims=(4, 6, 8, 8), depth=2, in_chans=1, num_classes=3)
    save(model, tmp_path / "model.ckpt", info)
    save_for_hf(load(tmp_path / "model.ckpt"), tmp_path / "hub", safe_serialization=True)
    again = timm.create_model(f"local-dir:{tmp_path / 'hub'}", pretrained=True)
    found = timm.data.resolve_model_data_config(again)
    assert found == {
        "input_size": (1, 20, 28),
        "interpolation": "bilinear",
        "mean": [0.3],
        "std": [0.2],
        "crop_pct": 1.0,
        "crop_mode": "center",
    }
    for fit, mode in (("crop", "center"), ("stretch", "squash"), ("pad", "border")):
        assert timm_inputs(dataclasses.replace(info, fit=fit))["crop_mode"] == mode


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"drop_rate": 0.1}, "no dropout; use drop_path_rate"),
        ({"global_pool": "max"}, "only 'avg'"),
        ({"img_size": 224}, "images of any size"),
        ({"output_stride": 8}, "unknown model arguments: output_stride"),
        ({"levels": 0}, "levels=0"),
    ],
)
def test_what_the_model_does_not_have_is_refused(arguments, message):
    with pytest.raises((ValueError, TypeError), match=message):
        timm.create_model(TINY, **arguments)


def test_pretrained_weights_do_not_exist_and_the_error_says_where_to_go():
    with pytest.raises(UserError, match=r"no weights to download: .*import_reference"):
        timm.create_model(TINY, pretrained=True)


@pytest.mark.parametrize("size", [224, 512])
def test_feature_maps_have_the_announced_reductions_and_channels(size):
    model = timm.create_model(TINY, features_only=True).eval()
    assert model.feature_info.reduction() == [2, 4, 8, 16]
    assert model.feature_info.channels() == [8, 16, 32, 80]
    with torch.no_grad():
        maps = model(torch.randn(1, 3, size, size))
    assert [tuple(m.shape) for m in maps] == [
        (1, channels, size // reduction, size // reduction)
        for channels, reduction in zip((8, 16, 32, 80), (2, 4, 8, 16), strict=True)
    ]


def test_feature_maps_can_be_chosen():
    model = timm.create_model(TINY, features_only=True, out_indices=(1, 2), in_chans=1).eval()
    assert model.feature_info.reduction() == [4, 8]
    assert [m.shape[1] for m in model(torch.randn(1, 1, 64, 64))] == [16, 32]
    # The stages behind the last map are gone.
    assert not any("stages.3" in name for name, _ in model.named_parameters())


def test_feature_maps_of_many_time_steps_are_their_mean():
    model = timm.create_model(TINY, features_only=True, time_steps=2).eval()
    assert [m.shape[0] for m in model(torch.randn(3, 3, 32, 32))] == [3, 3, 3, 3]


def test_hooks_find_the_modules_that_feature_info_names():
    torch.manual_seed(0)
    hooked = timm.create_model(TINY, features_only=True, feature_cls="hook").eval()
    images = torch.randn(1, 3, 64, 64)
    assert [m.shape[-1] for m in hooked(images)] == [32, 16, 8, 4]


def test_forward_intermediates_gives_last_features_and_maps(model):
    images = torch.randn(2, 1, 48, 48)
    last, maps = model.forward_intermediates(images)
    assert torch.equal(last, model.forward_features(images))
    assert torch.equal(maps[-1], last)
    assert [m.shape[-1] for m in maps] == [24, 12, 6, 3]
    assert torch.equal(model.forward_head(last), model(images))


@pytest.mark.parametrize(
    ("indices", "channels"), [(None, [8, 16, 32, 80]), (2, [32, 80]), ([0, 2], [8, 32]), (-1, None)]
)
def test_forward_intermediates_takes_timms_forms_of_indices(model, indices, channels):
    images = torch.randn(1, 1, 32, 32)
    if channels is None:
        with pytest.raises(ValueError, match="feature maps"):
            model.forward_intermediates(images, indices=indices)
        return
    maps = model.forward_intermediates(images, indices=indices, intermediates_only=True)
    assert [m.shape[1] for m in maps] == channels


@pytest.mark.parametrize("indices", [5, [4], [-5], []])
def test_feature_indices_that_do_not_exist_are_refused(model, indices):
    with pytest.raises(ValueError, match="feature"):
        model.forward_intermediates(torch.randn(1, 1, 32, 32), indices=indices)


def test_forward_intermediates_can_stop_early(model):
    images = torch.randn(1, 1, 32, 32)
    last, maps = model.forward_intermediates(images, indices=[-4, 1], stop_early=True)
    assert [m.shape[1] for m in maps] == [8, 16]
    assert torch.equal(last, maps[1])


@pytest.mark.parametrize("arguments", [{"norm": True}, {"output_fmt": "NLC"}])
def test_forward_intermediates_refuses_what_it_does_not_do(model, arguments):
    with pytest.raises(ValueError, match=next(iter(arguments))):
        model.forward_intermediates(torch.randn(1, 1, 32, 32), **arguments)


def test_the_classifier_can_be_replaced_and_removed():
    model = timm.create_model(TINY, num_classes=10, head_bits=8).eval()
    assert model.get_classifier() is model.head
    model.reset_classifier(3)
    assert isinstance(model.get_classifier(), QuantLinear)
    assert (model.head.out_features, model.head.bits) == (3, 8)
    assert (model.num_classes, model.config.num_classes) == (3, 3)
    images = torch.randn(2, 3, 32, 32)
    assert model(images).shape == (2, 3)
    model.reset_classifier(0)
    assert model.num_classes == 0
    assert model(images).shape == (2, model.num_features)
    assert model.num_features == model.head_hidden_size == 80
    with pytest.raises(ValueError, match="only 'avg'"):
        model.reset_classifier(3, global_pool="max")


def test_a_new_classifier_is_like_the_rest_of_the_network():
    model = timm.create_model("metaspikeformer_tiny", num_classes=5).to(torch.bfloat16).eval()
    model.reset_classifier(7)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert not any(module.training for module in model.modules())


def test_stages_that_are_pruned_are_announced_no_more():
    model = timm.create_model("metaspikeformer_tiny")
    model.prune_intermediate_layers([1])
    maps = model.forward_intermediates(torch.rand(1, 3, 64, 64), intermediates_only=True)
    assert [m.shape[1] for m in maps] == [info["num_chs"] for info in model.feature_info]
    assert len(maps) == 2


def test_timms_record_names_the_first_convolution_and_the_classifier(model):
    config = model.pretrained_cfg
    assert model.get_submodule(config["classifier"]) is model.head
    assert model.get_submodule(config["first_conv"]) is model.stages[0].downsample.conv
    data = timm.data.resolve_model_data_config(model)
    assert (data["input_size"], data["interpolation"]) == ((3, 224, 224), "bicubic")


def test_the_statistics_of_imagenet_are_timms():
    assert (IMAGENET_MEAN, IMAGENET_STD) == (
        timm.data.IMAGENET_DEFAULT_MEAN,
        timm.data.IMAGENET_DEFAULT_STD,
    )


def test_layer_groups_follow_the_depth(model):
    groups = group_parameters(model, model.group_matcher())
    names = [name for group in groups.values() for name in group]
    assert sorted(names) == sorted(name for name, _ in model.named_parameters())
    # Stem, stages 0 and 1, two blocks of 2, two of 3, one of 4, head.
    assert [group[0] for _, group in sorted(groups.items())] == [
        "stages.0.downsample.conv.weight",
        "stages.0.blocks.0.sepconv.pointwise1.weight",
        "stages.1.downsample.conv.weight",
        "stages.2.downsample.conv.weight",
        "stages.2.blocks.1.sepconv.pointwise1.weight",
        "stages.3.downsample.conv.weight",
        "stages.3.blocks.1.attention.q.conv.pointwise1.weight",
        "stages.4.downsample.conv.weight",
        "head.weight",
    ]
    coarse = group_parameters(model, model.group_matcher(coarse=True))
    assert len(coarse) == 7


def test_layer_wise_rates_fall_towards_the_stem_and_step_sizes_do_not_decay(model):
    optimizer = create_optimizer_v2(model, opt="adamw", weight_decay=0.05, layer_decay=0.7)
    settings = {
        id(p): (group["lr_scale"], group["weight_decay"])
        for group in optimizer.param_groups
        for p in group["params"]
    }
    by_name = {name: settings[id(p)] for name, p in model.named_parameters()}
    assert by_name["head.weight"] == (1.0, 0.05)
    assert by_name["stages.4.blocks.0.mlp.fc1.weight"] == (pytest.approx(0.7), 0.05)
    assert by_name["stages.0.downsample.conv.weight"] == (pytest.approx(0.7**8), 0.05)
    one_dimensional = {n for n, p in model.named_parameters() if p.dim() == 1}
    assert all(by_name[name][1] == 0 for name in one_dimensional)
    steps = model.no_weight_decay()
    assert steps == {n for n in one_dimensional if n.endswith("log_step_size")}
    assert steps


@pytest.mark.parametrize("bits", [None, 4])
def test_gradient_checkpointing_changes_neither_gradients_nor_statistics(make_model, bits):
    images, labels = torch.randn(4, 3, 32, 32), torch.arange(4)

    def train(checkpointing: bool) -> tuple[dict, dict]:
        model = make_model(weight_bits=bits, drop_path_rate=0.5, time_steps=2)
        model.set_grad_checkpointing(checkpointing)
        torch.manual_seed(0)
        for _ in range(2):
            F.cross_entropy(model(images), labels).backward()
        gradients = {f"grad of {n}": p.grad for n, p in model.named_parameters()}
        return gradients, dict(model.named_buffers())

    gradients, buffers = train(False)
    other_gradients, other_buffers = train(True)
    assert buffers.keys() == other_buffers.keys()
    for name, value in buffers.items():
        assert torch.equal(value, other_buffers[name]), name
    # A weight that is used twice sums its gradients in another order.
    for name, value in gradients.items():
        torch.testing.assert_close(value, other_gradients[name], rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.parametrize("training", [True, False])
def test_gradient_checkpointing_really_recomputes(make_model, training):
    model = make_model().train(training)  # in evaluation: fine-tuning with frozen norms
    calls = []
    block = model.stages[3].blocks[0]
    block.register_forward_pre_hook(lambda *_: calls.append(1))
    for enable, expected in ((False, 1), (True, 2)):
        model.set_grad_checkpointing(enable)
        calls.clear()
        model(torch.randn(2, 3, 32, 32)).sum().backward()
        assert len(calls) == expected


@pytest.mark.parametrize("convert", [freeze_batch_norm_2d, nn.SyncBatchNorm.convert_sync_batchnorm])
def test_a_model_with_converted_norms_computes_the_same(make_model, settle, convert):
    model = settle(make_model(), size=32)
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    keys = model.state_dict().keys()
    norms = [n for n, m in model.named_modules() if isinstance(m, nn.BatchNorm2d)]
    with torch.no_grad():
        expected = model(images)
        converted = convert(copy.deepcopy(model)).eval()
        got = converted(images)
    assert not [m for m in converted.modules() if type(m) is nn.BatchNorm2d]
    assert len(norms) > 20
    assert set(converted.state_dict()) <= set(keys)
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


def test_a_model_with_frozen_norms_trains_without_moving_their_statistics(make_model):
    model = freeze_batch_norm_2d(make_model()).train()
    before = {n: b.clone() for n, b in model.named_buffers()}
    model(torch.randn(2, 3, 32, 32)).sum().backward()
    for name, buffer in model.named_buffers():
        assert torch.equal(buffer, before[name]), name
    assert all(p.grad is not None for p in model.parameters())
