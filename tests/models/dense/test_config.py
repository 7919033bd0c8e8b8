"""A dense configuration is checked, travels as plain values, and needs no PyTorch."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

from models.dense.small import backbone, detection, segmentation
from qsdformer.errors import UserError
from qsdformer.models.dense.config import (
    DetectionConfig,
    SegmentationConfig,
    dense_config_from_dict,
)
from qsdformer.models.registry import model_config


@pytest.mark.parametrize("make", [segmentation, detection])
@pytest.mark.parametrize("family", ["metaspikeformer", "e_spikeformer"])
def test_it_survives_plain_values(make: Any, family: str) -> None:
    config = make(backbone=backbone(family), bits=2, norm="frozen", frozen_stages=2)
    values = json.loads(json.dumps(config.to_dict()))
    assert values["task"] == config.task
    assert dense_config_from_dict(values) == config


def test_it_is_read_without_pytorch() -> None:
    code = (
        "import sys, qsdformer.models.dense.config as c; from qsdformer.models.registry import "
        "model_config; c.SegmentationConfig(backbone=model_config(), num_classes=3); "
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_classes": 0}, "num_classes=0: must be 1 to"),
        ({"neck_width": -1}, "neck_width=-1: must be 1 to"),
        ({"bits": 1}, "bits=1: must be 2 to 8 bits, ternary, or none"),
        ({"predictor_bits": 9}, "predictor_bits=9: must be 2 to 8"),
        ({"bits": 4.0}, "bits=4.0: must be 2 to 8 bits"),
        ({"bits": True}, "bits=True: must be 2 to 8 bits"),
        ({"neuron": "lif"}, "neuron='lif': must be one of backbone, relu"),
        ({"norm": "group"}, "norm='group': must be one of batch, frozen, sync"),
        ({"upsampling": "bicubic"}, "upsampling='bicubic': must be one of nearest, bilinear"),
        ({"frozen_stages": 6}, "frozen_stages=6: must be 0 to 5"),
        ({"detector": "yolo"}, "detector='yolo': must be one of mask_rcnn"),
        ({"anchor_sizes": (8, 16)}, r"anchor_sizes=\(8, 16\): must be 4 sizes"),
        ({"anchor_sizes": 8}, "anchor_sizes=8: must be one or more whole numbers above 0"),
        ({"anchor_ratios": (0.0,)}, "anchor_ratios=.*: must be one or more numbers above 0"),
        ({"anchor_sizes": ()}, r"anchor_sizes=\(\): must be one or more whole numbers"),
        ({"score_threshold": 1.5}, r"score_threshold=1.5: must be in \[0, 1\]"),
        ({"nms_threshold": "low"}, "nms_threshold='low': must be a number"),
    ],
)
def test_a_bad_value_is_refused_with_what_is_allowed(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        detection(**fields)


def test_a_network_of_one_token_grid_is_no_backbone() -> None:
    with pytest.raises(UserError, match=r"sdt has one token grid.* take a metaspikeformer"):
        SegmentationConfig(backbone=model_config("sdt_tiny"), num_classes=3)


def test_unknown_fields_and_tasks_are_named() -> None:
    values = segmentation().to_dict()
    with pytest.raises(ValueError, match="unknown fields of a segmentation network: colour"):
        dense_config_from_dict({**values, "colour": 1})
    with pytest.raises(ValueError, match="unknown task 'depth': known are segmentation, detection"):
        dense_config_from_dict({**values, "task": "depth"})
    with pytest.raises(ValueError, match="needs its backbone's configuration"):
        dense_config_from_dict({**values, "backbone": 4})


def test_the_backbone_has_no_classifier() -> None:
    assert segmentation(backbone=backbone(num_classes=7)).backbone.num_classes == 0


def test_heads_have_the_backbones_neurons_without_time() -> None:
    heads = segmentation(backbone=backbone(levels=8, time_steps=4), bits=3).heads
    assert (heads.neuron, heads.levels, heads.time_steps) == ("ielif", 8, 1)
    assert (heads.weight_bits, heads.head_bits, heads.rectify) == (3, 8, "all")


def test_full_precision_is_that_of_the_last_layers_too() -> None:
    config = segmentation(bits=None)
    assert (config.heads.weight_bits, config.heads.head_bits) == (None, None)


@pytest.mark.parametrize(
    ("fields", "whole"),
    [
        ({}, True),
        ({"bits": None}, False),
        ({"predictor_bits": None}, False),
        ({"neuron": "relu"}, False),
    ],
)
def test_what_can_become_integers_is_spiking_and_quantised(
    fields: dict[str, Any], whole: bool
) -> None:
    assert segmentation(**fields).lowers_whole is whole


def test_the_ann_has_the_same_shape_and_no_spikes() -> None:
    ann = detection(neuron="relu").ann()
    assert not ann.is_spiking
    assert not ann.heads.is_spiking
    assert ann.heads.weight_bits is None
    assert ann.backbone.dims == detection().backbone.dims
    kept = ("neck_width", "head_width", "fc_width", "anchor_sizes", "detector")
    assert all(getattr(ann, name) == getattr(detection(), name) for name in kept)


def test_the_published_settings_are_the_defaults() -> None:
    backbone_15m = model_config("metaspikeformer_15m")
    seg = SegmentationConfig(backbone=backbone_15m, num_classes=150)
    det = DetectionConfig(backbone=backbone_15m, num_classes=80)
    assert (seg.neck_width, seg.head_width, seg.upsampling) == (128, 128, "bilinear")
    assert (det.neck_width, det.fc_width, det.mask_convs, det.upsampling) == (
        256,
        1024,
        4,
        "nearest",
    )
    assert det.anchor_sizes == (32, 64, 128, 256)
