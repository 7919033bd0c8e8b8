"""Checkpoints published with QSD-Transformer: their names and quirks.

A published file holds `{"model": state_dict}`. Sizes, depth and classes are read from the tensors;
heads and bits are not recorded there; weights are taken to have the 4 bits of those published.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

import torch

from qsdformer.errors import UserError
from qsdformer.models.base import SpikingTransformer
from qsdformer.models.published.mapping import Pair, Published, State, Told, norm
from qsdformer.nn.config import ModelConfig
from qsdformer.nn.quantizers import quantized_layers, weight_codes

# What every published file has in common and no tensor records.
FIELDS: dict[str, Any] = {
    "weight_bits": 4,
    "stem_bits": 4,
    "head_bits": 4,
    "levels": 4,
    "time_steps": 1,
    "surrogate": "rect",
    "rectify": "none",
    "attention_norm": False,
    "attention_scale": 0.25,
    "attention_gain": 2.0,  # the neuron after attention divides its count by 2, not 4
    "residual_gain": 1.0,
    "layer_scale": 1.0,
}

# Attention heads of every published size.
HEADS = 8

# How far a weight on the border of two codes is moved, in steps (see `_keep_codes`).
NUDGE = 1e-5

# Published names of the downsampling convolutions and of the first blocks, and ours of the latter.
DOWNSAMPLES = ("downsample1_1", "downsample1_2", "downsample2", "downsample3", "downsample4")
CONV_BLOCKS = {
    "stages.0.blocks.0": "ConvBlock1_1.0",
    "stages.1.blocks.0": "ConvBlock1_2.0",
    "stages.2.blocks.0": "ConvBlock2_1.0",
    "stages.2.blocks.1": "ConvBlock2_2.0",
}


def _recognises(state: State) -> bool:
    return state.has(r"ConvBlock\d_\d\.0\.Conv\.pwconv\d\.weight")


def _fields(state: State, told: Told) -> dict[str, Any]:
    told.ignore("Meta-SpikeFormer", "dvs_mode", "pooling")
    if told.given.get("time_steps") not in (None, 1):
        steps = told.given["time_steps"]
        raise UserError(f"{state.path}: time_steps={steps}: the published Meta-SpikeFormer has 1")
    heads = told.find("heads")
    return {**FIELDS, **pyramid_fields(state), "heads": HEADS if heads is None else heads}


def pyramid_fields(state: State) -> dict[str, Any]:
    """Widths, depth, stem and classes, from the tensors."""
    stem = state.shape("downsample1_1.encode_conv.weight", 4)
    dims = tuple(state.shape(f"{name}.encode_conv.weight", 4)[0] for name in DOWNSAMPLES[1:])
    return {
        "in_channels": stem[1],
        "stem_kernel": stem[2],
        "num_classes": state.shape("head.weight", 2)[0],
        "dims": dims,
        "depth": state.count(r"block[34]\.\d+"),
    }


def _pairs(config: ModelConfig, state: State) -> Iterator[Pair]:
    for i, theirs in enumerate(DOWNSAMPLES):
        yield from _conv(f"stages.{i}.downsample.conv", f"{theirs}.encode_conv", bias=True)
        yield from norm(f"stages.{i}.downsample.norm", f"{theirs}.encode_bn")
    for ours, theirs in CONV_BLOCKS.items():
        yield from _conv_block(ours, theirs)
    for stage, count in zip((3, 4), config.stage_depths, strict=True):
        for i in range(count):
            yield from _transformer_block(f"stages.{stage}.blocks.{i}", f"block{stage}.{i}")
    yield from _conv("head", "head", bias=True)


def _conv(ours: str, theirs: str, bias: bool = False) -> Iterator[Pair]:
    yield f"{ours}.weight", f"{theirs}.weight", "conv"
    yield f"{ours}.log_step_size", f"{theirs}.alpha", "step"
    if bias:
        yield f"{ours}.bias", f"{theirs}.bias", "plain"


def _conv_block(ours: str, theirs: str) -> Iterator[Pair]:
    sepconv = {"pointwise1": "pwconv1", "depthwise": "dwconv", "pointwise2": "pwconv2"}
    for our_name, their_name in sepconv.items():
        yield from _conv(f"{ours}.sepconv.{our_name}", f"{theirs}.Conv.{their_name}")
    for i in (1, 2):
        yield from norm(f"{ours}.sepconv.norm{i}", f"{theirs}.Conv.bn{i}")
        yield from _conv(f"{ours}.conv{i}", f"{theirs}.conv{i}")
        yield from norm(f"{ours}.norm{i}", f"{theirs}.bn{i}")


def _transformer_block(ours: str, theirs: str) -> Iterator[Pair]:
    projections = {"q": "q_conv", "k": "k_conv", "v": "v_conv", "projection": "proj_conv"}
    for our_name, their_name in projections.items():
        our_base = f"{ours}.attention.{our_name}"
        their_base = f"{theirs}.attn.{their_name}"
        body = f"{their_base}.0.body"
        yield from _conv(f"{our_base}.conv.pointwise1", f"{body}.0")
        yield from norm(f"{our_base}.conv.norm1", f"{body}.1.bn")
        yield from _conv(f"{our_base}.conv.depthwise", f"{body}.2.0")
        yield from _conv(f"{our_base}.conv.pointwise2", f"{body}.2.1")
        yield from norm(f"{our_base}.conv.norm2", f"{body}.2.2")
        yield from norm(f"{our_base}.norm", f"{their_base}.1")
    for i in (1, 2):
        yield from _conv(f"{ours}.mlp.fc{i}", f"{theirs}.mlp.fc{i}_conv", bias=True)
        yield from norm(f"{ours}.mlp.norm{i}", f"{theirs}.mlp.fc{i}_bn")
        yield f"{ours}.scale{i}.scale", f"{theirs}.layer_scale{i}", "plain"


def _keep_codes(model: SpikingTransformer, state: State, names: Mapping[str, str]) -> None:
    """Hold the integer codes to the published ones.

    Our step sizes are stored as logarithms, so exp(log(step)) can differ in the last bit, enough
    to move a weight that lies on the border of two codes. Such a weight is nudged by a
    hundred-thousandth of a step towards its published code.
    """
    for name, layer in quantized_layers(model).items():
        key = names[f"{name}.log_step_size"]
        step = state.tensors[key].float()
        assert layer.bits is not None
        if not (step > 0).all():
            raise UserError(f"{state.path}: key {key!r} is not positive")
        codes = weight_codes(layer.weight.detach(), step, layer.bits)
        moved = codes != layer.codes()
        if moved.any():
            step_like = step.view(-1, *[1] * (codes.dim() - 1))
            with torch.no_grad():
                towards = (codes * step_like - layer.weight).sign() * step_like
                layer.weight += torch.where(moved, NUDGE * towards, 0.0)
            if not torch.equal(codes.to(torch.int8), layer.codes()):
                weight = names[f"{name}.weight"]
                raise UserError(f"{state.path}: codes of {weight!r} moved on import")


PUBLISHED = Published(
    name="Meta-SpikeFormer",
    recognises=_recognises,
    fields=_fields,
    config=ModelConfig,
    pairs=_pairs,
    # An activation quantiser that the published code allocates and never uses, and a flag.
    ignored=lambda state: re.compile(
        r"(\.act\.(alpha|init_state|signed|zero_point)|\.init_state)$"
    ),
    finish=_keep_codes,
)
