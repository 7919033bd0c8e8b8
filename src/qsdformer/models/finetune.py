"""Starting from another network's weights: what fits is taken, and what was done is told.

The other network may have other classes, another number of image channels, other bits, levels or
neurons; where its tensors do not fit, this network keeps its own initial ones.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import Any

from timm.models import adapt_input_conv
from torch import Tensor, nn

from qsdformer.data.base import DataInfo
from qsdformer.errors import UserError
from qsdformer.models.base import SpikingTransformer
from qsdformer.models.checkpoint import Loaded, load_checkpoint
from qsdformer.models.registry import families
from qsdformer.nn.quantizers import quantized_layers

HEAD = "head."
SHOWN = 3  # names of tensors in a line
LEAST_SHARE = 0.5  # of this network's weights that must come from the other one


def start_from(
    model: SpikingTransformer, path: str | os.PathLike[str], info: DataInfo
) -> list[str]:
    """Copy into `model`, for images like `info`, what fits of a checkpoint; lines that say what.

    The averaged weights are taken where there are any. The first convolution is adapted to other
    channels, as timm does; a head for other classes is left out. Step sizes are taken where a
    layer has as many bits as before, and otherwise start from the loaded weight. Of a network with
    a neck and heads the backbone is taken. Raises
    `UserError` for a checkpoint that cannot be read or is mostly of another shape.
    """
    source = load_checkpoint(path)
    body = body_of(source.model)
    own, offered = model.state_dict(), body.state_dict()
    first = families()[model.config.family].first_conv
    changed = adapt_channels(offered, f"{first}.weight", info.channels)
    other_classes = "no classifier there"
    if body is source.model:
        other_classes = _other_classes(source, info)
    fits = {
        key: value
        for key, value in fitting(own, offered).items()
        if not (other_classes and key.startswith(HEAD))
    }
    restarted = drop_step_sizes(fits, body, model, first if changed else "")
    share = share_of(own, fits)
    if share < LEAST_SHARE:
        raise UserError(
            f"model.start_from: only {share:.0%} of this model's weights are in {path}; leave out "
            "the model keys that set its shape (dims, width, depth, ...) to take that "
            "checkpoint's"
        )
    model.load_state_dict(fits, strict=False)  # step sizes that are missing start from weights
    lines = [f"weights from {path}: {len(fits)} tensors, {share:.1%} of this model's values"]
    if changed:
        lines.append(f"  adapted to {info.channels} channels: {first}.weight")
    if restarted:
        lines.append(f"  step sizes started from the weights: {names_in_line(restarted)}")
    started = {f"{name}.log_step_size" for name in restarted}
    fresh = [key for key in own if key not in fits and key not in started]
    if fresh:
        why = f" ({other_classes})" if other_classes else ""
        lines.append(f"  newly initialised: {names_in_line(fresh)}{why}")
    if source.info is None and not other_classes:
        count = len(info.class_names)
        lines.append(f"  head taken too: {count} classes in both, whose names {path} does not say")
    left = [key for key in offered if key not in own]
    if left:
        lines.append(f"  left out, not in this model: {names_in_line(left)}")
    return lines


def check_teacher_shape(model: SpikingTransformer, teacher: SpikingTransformer) -> None:
    """`UserError` if a student could not begin with the weights that its teacher will have."""
    own = model.state_dict()
    share = share_of(own, fitting(own, teacher.state_dict()))
    if share < LEAST_SHARE:
        raise UserError(
            f"model.start_from: only {share:.0%} of this model's weights would be in its teacher; "
            "give that the same shape, as in --distill.teacher_keys '{model.width: 96}'"
        )


def fitting(own: Mapping[str, Tensor], offered: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors `offered` that are in `own` too, in the same shape."""
    return {k: v for k, v in offered.items() if k in own and v.shape == own[k].shape}


def share_of(own: Mapping[str, Tensor], taken: Mapping[str, Tensor]) -> float:
    """The share of all values of `own` that are `taken`."""
    return sum(v.numel() for v in taken.values()) / sum(v.numel() for v in own.values())


def adapt_channels(state: dict[str, Tensor], first: str, channels: int) -> bool:
    """Give the first convolution's weight in `state` other input channels, if it needs them.

    Images that show the same in every channel give the same sums as before.
    """
    weight = state.get(first)
    if weight is None or weight.shape[1] == channels:
        return False
    if weight.shape[1] == 3:
        state[first] = adapt_input_conv(channels, weight)
    else:  # which timm leaves as they are, or refuses
        state[first] = weight.sum(1, keepdim=True).repeat(1, channels, 1, 1) / channels
    return True


def body_of(model: Any) -> nn.Module:
    """A classifier, or the backbone of a network with a neck and heads."""
    whole: nn.Module = model
    return whole if isinstance(whole, SpikingTransformer) else model.body


def _other_classes(source: Loaded, info: DataInfo) -> str:
    """In words, how a checkpoint's classes differ from those of the data; empty if they do not."""
    before, now = source.model.num_classes, len(info.class_names)
    if before != now:
        return f"{before} classes there, {now} here"
    if source.info is not None and source.info.class_names != info.class_names:
        return f"{now} other classes"
    return ""


def drop_step_sizes(
    fits: dict[str, Tensor], source: nn.Module, model: nn.Module, adapted: str
) -> list[str]:
    """Take out of `fits` the step sizes that are not for the weights there or for their bits.

    `adapted` is the layer whose weight was changed on the way, or empty. Returns the layers whose
    step sizes therefore start from a loaded weight.
    """
    before = {name: layer.coding for name, layer in quantized_layers(source).items()}
    restarted = []
    for name, layer in quantized_layers(model).items():
        there = f"{name}.weight" in fits
        changed = name == adapted
        if not there or changed or before.get(name) != layer.coding:
            fits.pop(f"{name}.log_step_size", None)
        if layer.bits is not None and there and f"{name}.log_step_size" not in fits:
            restarted.append(name)
    return restarted


def names_in_line(keys: Iterable[str]) -> str:
    """The first names of tensors, and how many more there are."""
    listed = list(keys)
    more = f" and {len(listed) - SHOWN} more" if len(listed) > SHOWN else ""
    return ", ".join(listed[:SHOWN]) + more
