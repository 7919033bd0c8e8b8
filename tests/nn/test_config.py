"""The model configuration refuses what cannot be built and survives being stored."""

from __future__ import annotations

import dataclasses
import json

import pytest

from qsdformer.nn.config import ModelConfig, completed


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("in_channels", 0),
        ("in_channels", 1.5),
        ("num_classes", -1),
        ("num_classes", True),
        ("dims", (8, 8, 8)),
        ("dims", 8),
        ("dims", (7, 8, 8, 8)),
        ("dims", (8, 8, 16.0, 16)),
        ("depth", 1),
        ("heads", 0),
        ("stem_kernel", 4),
        ("stem_stride", 4),
        ("drop_path_rate", 1.0),
        ("drop_path_rate", -0.1),
        ("drop_path_rate", "0.1"),
        ("weight_bits", 1),
        ("weight_bits", 9),
        ("weight_bits", 4.5),
        ("stem_bits", 0),
        ("head_bits", 16),
        ("neuron", "izhikevich"),
        ("levels", 0),
        ("levels", 128),
        ("levels", 2.5),
        ("levels", "4"),
        ("time_steps", 0),
        ("decay", 1.5),
        ("tau", 0.5),
        ("tau", float("nan")),
        ("threshold", 0.0),
        ("surrogate", "triangle"),
        ("fully_spiking", 1),
        ("attention", "linear"),
        ("attention_scale", 0.0),
        ("attention_norm", "no"),
        ("attention_gain", -1.0),
        ("rectify", "some"),
        ("residual_gain", 0.0),
        ("layer_scale", float("inf")),
    ],
)
def test_a_bad_value_is_refused_with_its_field_and_itself(field, value):
    with pytest.raises(ValueError, match=field) as caught:
        ModelConfig(**{field: value})
    assert str(value).strip("()") in str(caught.value)
    assert "\n" not in str(caught.value)


def test_heads_must_divide_the_widths_of_both_transformer_stages():
    with pytest.raises(ValueError, match=r"heads=7 does not divide the block width 256"):
        ModelConfig(heads=7)
    with pytest.raises(ValueError, match=r"heads=16 does not divide the block width 360"):
        ModelConfig(heads=16)


def test_neuron_and_attention_have_to_fit():
    with pytest.raises(ValueError, match="softmax"):
        ModelConfig(neuron="relu")
    with pytest.raises(ValueError, match="spike attention"):
        ModelConfig(attention="softmax")
    with pytest.raises(ValueError, match="fully_spiking"):
        ModelConfig(neuron="gelu", attention="softmax", fully_spiking=True)
    with pytest.raises(ValueError, match="set levels to 1"):
        ModelConfig(neuron="lif", levels=4)


def test_the_configuration_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        ModelConfig().levels = 8  # type: ignore[misc]


def test_replace_checks_again():
    assert ModelConfig().replace(levels=8).levels == 8
    with pytest.raises(ValueError, match="levels=0"):
        ModelConfig().replace(levels=0)


def test_the_ann_keeps_the_topology_and_drops_spikes_and_quantisation():
    config = ModelConfig(dims=(8, 8, 16, 16), depth=4, fully_spiking=True, time_steps=2)
    ann = config.ann("gelu")
    assert (ann.dims, ann.depth, ann.heads) == (config.dims, config.depth, config.heads)
    assert not ann.is_spiking
    assert (ann.neuron, ann.attention, ann.time_steps) == ("gelu", "softmax", 1)
    assert ann.weight_bits is ann.stem_bits is ann.head_bits is None
    assert ModelConfig(neuron="lif", levels=1).ann().neuron == "relu"


def test_a_configuration_survives_json():
    config = ModelConfig(dims=(8, 8, 16, 16), layer_scale=0.1, weight_bits=None)
    assert ModelConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_unknown_fields_of_a_stored_configuration_are_named():
    with pytest.raises(ValueError, match="unknown model configuration fields: colour, taste"):
        ModelConfig.from_dict({**ModelConfig().to_dict(), "taste": 1, "colour": 2})


@pytest.mark.parametrize(
    ("depth", "expected"), [(2, (1, 1)), (3, (2, 1)), (8, (6, 2)), (12, (9, 3))]
)
def test_three_quarters_of_the_blocks_are_in_stage_3(depth, expected):
    assert ModelConfig(depth=depth).stage_depths == expected


def test_reductions_follow_the_stem_stride():
    assert ModelConfig().reductions == (2, 4, 8, 16)
    assert ModelConfig(stem_stride=1).reductions == (1, 2, 4, 8)


def test_what_a_neuron_decides_is_added_unless_it_is_given():
    assert completed({"neuron": "lif"}) == {"neuron": "lif", "levels": 1}
    assert completed({"neuron": "lif", "levels": 4})["levels"] == 4
    assert completed({"neuron": "gelu", "depth": 2})["attention"] == "softmax"
    assert completed({"neuron": "relu", "attention": "spike"})["attention"] == "spike"
    for fields in ({}, {"neuron": "ielif"}, {"levels": 8}):
        assert completed(fields) == fields
    for fields in ({"neuron": "lif", "levels": 4}, {"neuron": "relu", "attention": "spike"}):
        with pytest.raises(ValueError, match=r"set levels to 1|softmax"):
            ModelConfig(**completed(fields))
