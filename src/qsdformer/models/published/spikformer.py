"""Published checkpoints of Spikformer (ZK-Zhou/spikformer): three files, three layouts.

ImageNet: 1x1 convolutions, in the MLP over maps, four pools, T = 4 written into `forward`.
CIFAR: linear layers, with bias also in q, k and v, pools after steps 2 and 3.
CIFAR10-DVS: 1x1 convolutions over tokens everywhere, four pools, attention scale 1/4.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from qsdformer.models.published.mapping import LIF, Pair, Published, State, Told, conv, norm
from qsdformer.models.published.sdt import stem_pairs
from qsdformer.models.spikformer import SpikformerConfig

IMAGENET_STEPS = 4


def _recognises(state: State) -> bool:
    return (
        state.has(r"block\.\d+\.norm[12]\.weight")
        or state.has(r"block\.\d+\.attn\.q_linear\.weight")
        or state.dims("block.0.attn.q_conv.weight") == 3
    )


def _layer(state: State) -> str:
    """How the published layers in the blocks are called: "linear" or "conv"."""
    return "linear" if state.dims("block.0.attn.q_linear.weight") is not None else "conv"


def _is_of_events(state: State) -> bool:
    """Whether it is the CIFAR10-DVS layout, in whose MLP convolutions are over tokens too."""
    return state.dims(f"block.0.mlp.fc1_{_layer(state)}.weight") == 3


def _fields(state: State, told: Told) -> dict[str, Any]:
    told.ignore("Spikformer", "dvs_mode")
    stem = state.shape("patch_embed.proj_conv.weight", 4)
    layer = _layer(state)
    fc1 = state.shape(f"block.0.mlp.fc1_{layer}.weight", 2, 3, 4)
    cifar, events = layer == "linear", _is_of_events(state)
    if cifar or events:
        steps = told.need("time_steps", "time_step", "time_steps", "T", example="such as 4")
    else:
        steps = IMAGENET_STEPS
        if told.given.get("time_steps") != steps:
            told.ignore("Spikformer for ImageNet", "time_steps")
    return {
        **LIF,
        "in_channels": stem[1],
        "num_classes": state.shape("head.weight", 2)[0],
        "width": fc1[1],
        "depth": state.count(r"block\.\d+\."),
        "heads": told.need(
            "heads", "num_heads", example="8 for ImageNet, 12 for CIFAR 4-384, 16 for DVS 2-256"
        ),
        "mlp_ratio": fc1[0] // fc1[1],
        "pooling": told.find("pooling") or ("0011" if cifar else "1111"),
        "time_steps": steps,
        "attention_scale": 0.25 if events else 0.125,
        "qkv_bias": state.dims(f"block.0.attn.q_{layer}.bias") is not None,
    }


def _ignored(state: State) -> re.Pattern[str]:
    """Layer norms in every block and, in the DVS file, a position embedding: held, never used."""
    more = r"|pos_embed|norm\.(weight|bias)" if _is_of_events(state) else ""
    return re.compile(rf"^(block\.\d+\.norm[12]\.(weight|bias){more})$")


def _pairs(config: SpikformerConfig, state: State) -> Iterator[Pair]:
    layer = _layer(state)
    yield from stem_pairs()
    for i in range(config.depth):
        ours, theirs = f"blocks.{i}", f"block.{i}"
        for mine, name in (("q", "q"), ("k", "k"), ("v", "v"), ("projection", "proj")):
            bias = mine == "projection" or config.qkv_bias
            base = f"{ours}.attention.{mine}"
            yield from conv(f"{base}.conv", f"{theirs}.attn.{name}_{layer}", bias=bias)
            yield from norm(f"{base}.norm", f"{theirs}.attn.{name}_bn")
        for n in (1, 2):
            yield from conv(f"{ours}.mlp.fc{n}.conv", f"{theirs}.mlp.fc{n}_{layer}", bias=True)
            yield from norm(f"{ours}.mlp.fc{n}.norm", f"{theirs}.mlp.fc{n}_bn")
    yield from conv("head", "head", bias=True)


PUBLISHED = Published(
    name="Spikformer",
    recognises=_recognises,
    fields=_fields,
    config=SpikformerConfig,
    pairs=_pairs,
    ignored=_ignored,
)
