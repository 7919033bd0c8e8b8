"""Published checkpoints of E-SpikeFormer, base sizes (BICLab/Spike-Driven-Transformer-V3)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from qsdformer.errors import UserError
from qsdformer.models.e_spikeformer import ESpikeFormerConfig
from qsdformer.models.published.mapping import Pair, Published, State, Told, conv, norm
from qsdformer.models.published.metaspikeformer import (
    CONV_BLOCKS,
    DOWNSAMPLES,
    pyramid_fields,
)

FIELDS: dict[str, Any] = {
    "weight_bits": None,
    "stem_bits": None,
    "head_bits": None,
    "levels": 4,
    "time_steps": 1,
    "surrogate": "rect",
    "rectify": "none",
    "residual_gain": 1.0,
}


def _recognises(state: State) -> bool:
    return state.has(r"ConvBlock\d_\d\.0\.Conv\.pwconv\d\.0\.weight")


def _fields(state: State, told: Told) -> dict[str, Any]:
    told.ignore("E-SpikeFormer", "dvs_mode", "pooling")
    if told.given.get("time_steps") not in (None, 1):
        raise UserError(f"{state.path}: time_steps={told.given['time_steps']}: E-SpikeFormer has 1")
    heads = told.need("heads", "num_heads", example="8 for the published sizes")
    return {**FIELDS, **pyramid_fields(state), "heads": heads}


def _sepconv(ours: str, theirs: str) -> Iterator[Pair]:
    layers = {
        "pwconv1": ("pointwise1", "norm1"),
        "dwconv": ("depthwise", "between.0"),
        "pwconv2": ("pointwise2", "norm2"),
    }
    for name, (layer, its_norm) in layers.items():
        yield from conv(f"{ours}.{layer}", f"{theirs}.{name}.0")
        yield from norm(f"{ours}.{its_norm}", f"{theirs}.{name}.1")


def _pairs(config: ESpikeFormerConfig, state: State) -> Iterator[Pair]:
    for i, theirs in enumerate(DOWNSAMPLES):
        yield from conv(f"stages.{i}.downsample.conv", f"{theirs}.encode_conv", bias=True)
        yield from norm(f"stages.{i}.downsample.norm", f"{theirs}.encode_bn")
    for ours, theirs in CONV_BLOCKS.items():
        yield from _sepconv(f"{ours}.sepconv", f"{theirs}.Conv")
        for n in (1, 2):
            yield from conv(f"{ours}.conv{n}", f"{theirs}.conv{n}")
            yield from norm(f"{ours}.norm{n}", f"{theirs}.bn{n}")
    for stage, count in zip((3, 4), config.stage_depths, strict=True):
        for i in range(count):
            yield from _block(f"stages.{stage}.blocks.{i}", f"block{stage}.{i}")
    yield from conv("head", "head", bias=True)


def _block(ours: str, theirs: str) -> Iterator[Pair]:
    yield from _sepconv(f"{ours}.sepconv", f"{theirs}.conv")
    for mine, name in (("q", "q"), ("k", "k"), ("v", "v"), ("projection", "proj")):
        yield from conv(f"{ours}.attention.{mine}.conv", f"{theirs}.attn.{name}_conv.0")
        yield from norm(f"{ours}.attention.{mine}.norm", f"{theirs}.attn.{name}_conv.1")
    for n in (1, 2):
        yield from conv(f"{ours}.mlp.fc{n}", f"{theirs}.mlp.fc{n}_conv", bias=True)
        yield from norm(f"{ours}.mlp.norm{n}", f"{theirs}.mlp.fc{n}_bn")


PUBLISHED = Published(
    name="E-SpikeFormer",
    recognises=_recognises,
    fields=_fields,
    config=ESpikeFormerConfig,
    pairs=_pairs,
)
