"""Published checkpoints of Spike-driven Transformer v1 (BICLab/Spike-Driven-Transformer)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from qsdformer.models.published.mapping import LIF, Pair, Published, State, Told, conv, norm
from qsdformer.models.sdt import SDTConfig

# Datasets whose networks have the extra max pools in attention.
DVS_DATASETS = ("cifar10-dvs", "cifar10-dvs-tet")


def _recognises(state: State) -> bool:
    return state.has(r"block\.\d+\.attn\.talking_heads\.weight") or (
        state.dims("block.0.attn.q_conv.weight") == 4
    )


def _fields(state: State, told: Told) -> dict[str, Any]:
    stem = state.shape("patch_embed.proj_conv.weight", 4)
    hidden, width = state.shape("block.0.mlp.fc1_conv.weight", 4)[:2]
    talking = "block.0.attn.talking_heads.weight"
    # Outside dvs mode the number of heads has no influence, but the unused weight tells it.
    heads = told.given.get("heads")
    if heads is None and state.dims(talking) is not None:
        heads = state.shape(talking, 3)[0]
    return {
        **LIF,
        "in_channels": stem[1],
        "num_classes": state.shape("head.weight", 2)[0],
        "width": width,
        "depth": state.count(r"block\.\d+\."),
        "heads": told.need("heads", "num_heads", example="such as 8") if heads is None else heads,
        "mlp_ratio": hidden // width,
        "pooling": told.need("pooling", "pooling_stat", example='such as "1111" (ImageNet)'),
        "time_steps": told.need("time_steps", "time_steps", "time_step", "T", example="such as 4"),
        "dvs_mode": _dvs_mode(stem[1], told),
    }


def _dvs_mode(channels: int, told: Told) -> bool:
    """Of the CIFAR10-DVS network alone, whose images have two channels."""
    dataset = getattr(told.saved, "dataset", None)
    found = told.find("dvs_mode", "dvs_mode")
    if found is None and dataset is not None:
        found = str(dataset).lower() in DVS_DATASETS
    if found is None and channels == 2:
        found = told.need("dvs_mode", example="true for CIFAR10-DVS, false for others")
    return bool(found)


def stem_pairs() -> Iterator[Pair]:
    """The stem, whose names Spikformer has too."""
    for i, suffix in enumerate(("", "1", "2", "3")):
        yield from conv(f"stem.convs.{i}.conv", f"patch_embed.proj_conv{suffix}")
        yield from norm(f"stem.convs.{i}.norm", f"patch_embed.proj_bn{suffix}")
    yield from conv("stem.position.conv", "patch_embed.rpe_conv")
    yield from norm("stem.position.norm", "patch_embed.rpe_bn")


def _pairs(config: SDTConfig, state: State) -> Iterator[Pair]:
    yield from stem_pairs()
    for i in range(config.depth):
        ours, theirs = f"blocks.{i}", f"block.{i}"
        for mine, name in (("q", "q"), ("k", "k"), ("v", "v"), ("projection", "proj")):
            bias = mine == "projection"
            base = f"{ours}.attention.{mine}"
            yield from conv(f"{base}.conv", f"{theirs}.attn.{name}_conv", bias=bias)
            yield from norm(f"{base}.norm", f"{theirs}.attn.{name}_bn")
        for n in (1, 2):
            yield from conv(f"{ours}.mlp.fc{n}", f"{theirs}.mlp.fc{n}_conv", bias=True)
            yield from norm(f"{ours}.mlp.norm{n}", f"{theirs}.mlp.fc{n}_bn")
    yield from conv("head", "head", bias=True)


PUBLISHED = Published(
    name="SDT v1",
    recognises=_recognises,
    fields=_fields,
    config=SDTConfig,
    pairs=_pairs,
    ignored=lambda state: re.compile(r"^block\.\d+\.attn\.talking_heads\.weight$"),
)
