"""Checkpoints published with the paper: their names and quirks, and nothing else knows them.

A published file holds `{"model": state_dict}`. Sizes, depth, classes and bits are read from the
tensors; heads are not recorded there and have to be given.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from qsdformer.errors import UserError
from qsdformer.models.checkpoint import load_tensors
from qsdformer.models.metaspikeformer import MetaSpikeFormer
from qsdformer.nn.config import ModelConfig
from qsdformer.nn.quantizers import quantized_layers, weight_codes

# What every published file has in common and no tensor records.
PUBLISHED = {
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

# How far a weight on the border of two codes is moved, in steps (see `_keep_codes`).
NUDGE = 1e-5

_NORM = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
# An activation quantiser that the published code allocates and never uses, and a flag.
_IGNORED = re.compile(r"(\.act\.(alpha|init_state|signed|zero_point)|\.init_state)$")


def import_reference(path: str | Path, heads: int = 8) -> MetaSpikeFormer:
    """The network of a published checkpoint, in evaluation mode.

    `path` is the published `.pth`; it is read without unpickling arbitrary objects. Every tensor
    must be accounted for: an unmatched, missing or misshaped key is a `UserError` that names it.
    """
    content = load_tensors(path)
    published = content.get("model") if isinstance(content, dict) else None
    if not isinstance(published, dict):
        raise UserError(f'{path}: not a published checkpoint: no "model" state dict in it')
    published = {str(k).removeprefix("module."): v for k, v in published.items()}
    config = _infer_config(published, heads, path)
    model = MetaSpikeFormer(config)
    state, used = {}, set()
    for ours, theirs, kind in _name_pairs(config):
        if theirs not in published:
            raise UserError(f"{path}: missing key {theirs!r} (wanted for {ours})")
        if not isinstance(published[theirs], Tensor):
            raise UserError(f"{path}: key {theirs!r} is not a tensor")
        used.add(theirs)
        state[ours] = _convert(published[theirs], kind)
    unmatched = sorted(k for k in set(published) - used if not _IGNORED.search(k))
    if unmatched:
        raise UserError(f"{path}: {len(unmatched)} unmatched keys: {_some(unmatched)}")
    _check_shapes(model, state, {ours: theirs for ours, theirs, _ in _name_pairs(config)}, path)
    model.load_state_dict(state)
    _keep_codes(model, published, config, path)
    return model.eval()


def _convert(value: Tensor, kind: str) -> Tensor:
    if kind == "step":
        return value.double().log().float()
    # 1x1 convolutions over flattened tokens become 2-D ones.
    return value.unsqueeze(-1) if kind == "conv" and value.dim() == 3 else value


def _some(names: list[str], limit: int = 3) -> str:
    return ", ".join(names[:limit]) + (", ..." if len(names) > limit else "")


def _infer_config(published: dict[str, Any], heads: int, path: str | Path) -> ModelConfig:
    def shape(key: str, dimensions: int = 4) -> torch.Size:
        value = published.get(key)
        if not isinstance(value, Tensor):
            raise UserError(f"{path}: missing key {key!r}")
        if value.dim() != dimensions:
            raise UserError(f"{path}: key {key!r} has shape {tuple(value.shape)}")
        return value.shape

    stem = shape("downsample1_1.encode_conv.weight")
    dims = [shape(f"downsample{i}.encode_conv.weight")[0] for i in ("1_2", "2", "3", "4")]
    blocks = {m.group() for key in published if (m := re.match(r"block[34]\.\d+", key))}
    try:
        return ModelConfig(
            **PUBLISHED,  # type: ignore[arg-type]
            in_channels=stem[1],
            stem_kernel=stem[2],
            num_classes=shape("head.weight", 2)[0],
            dims=(dims[0], dims[1], dims[2], dims[3]),
            depth=len(blocks),
            heads=heads,
        )
    except ValueError as error:
        raise UserError(f"{path}: {error}") from error


def _name_pairs(config: ModelConfig) -> Iterator[tuple[str, str, str]]:
    """(our key, published key, kind) of every tensor; kind is "conv", "step" or "plain"."""
    downsamples = ("downsample1_1", "downsample1_2", "downsample2", "downsample3", "downsample4")
    for i, theirs in enumerate(downsamples):
        yield from _conv(f"stages.{i}.downsample.conv", f"{theirs}.encode_conv", bias=True)
        yield from _norm(f"stages.{i}.downsample.norm", f"{theirs}.encode_bn")
    conv_blocks = {
        "stages.0.blocks.0": "ConvBlock1_1.0",
        "stages.1.blocks.0": "ConvBlock1_2.0",
        "stages.2.blocks.0": "ConvBlock2_1.0",
        "stages.2.blocks.1": "ConvBlock2_2.0",
    }
    for ours, theirs in conv_blocks.items():
        yield from _conv_block(ours, theirs)
    for stage, count in zip((3, 4), config.stage_depths, strict=True):
        for i in range(count):
            yield from _transformer_block(f"stages.{stage}.blocks.{i}", f"block{stage}.{i}")
    yield from _conv("head", "head", bias=True)


def _conv(ours: str, theirs: str, bias: bool = False) -> Iterator[tuple[str, str, str]]:
    yield f"{ours}.weight", f"{theirs}.weight", "conv"
    yield f"{ours}.log_step_size", f"{theirs}.alpha", "step"
    if bias:
        yield f"{ours}.bias", f"{theirs}.bias", "plain"


def _norm(ours: str, theirs: str) -> Iterator[tuple[str, str, str]]:
    for field in _NORM:
        yield f"{ours}.{field}", f"{theirs}.{field}", "plain"


def _conv_block(ours: str, theirs: str) -> Iterator[tuple[str, str, str]]:
    sepconv = {"pointwise1": "pwconv1", "depthwise": "dwconv", "pointwise2": "pwconv2"}
    for our_name, their_name in sepconv.items():
        yield from _conv(f"{ours}.sepconv.{our_name}", f"{theirs}.Conv.{their_name}")
    for i in (1, 2):
        yield from _norm(f"{ours}.sepconv.norm{i}", f"{theirs}.Conv.bn{i}")
        yield from _conv(f"{ours}.conv{i}", f"{theirs}.conv{i}")
        yield from _norm(f"{ours}.norm{i}", f"{theirs}.bn{i}")


def _transformer_block(ours: str, theirs: str) -> Iterator[tuple[str, str, str]]:
    projections = {"q": "q_conv", "k": "k_conv", "v": "v_conv", "projection": "proj_conv"}
    for our_name, their_name in projections.items():
        our_base = f"{ours}.attention.{our_name}"
        their_base = f"{theirs}.attn.{their_name}"
        body = f"{their_base}.0.body"
        yield from _conv(f"{our_base}.conv.pointwise1", f"{body}.0")
        yield from _norm(f"{our_base}.conv.norm1", f"{body}.1.bn")
        yield from _conv(f"{our_base}.conv.depthwise", f"{body}.2.0")
        yield from _conv(f"{our_base}.conv.pointwise2", f"{body}.2.1")
        yield from _norm(f"{our_base}.conv.norm2", f"{body}.2.2")
        yield from _norm(f"{our_base}.norm", f"{their_base}.1")
    for i in (1, 2):
        yield from _conv(f"{ours}.mlp.fc{i}", f"{theirs}.mlp.fc{i}_conv", bias=True)
        yield from _norm(f"{ours}.mlp.norm{i}", f"{theirs}.mlp.fc{i}_bn")
        yield f"{ours}.scale{i}.scale", f"{theirs}.layer_scale{i}", "plain"


def _check_shapes(
    model: MetaSpikeFormer, state: dict[str, Tensor], names: dict[str, str], path: str | Path
) -> None:
    expected = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    missing = sorted(set(expected) - set(state))
    if missing:
        raise UserError(f"{path}: nothing published for {_some(missing)}")
    for key, value in state.items():
        if tuple(value.shape) != expected[key]:
            raise UserError(
                f"{path}: key {names[key]!r} has shape {tuple(value.shape)}, "
                f"expected {expected[key]}"
            )


def _keep_codes(
    model: MetaSpikeFormer, published: dict[str, Any], config: ModelConfig, path: str | Path
) -> None:
    """Hold the integer codes to the published ones.

    Our step sizes are stored as logarithms, so exp(log(step)) can differ in the last bit, enough
    to move a weight that lies on the border of two codes. Such a weight is nudged by a
    hundred-thousandth of a step towards its published code.
    """
    theirs = {ours: name for ours, name, kind in _name_pairs(config) if kind != "plain"}
    for name, layer in quantized_layers(model).items():
        step = published[theirs[f"{name}.log_step_size"]].float()
        assert layer.bits is not None
        if not (step > 0).all():
            raise UserError(f"{path}: key {theirs[f'{name}.log_step_size']!r} is not positive")
        codes = weight_codes(layer.weight.detach(), step, layer.bits)
        moved = codes != layer.codes()
        if moved.any():
            step_like = step.view(-1, *[1] * (codes.dim() - 1))
            with torch.no_grad():
                towards = (codes * step_like - layer.weight).sign() * step_like
                layer.weight += torch.where(moved, NUDGE * towards, 0.0)
            if not torch.equal(codes.to(torch.int8), layer.codes()):
                raise UserError(f"{path}: codes of {theirs[f'{name}.weight']!r} moved on import")
