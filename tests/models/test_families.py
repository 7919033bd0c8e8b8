"""SDT v1, Spikformer and E-SpikeFormer: sizes, gradients, neurons, bits, tracing, timm."""

from __future__ import annotations

import dataclasses
import math

import pytest
import timm
import torch
from timm.models import save_for_hf
from torch import fx, nn
from torch.nn import functional as F

from qsdformer.errors import UserError
from qsdformer.models import building, registry
from qsdformer.models.building import create_model
from qsdformer.models.checkpoint import KEY, load, save
from qsdformer.models.e_spikeformer import ESpikeFormerConfig
from qsdformer.models.registry import Family, families, model_config, register
from qsdformer.models.sdt import SDTConfig
from qsdformer.models.spikformer import SpikformerConfig
from qsdformer.nn.attention import SoftmaxAttention, SpikeAttention
from qsdformer.nn.neurons import LIF, SpikingNeuron
from qsdformer.nn.pointwise import MaskAttention, PlanePool
from qsdformer.nn.quantizers import QuantConv2d, QuantLinear, quantized_layers
from qsdformer.nn.taps import spiking_neurons, tap
from qsdformer.nn.timing import TimeInput, TimeMean, TimeRepeat

NEW = ("sdt", "spikformer", "e_spikeformer")
FULL = {"weight_bits": None, "stem_bits": None, "head_bits": None}
SMALL = {
    "sdt": {"width": 16, "depth": 2, "heads": 2, "pooling": "0111"},
    "spikformer": {"width": 16, "depth": 2, "heads": 2, "pooling": "0111"},
    "e_spikeformer": {"dims": (4, 6, 8, 8), "depth": 2, "heads": 2, "stem_kernel": 3},
}
LIF_FIELDS = {"neuron": "lif", "levels": 1, "rectify": "all", "residual_gain": 1.0}


def small(family: str, **fields):
    torch.manual_seed(0)
    config = families()[family].config
    return building.build(config(**{**SMALL[family], "num_classes": 5, **fields}))


def lively(family: str, **fields):
    """A small model in eval mode with statistics of random images."""
    model = small(family, **fields)
    generator = torch.Generator().manual_seed(1)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None  # plain averages
    with torch.no_grad():
        for _ in range(5):
            model(torch.randn(8, 3, 32, 32, generator=generator))
    return model.eval()


# Parameters with 1000 classes (or the set's own), measured on the published programs. Without
# the weights that these hold and never use: talking_heads (h*h a block) in SDT v1, two layer
# norms (4 widths a block) in Spikformer.
SDT_SIZES = {
    "sdt_8_384": (1000, 16_816_536, 8),
    "sdt_6_512": (1000, 23_373_736, 6),
    "sdt_8_512": (1000, 29_689_896, 8),
    "sdt_10_512": (1000, 36_006_056, 10),
    "sdt_8_768": (1000, 66_339_144, 8),
    "sdt_cifar_2_512": (10, 10_233_546, 2),
    "sdt_cifar_2_256": (10, 2_567_082, 2),
    "sdt_cifar10dvs_2_256": (10, 2_566_794, 2),
    "sdt_gesture_2_256": (11, 2_567_051, 2),
}
SPIKFORMER_SIZES = {
    "spikformer_8_384": (1000, 16.81),
    "spikformer_6_512": (1000, 23.37),
    "spikformer_8_512": (1000, 29.68),
    "spikformer_10_512": (1000, 36.01),
    "spikformer_8_768": (1000, 66.34),
}
E_SIZES = {
    "e_spikeformer_3m": 2_702_048,
    "e_spikeformer_5m": 5_105_608,
    "e_spikeformer_10m": 10_023_112,
    "e_spikeformer_19m": 18_987_504,
}


def parameters(name: str, classes: int) -> int:
    with torch.device("meta"):
        model = create_model(name, num_classes=classes, **FULL)
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(("name", "expected"), SDT_SIZES.items())
def test_sdt_has_the_published_parameters_but_for_talking_heads(name, expected):
    classes, published, depth = expected
    assert parameters(name, classes) == published - depth * 64


@pytest.mark.parametrize(("name", "expected"), SPIKFORMER_SIZES.items())
def test_spikformer_has_the_papers_parameters(name, expected):
    classes, millions = expected
    assert parameters(name, classes) / 1e6 == pytest.approx(millions, abs=0.01)


def test_spikformer_cifar_has_the_published_parameters_but_for_the_layer_norms():
    built = parameters("spikformer_cifar_4_384", 10) + 4 * 4 * 384
    assert built / 1e6 == pytest.approx(9.33, abs=0.005)


@pytest.mark.parametrize(("name", "expected"), E_SIZES.items())
def test_e_spikeformer_has_the_published_parameters(name, expected):
    assert parameters(name, 1000) == expected


@pytest.mark.parametrize("family", NEW)
def test_the_tiny_size_has_about_half_a_million_parameters(family):
    assert 300_000 < parameters(f"{family}_tiny", 10) < 600_000


@pytest.mark.parametrize("family", ["sdt", "spikformer"])
def test_the_stem_may_have_other_widths_and_more_or_fewer_steps(family, tmp_path):
    def channels(model):
        return [(step.conv.in_channels, step.conv.out_channels) for step in model.stem.convs]

    published = small(family)
    assert channels(published) == [(3, 2), (2, 4), (4, 8), (8, 16)]
    # Files of published stems are those of before there were others.
    assert "stem_widths" not in published.config.to_dict()
    model = small(family, stem_widths=[5, 12, 7])
    assert channels(model) == [(3, 5), (5, 12), (12, 7), (7, 16)]
    assert channels(building.build(model.config.ann())) == channels(model)
    save(model, tmp_path / "model.ckpt")
    assert load(tmp_path / "model.ckpt").config.stem_widths == (5, 12, 7)
    deep = small(family, stem_widths=[5, 6, 7, 8, 9], pooling="011001")
    assert channels(deep) == [(3, 5), (5, 6), (6, 7), (7, 8), (8, 9), (9, 16)]
    assert deep.forward_features(torch.zeros(1, 3, 32, 32)).shape == (1, 16, 4, 4)
    shallow = small(family, stem_widths=[5], pooling="01")
    assert channels(shallow) == [(3, 5), (5, 16)]
    assert shallow.forward_features(torch.zeros(1, 3, 32, 32)).shape == (1, 16, 16, 16)


def test_event_sizes_take_frames_of_two_channels():
    model = create_model("sdt_cifar10dvs_2_256", width=16, heads=2, time_steps=2).eval()
    assert model.config.dvs_mode
    with torch.no_grad():
        assert model(torch.randn(2, 1, 2, 32, 32)).shape == (1, 1000)
    with pytest.raises(UserError, match="images with 3 frames: this model has 2 time steps"):
        model(torch.randn(3, 1, 2, 32, 32))
    with pytest.raises(UserError, match=r"\(B, 2, H, W\)"):
        model(torch.randn(1, 3, 32, 32))


@pytest.mark.parametrize("family", NEW)
@pytest.mark.parametrize(
    "fields",
    [
        {"levels": 4},
        {"levels": 1, "time_steps": 2},
        {**LIF_FIELDS, "time_steps": 2},
        {"neuron": "relu", **FULL},
        {"attention_norm": True},
    ],
    ids=["ielif", "ielif-T2", "lif", "relu", "norm"],
)
def test_every_trainable_parameter_gets_a_finite_gradient(family, fields):
    model = small(family, **fields)
    images, labels = torch.randn(8, 3, 32, 32), torch.arange(8) % 5
    F.cross_entropy(model(images), labels).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


@pytest.mark.parametrize("family", NEW)
@pytest.mark.parametrize("bits", [2, 4, 8, None])
@pytest.mark.parametrize("neuron", [{"levels": 4}, {**LIF_FIELDS, "time_steps": 2}])
def test_all_bits_run_with_both_neurons(family, bits, neuron):
    fields = dict.fromkeys(FULL, bits)
    model = lively(family, **neuron, **fields)
    assert {layer.bits for layer in quantized_layers(model).values()} == {bits}
    with torch.no_grad():
        assert model(torch.randn(2, 3, 32, 32)).isfinite().all()


@pytest.mark.parametrize("family", NEW)
@pytest.mark.parametrize("neuron", [{"levels": 4}, {**LIF_FIELDS, "time_steps": 4}])
def test_all_neurons_of_a_small_network_can_fire(family, neuron):
    model = lively(family, **neuron)
    with torch.no_grad(), tap(model, *spiking_neurons(model)) as acts:
        model(torch.randn(8, 3, 32, 32))
    silent = [name for name, values in acts.items() if not (values > 0).any()]
    assert not silent


@pytest.mark.parametrize("family", NEW)
def test_values_are_whole_counts_of_the_neurons_step(family):
    model = lively(family, levels=4)
    neurons = spiking_neurons(model)
    with torch.no_grad(), tap(model, *neurons) as acts:
        model(torch.randn(2, 3, 32, 32))
    for name, values in acts.items():
        counts = neurons[name].counts(values)
        assert torch.equal(counts * neurons[name].step, values), name
        assert 0 <= counts.min() <= counts.max() <= neurons[name].levels, name


def test_spikformers_stream_is_a_sum_of_counts_that_grows_by_two_neurons_a_block():
    model = lively("spikformer", levels=4, depth=3)
    with torch.no_grad(), tap(model, "stem", "blocks.*") as acts:
        model(torch.randn(2, 3, 32, 32))
    for number, name in enumerate(("stem", "blocks.0", "blocks.1", "blocks.2")):
        counts = acts[name] * 4
        assert torch.equal(counts, counts.round())
        assert counts.max() <= 4 * (2 + 2 * number)


@pytest.mark.parametrize("dvs_mode", [False, True])
def test_sdts_mask_is_an_or_over_tokens_at_one_level(dvs_mode):
    config = SDTConfig(**SMALL["sdt"], levels=1, dvs_mode=dvs_mode)
    lif = config.replace(neuron="lif", time_steps=4)
    steps = config.replace(time_steps=4)
    images = (torch.rand(3, 8, 16, 4, 4) < 0.2).float()
    q, k, v = images
    for one in (config, steps, lif):
        core = MaskAttention(one, 16, 2, threshold=0.5, norm=False, dvs_mode=dvs_mode)
        pooled = [F.max_pool2d(x, 3, 1, 1) if dvs_mode else x for x in (k, v)]
        planes = PlanePool(2) if dvs_mode else nn.Identity()
        products = planes(pooled[0] * pooled[1])
        expected = planes(q * products.amax(dim=(2, 3), keepdim=True))
        assert torch.equal(core(q, k, v), expected)


def test_sdts_mask_stays_binary_at_many_levels():
    model = lively("sdt", levels=4)
    name = "blocks.0.attention.projection"
    with torch.no_grad(), tap(model, name, inputs=True) as before, tap(model, "*q_neuron") as q:
        model(torch.randn(2, 3, 32, 32))
    kept = before[name] > 0
    assert 0 < kept.sum() < kept.numel()
    assert torch.equal(before[name][kept], q["blocks.0.attention.q_neuron"][kept])


def test_the_plane_pool_mixes_neighbouring_tokens_and_channels_of_one_head():
    x = torch.zeros(1, 4, 2, 2)
    x[0, 1, 0, 1] = 1.0  # head 0 of two, channel 1, token 1
    pooled = PlanePool(2)(x)
    assert torch.equal(pooled[0, :2].flatten(1), torch.tensor([[1.0, 1, 1, 0]] * 2))
    assert not pooled[0, 2:].any()


def test_e_spikeformer_drops_whole_blocks_in_training():
    model = small("e_spikeformer", drop_path_rate=1 - 1e-9).train()
    with tap(model, "stages.4.downsample", "stages.4.blocks.0") as acts:
        model(torch.randn(4, 3, 32, 32))
    assert torch.equal(acts["stages.4.downsample"], acts["stages.4.blocks.0"])


def test_e_spikeformers_attention_scale_is_2_over_the_root_of_a_heads_width():
    model = small("e_spikeformer", dims=(4, 6, 16, 32), heads=2)
    assert model.stages[3].blocks[0].attention.core.scale == 2 / math.sqrt(8)
    assert model.stages[4].blocks[0].attention.core.scale == 2 / math.sqrt(16)
    assert model.neuron.step == 1.0


@pytest.mark.parametrize("family", NEW)
def test_the_ann_has_the_same_taps_and_token_grids(family):
    model = small(family, **LIF_FIELDS, time_steps=2)
    ann = building.build(model.config.ann("gelu"))
    assert not spiking_neurons(ann)
    assert all(layer.bits is None for layer in quantized_layers(ann).values())
    shapes = []
    for network in (model, ann):
        with torch.no_grad(), tap(network.eval(), "*.attention.[qkv]_neuron") as acts:
            network(torch.randn(1, 3, 32, 32))
        shapes.append({name: values.shape[1:] for name, values in acts.items()})
    assert shapes[0] == shapes[1]
    assert len(shapes[0]) == 6


LEAVES = (
    TimeInput, TimeMean, TimeRepeat, SpikeAttention, SoftmaxAttention, PlanePool,
    SpikingNeuron, QuantConv2d, QuantLinear,
)  # fmt: skip


class Tracer(fx.Tracer):
    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        return isinstance(module, LEAVES) or super().is_leaf_module(module, name)


@pytest.mark.parametrize("family", ["sdt", "spikformer"])
@pytest.mark.parametrize("fields", [{}, {**LIF_FIELDS, "time_steps": 2}, {"neuron": "relu"}])
def test_symbolic_tracing_gives_the_same_logits_at_any_size(family, fields):
    model = lively(family, **fields)
    traced = fx.GraphModule(model, Tracer().trace(model))
    for size in (32, 24):
        images = torch.randn(2, 3, size, size)
        with torch.no_grad():
            assert torch.equal(traced(images), model(images))


@pytest.mark.parametrize("family", NEW)
def test_a_checkpoint_of_any_family_loads(family, tmp_path):
    model = lively(family, time_steps=2)
    save(model, tmp_path / "model.ckpt")
    again = load(tmp_path / "model.ckpt")
    assert type(again) is type(model)
    assert again.config == model.config
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(again(images), model(images))


@pytest.mark.parametrize("family", NEW)
def test_a_configuration_survives_storing_and_names_its_family(family):
    config = families()[family].config(**SMALL[family], levels=8)
    assert config.to_dict()["family"] == family
    assert registry.config_from_dict(config.to_dict()) == config


def test_a_stored_configuration_without_a_family_is_a_metaspikeformers():
    values = model_config("metaspikeformer_tiny").to_dict()
    assert "family" not in values
    assert registry.config_from_dict(values) == model_config("metaspikeformer_tiny")
    with pytest.raises(ValueError, match="unknown model family 'resnet': known are"):
        registry.config_from_dict({"family": "resnet"})


def test_a_checkpoint_of_an_unknown_family_is_not_called_damaged(tmp_path):
    save(small("sdt"), tmp_path / "model.ckpt")
    content = torch.load(tmp_path / "model.ckpt", weights_only=True)
    content[KEY]["model_config"]["family"] = "resnet"
    torch.save(content, tmp_path / "model.ckpt")
    with pytest.raises(UserError, match=r"unknown model family 'resnet'.*another version") as error:
        load(tmp_path / "model.ckpt")
    assert "damaged" not in str(error.value)


def test_names_cannot_be_registered_twice():
    family = families()["sdt"]
    with pytest.raises(ValueError, match="a family named sdt is registered already"):
        register(family)

    class Other(SDTConfig):
        family = "other"

    with pytest.raises(ValueError, match="a model named sdt_tiny is registered already"):
        register(Family(config=Other, model=family.model, sizes=family.sizes))


def test_fields_of_the_same_name_have_the_same_type_in_all_families():
    kinds: dict[str, str] = {}
    for family in families().values():
        for field in dataclasses.fields(family.config):
            assert kinds.setdefault(field.name, field.type) == field.type, field.name


def test_a_field_of_another_family_is_refused_with_its_owner():
    with pytest.raises(UserError, match="sdt has no field dims; it is for metaspikeformer, e_sp"):
        create_model("sdt_tiny", dims=(8, 8, 8, 8))
    with pytest.raises(UserError, match="spikformer has no field colour; known: in_channels"):
        create_model("spikformer_tiny", colour=1)


@pytest.mark.parametrize(
    ("config", "fields", "message"),
    [
        (SDTConfig, {"pooling": "111"}, "pooling='111': must be 4 digits of 0 and 1"),
        (SDTConfig, {"pooling": 1111}, "pooling=1111: must be 4 digits of 0 and 1"),
        (SDTConfig, {"width": 100}, "width=100: must be a multiple of 8"),
        (
            SDTConfig,
            {"stem_widths": (8, 8)},
            "pooling='1111': must be 3 digits of 0 and 1, one for",
        ),
        (SDTConfig, {"stem_widths": ()}, r"stem_widths=\(\): must be numbers from 1 to 65536, or"),
        (SDTConfig, {"stem_widths": (8, 8, 0)}, "stem_widths=.*must be numbers from 1 to 65536"),
        (SDTConfig, {"stem_widths": 8}, "stem_widths=8: must be numbers from 1 to 65536, or none"),
        (SDTConfig, {"heads": 7}, "heads=7 does not divide the block width 512"),
        (SDTConfig, {"dvs_mode": 1}, "dvs_mode=1: must be true or false"),
        (SpikformerConfig, {"attention_scale": 0.0}, "attention_scale=0.0: must be above 0"),
        (SpikformerConfig, {"mlp_ratio": 0}, "mlp_ratio=0: must be a whole number"),
        (ESpikeFormerConfig, {"rounding": "down"}, "rounding='down': must be one of up, even"),
        (ESpikeFormerConfig, {"dims": (7, 8, 8, 8)}, "dims="),
    ],
)
def test_a_bad_value_is_refused_with_its_field_and_itself(config, fields, message):
    with pytest.raises(ValueError, match=message):
        config(**fields)


@pytest.mark.parametrize("name", [f"{family}_tiny" for family in NEW])
def test_timm_makes_the_new_families(name):
    model = timm.create_model(name, num_classes=7, in_chans=1, levels=2)
    assert (model.num_classes, model.in_chans, model.config.levels) == (7, 1, 2)
    assert model.get_submodule(model.pretrained_cfg["first_conv"]).in_channels == 1
    model.reset_classifier(3)
    assert model.eval()(torch.randn(2, 1, 32, 32)).shape == (2, 3)
    groups = timm.models.group_parameters(model, model.group_matcher())
    grouped = sorted(parameter for group in groups.values() for parameter in group)
    assert grouped == sorted(name for name, _ in model.named_parameters())


@pytest.mark.parametrize("name", [f"{family}_tiny" for family in NEW])
def test_timm_saves_a_model_and_builds_it_again(name, tmp_path):
    model = create_model(name, num_classes=4, in_channels=1, weight_bits=None, levels=2).eval()
    save_for_hf(model, tmp_path, safe_serialization=True)
    again = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    assert again.config == model.config
    images = torch.randn(2, 1, 32, 32)
    with torch.no_grad():
        assert torch.equal(again(images), model(images))


def test_all_sizes_are_in_timm():
    assert all(timm.is_model(name) for name in registry.sizes())


def test_e_spikeformer_gives_feature_maps_and_networks_of_one_grid_say_why_not():
    model = timm.create_model("e_spikeformer_tiny", features_only=True).eval()
    maps = model(torch.randn(1, 3, 64, 64))
    assert [tuple(m.shape[1:]) for m in maps] == [(8, 32, 32), (16, 16, 16), (32, 8, 8), (80, 4, 4)]
    for name in ("sdt_tiny", "spikformer_tiny"):
        with pytest.raises(UserError, match="features_only needs maps of several strides"):
            timm.create_model(name, features_only=True)


@pytest.mark.parametrize("name", ["sdt_tiny", "spikformer_tiny"])
def test_what_a_family_cannot_do_is_refused(name):
    model = create_model(name)
    model.set_grad_checkpointing(False)
    with pytest.raises(ValueError, match="no gradient checkpointing"):
        model.set_grad_checkpointing()


def test_lif_in_attention_has_half_the_threshold():
    for family in ("sdt", "spikformer"):
        model = small(family, neuron="lif", levels=1, time_steps=2)
        thresholds = {
            name.rpartition(".")[2]: neuron.threshold
            for name, neuron in model.named_modules()
            if isinstance(neuron, LIF)
        }
        inner = "mask_neuron" if family == "sdt" else "attention_neuron"
        assert thresholds.pop(inner) == 0.5
        model = small(
            family, neuron="lif", levels=1, time_steps=2, attention_norm=True, rectify="qkv"
        )
        norms = dict(model.named_modules())
        norm = next(n for n in norms if n.endswith(("mask_norm", "attention_norm")))
        assert torch.all(norms[norm].bias == 0.5)  # centred in that neuron's firing window
        assert set(thresholds.values()) == {1.0}
