"""Random state dicts under the published names, of any size, written out by hand."""

from __future__ import annotations

import argparse

import torch
from torch import Tensor

State = dict[str, Tensor]


def norm(state: State, name: str, width: int) -> None:
    for field in ("weight", "bias", "running_mean"):
        state[f"{name}.{field}"] = torch.randn(width)
    state[f"{name}.running_var"] = torch.rand(width) + 0.5
    state[f"{name}.num_batches_tracked"] = torch.tensor(7)


def stem(state: State, width: int, channels: int) -> None:
    widths = (channels, width // 8, width // 4, width // 2, width)
    for i, suffix in enumerate(("", "1", "2", "3")):
        weight = torch.randn(widths[i + 1], widths[i], 3, 3)
        state[f"patch_embed.proj_conv{suffix}.weight"] = weight
        norm(state, f"patch_embed.proj_bn{suffix}", widths[i + 1])
    state["patch_embed.rpe_conv.weight"] = torch.randn(width, width, 3, 3)
    norm(state, "patch_embed.rpe_bn", width)


def head(state: State, width: int, classes: int) -> None:
    state["head.weight"] = torch.randn(classes, width)
    state["head.bias"] = torch.randn(classes)


def sdt(width: int, depth: int, heads: int, classes: int = 6, channels: int = 3) -> State:
    """SDT v1."""
    state: State = {}
    stem(state, width, channels)
    for i in range(depth):
        for name in ("q", "k", "v", "proj"):
            state[f"block.{i}.attn.{name}_conv.weight"] = torch.randn(width, width, 1, 1)
            norm(state, f"block.{i}.attn.{name}_bn", width)
        state[f"block.{i}.attn.proj_conv.bias"] = torch.randn(width)
        state[f"block.{i}.attn.talking_heads.weight"] = torch.randn(heads, heads, 1)
        for n, (wide_in, wide_out) in enumerate(((width, 4 * width), (4 * width, width)), 1):
            state[f"block.{i}.mlp.fc{n}_conv.weight"] = torch.randn(wide_out, wide_in, 1, 1)
            state[f"block.{i}.mlp.fc{n}_conv.bias"] = torch.randn(wide_out)
            norm(state, f"block.{i}.mlp.fc{n}_bn", wide_out)
    head(state, width, classes)
    return state


def spikformer(width: int, depth: int, layout: str, classes: int = 6, channels: int = 3) -> State:
    """Spikformer in the layout of its "imagenet", "cifar" or "dvs" file."""
    state: State = {}
    stem(state, width, channels)
    layer, ones = ("linear", ()) if layout == "cifar" else ("conv", (1,))
    mlp_ones = (1, 1) if layout == "imagenet" else ones
    for i in range(depth):
        for name in ("q", "k", "v", "proj"):
            state[f"block.{i}.attn.{name}_{layer}.weight"] = torch.randn(width, width, *ones)
            if name == "proj" or layout == "cifar":
                state[f"block.{i}.attn.{name}_{layer}.bias"] = torch.randn(width)
            norm(state, f"block.{i}.attn.{name}_bn", width)
        for n, (wide_in, wide_out) in enumerate(((width, 4 * width), (4 * width, width)), 1):
            state[f"block.{i}.mlp.fc{n}_{layer}.weight"] = torch.randn(wide_out, wide_in, *mlp_ones)
            state[f"block.{i}.mlp.fc{n}_{layer}.bias"] = torch.randn(wide_out)
            norm(state, f"block.{i}.mlp.fc{n}_bn", wide_out)
            for field in ("weight", "bias"):
                state[f"block.{i}.norm{n}.{field}"] = torch.randn(width)
    if layout == "dvs":
        state["pos_embed"] = torch.randn(1, 16, width)
        state["norm.weight"], state["norm.bias"] = torch.randn(width), torch.randn(width)
    head(state, width, classes)
    return state


def _sepconv(state: State, name: str, width: int, kernel: int) -> None:
    shapes = {
        "pwconv1": (2 * width, width, 1, 1),
        "dwconv": (2 * width, 1, kernel, kernel),
        "pwconv2": (width, 2 * width, 1, 1),
    }
    for layer, shape in shapes.items():
        state[f"{name}.{layer}.0.weight"] = torch.randn(shape)
        norm(state, f"{name}.{layer}.1", shape[0])


def e_spikeformer(dims: tuple[int, int, int, int], classes: int = 6) -> State:
    """E-SpikeFormer of the base sizes, 6 + 2 blocks."""
    state: State = {}
    widths = (3, dims[0] // 2, *dims)
    names = ("downsample1_1", "downsample1_2", "downsample2", "downsample3", "downsample4")
    for i, name in enumerate(names):
        kernel = 7 if i == 0 else 3
        state[f"{name}.encode_conv.weight"] = torch.randn(widths[i + 1], widths[i], kernel, kernel)
        state[f"{name}.encode_conv.bias"] = torch.randn(widths[i + 1])
        norm(state, f"{name}.encode_bn", widths[i + 1])
    blocks = {"1_1": widths[1], "1_2": widths[2], "2_1": widths[3], "2_2": widths[3]}
    for suffix, width in blocks.items():
        name = f"ConvBlock{suffix}.0"
        _sepconv(state, f"{name}.Conv", width, 7)
        state[f"{name}.conv1.weight"] = torch.randn(4 * width, width, 3, 3)
        state[f"{name}.conv2.weight"] = torch.randn(width, 4 * width, 3, 3)
        norm(state, f"{name}.bn1", 4 * width)
        norm(state, f"{name}.bn2", width)
    for stage, count, width in ((3, 6, dims[2]), (4, 2, dims[3])):
        for i in range(count):
            name = f"block{stage}.{i}"
            _sepconv(state, f"{name}.conv", width, 3)
            shapes = {
                "q": (width, width),
                "k": (width, width),
                "v": (4 * width, width),
                "proj": (width, 4 * width),
            }
            for layer, shape in shapes.items():
                state[f"{name}.attn.{layer}_conv.0.weight"] = torch.randn(*shape, 1, 1)
                norm(state, f"{name}.attn.{layer}_conv.1", shape[0])
            for n, (wide_in, wide_out) in enumerate(((width, 4 * width), (4 * width, width)), 1):
                state[f"{name}.mlp.fc{n}_conv.weight"] = torch.randn(wide_out, wide_in, 1)
                state[f"{name}.mlp.fc{n}_conv.bias"] = torch.randn(wide_out)
                norm(state, f"{name}.mlp.fc{n}_bn", wide_out)
    head(state, dims[3], classes)
    return state


def arguments(**values: object) -> argparse.Namespace:
    """What a training script saves of its command line."""
    return argparse.Namespace(**values)
