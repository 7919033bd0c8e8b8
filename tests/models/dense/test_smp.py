"""Our backbones in segmentation_models_pytorch, in one line, with the traps that the docs name."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import qsdformer  # noqa: F401  registers the models with timm

smp = pytest.importorskip("segmentation_models_pytorch")

TINY = "tu-metaspikeformer_tiny"
DEPTH = {"encoder_weights": None, "encoder_depth": 4, "classes": 5}
PLUGS: dict[str, dict[str, Any]] = {
    "Unet": {"decoder_channels": (16, 16, 8, 8)},
    "FPN": {"upsampling": 2},
    "UPerNet": {},
    "Segformer": {},
}


@pytest.mark.parametrize("name", list(PLUGS))
def test_a_decoder_takes_our_backbone_in_one_line(name: str) -> None:
    model = getattr(smp, name)(TINY, **DEPTH, **PLUGS[name])
    masks = model(torch.randn(2, 3, 64, 64))
    assert masks.shape == (2, 5, 64, 64)
    masks.square().mean().backward()
    assert all(p.grad is not None for n, p in model.named_parameters() if "stages.4" in n)


def test_our_settings_and_other_families_pass_through() -> None:
    model = smp.Unet(TINY, **DEPTH, **PLUGS["Unet"], weight_bits=2, levels=8)
    bits = {m.bits for m in model.encoder.modules() if getattr(m, "bits", None) is not None}
    assert bits == {2, 8}  # the stem has 8
    model = smp.Unet("tu-e_spikeformer_tiny", **DEPTH, **PLUGS["Unet"])
    assert model(torch.randn(1, 3, 64, 64)).shape == (1, 5, 64, 64)


def test_a_depth_of_five_is_one_too_many() -> None:
    with pytest.raises(ValueError, match=r"feature indices .* in -4\.\.3"):
        smp.Unet(TINY, encoder_weights=None, classes=5)


def test_a_pyramid_needs_upsampling_2() -> None:
    assert smp.FPN(TINY, **DEPTH)(torch.randn(2, 3, 64, 64)).shape == (2, 5, 128, 128)


def test_a_decoder_that_wants_another_output_stride_is_refused() -> None:
    with pytest.raises((TypeError, ValueError), match="output_stride"):
        smp.DeepLabV3Plus(TINY, **DEPTH)
