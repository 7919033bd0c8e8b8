"""Imported SDT v1, Spikformer and E-SpikeFormer give what the published programs computed."""

from __future__ import annotations

import re

import pytest
import torch
from safetensors.torch import load_file

from qsdformer.models.published import import_reference
from qsdformer.nn.taps import tap

# What each file does not tell where it has no training arguments.
GIVEN = {
    "sdt_v1_imagenet": {"time_steps": 4, "pooling": "1111"},
    "sdt_v1_cifar": {"time_steps": 4, "pooling": "0011"},
    "spikformer_imagenet": {"heads": 8},
    "spikformer_cifar": {"heads": 4, "time_steps": 4},
    "e_spikeformer_base": {"heads": 8},
}

# Published module names to ours; `:input` is kept. The first that matches is taken.
STEM = [
    (r"patch_embed\.proj_lif(:input)?", "stem.neurons.0"),
    (r"patch_embed\.proj_lif(\d)(:input)?", r"stem.neurons.\1"),
    (r"patch_embed\.rpe_lif", "stem.position_neuron"),
    (r"patch_embed", "stem"),
    (r"block\.(\d)\.attn\.shortcut_lif", r"blocks.\1.attention.neuron"),
    (r"block\.(\d)\.attn\.([qkv])_lif(:input)?", r"blocks.\1.attention.\2_neuron"),
    (r"block\.(\d)\.attn\.talking_heads_lif(:input)?", r"blocks.\1.attention.core.mask_neuron"),
    (r"block\.(\d)\.attn\.attn_lif(:input)?", r"blocks.\1.attention.attention_neuron"),
    (r"block\.(\d)\.attn\.proj_conv(:input)", r"blocks.\1.attention.projection"),
    (r"block\.(\d)\.attn\.proj_lif(:input)?", r"blocks.\1.attention.output_neuron"),
    (r"block\.(\d)\.attn", r"blocks.\1.attention"),
    (r"block\.(\d)\.mlp\.fc(\d)_lif(:input)?", r"blocks.\1.mlp.neuron\2"),
    (r"block\.(\d)", r"blocks.\1"),
    (r"head_lif(:input)?", "neuron"),
    (r"head(:input)", "head"),
]
STAGES = [
    (r"downsample1_1", "stages.0.downsample"),
    (r"downsample1_2\.encode_spike", "stages.1.downsample.neuron"),
    (r"downsample(\d)", r"stages.\1.downsample"),
    (r"ConvBlock1_1\.0\.Conv\.spike3", "stages.0.blocks.0.sepconv.between.1"),
    (r"ConvBlock1_1\.0\.Conv\.spike(\d)", r"stages.0.blocks.0.sepconv.neuron\1"),
    (r"ConvBlock1_1\.0\.Conv", "stages.0.blocks.0.sepconv"),
    (r"ConvBlock1_1\.0", "stages.0.blocks.0"),
    (r"ConvBlock1_2\.0", "stages.1.blocks.0"),
    (r"ConvBlock2_2\.0", "stages.2.blocks.1"),
    (r"block(\d)\.(\d)\.conv", r"stages.\1.blocks.\2.sepconv"),
    (r"block(\d)\.(\d)\.attn\.head_spike", r"stages.\1.blocks.\2.attention.neuron"),
    (r"block(\d)\.(\d)\.attn\.([qkv])_spike", r"stages.\1.blocks.\2.attention.\3_neuron"),
    (
        r"block(\d)\.(\d)\.attn\.attn_spike(:input)?",
        r"stages.\1.blocks.\2.attention.attention_neuron",
    ),
    (r"block(\d)\.(\d)\.attn", r"stages.\1.blocks.\2.attention"),
    (r"block(\d)\.(\d)\.mlp\.fc2_spike", r"stages.\1.blocks.\2.mlp.neuron2"),
    (r"block(\d)\.(\d)", r"stages.\1.blocks.\2"),
    (r"spike(:input)?", "neuron"),
]


def our_name(theirs: str) -> str:
    for pattern, ours in [*STEM, *STAGES]:
        match = re.fullmatch(pattern, theirs)
        if match:
            return match.expand(ours)
    raise AssertionError(f"no module of ours for {theirs}")


def laid_out(ours: torch.Tensor, expected: torch.Tensor, name: str) -> torch.Tensor:
    """Ours, (T*B, C, H, W), in the recorded layout; the CIFAR Spikformer has tokens first."""
    if name == "spikformer_cifar" and ours.dim() == 4 and expected.dim() == 4:
        ours = ours.flatten(2).transpose(-2, -1)
    return ours.reshape(expected.shape)


def compare(theirs: str, ours: torch.Tensor, expected: torch.Tensor) -> None:
    counts = expected.dtype == torch.uint8 or re.search(r"spike\d?$", theirs)
    if counts:
        assert torch.equal(ours, expected.float()), theirs
    else:
        # Float sums in another order.
        torch.testing.assert_close(ours, expected, rtol=0, atol=1e-4, msg=theirs)


@pytest.mark.parametrize("name", GIVEN)
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_every_recorded_tap_and_the_logits_are_the_published_ones(fixtures, name, suffix):
    recorded = load_file(fixtures / f"{name}.safetensors")
    expected = {k.removeprefix("tap."): v for k, v in recorded.items() if k.startswith("tap.")}
    given = GIVEN[name]
    if suffix == ".pth" and name in ("sdt_v1_imagenet", "sdt_v1_cifar", "spikformer_cifar"):
        given = {}  # the training arguments tell
    model = import_reference((fixtures / name).with_suffix(suffix), **given)
    outs = {t: our_name(t) for t in expected if not t.endswith(":input")}
    ins = {t: our_name(t) for t in expected if t.endswith(":input")}
    entries = [n + ".attention" for n in outs.values() if re.fullmatch(r"blocks\.\d", n)]
    with (
        torch.no_grad(),
        tap(model, *outs.values(), "stem" if "stem" in outs.values() else "head") as after,
        tap(model, *ins.values(), *entries, inputs=True) as before,
    ):
        logits = model(recorded["input"])
    for theirs, tensor in expected.items():
        ours = before[ins[theirs]] if theirs in ins else after[outs[theirs]]
        if name.startswith("sdt") and re.fullmatch(r"block\.0\.attn", theirs):
            ours = before["blocks.0.attention"] + ours  # theirs has added the shortcut already
        compare(theirs, laid_out(ours, tensor, name), tensor)
    torch.testing.assert_close(logits, recorded["logits"], rtol=0, atol=5e-5)
