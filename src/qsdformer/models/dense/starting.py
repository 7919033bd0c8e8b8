"""A dense network's backbone from a checkpoint: all of it, or an error.

Unlike fine-tuning of classifiers (`models/finetune.py`), which takes what fits, every tensor of
the backbone must be there in its shape. What a checkpoint has beside it is left out, and told.
"""

from __future__ import annotations

import os
from typing import Any

from torch import Tensor, nn

from qsdformer.errors import UserError
from qsdformer.models.checkpoint import load_checkpoint
from qsdformer.models.dense.base import DenseNetwork
from qsdformer.models.finetune import adapt_channels, body_of, drop_step_sizes, names_in_line
from qsdformer.models.registry import families

CLASSIFIER = "head."
STEP_SIZE = "log_step_size"  # its absence or presence follows from the bits
SAME_LATER = ("num_classes", "drop_path_rate")  # fields that a dense network has its own way with


def start_backbone(network: DenseNetwork, path: str | os.PathLike[str]) -> list[str]:
    """Copy a checkpoint's weights and statistics into the backbone; lines that say what was done.

    The checkpoint is a classifier's of ours, trained or made of a published one by `qsd
    import-reference`, or that of a dense network, whose backbone is taken and whose neck and
    heads are left out. The averaged weights are taken where there are any. Step sizes are taken
    where a layer has as many bits as before, and otherwise start from the loaded weight; the first
    convolution is adapted to other image channels; norms that an ANN lacks because it does not
    spike start anew. Raises `UserError` for a checkpoint that cannot be read, lacks a tensor, has
    one that is neither of the backbone nor of the classifier, or one of another shape.
    """
    whole: nn.Module = load_checkpoint(path).model
    source = body_of(whole)
    body, config = network.body, network.body.config
    there: Any = source.config
    if there.family != config.family:
        raise UserError(f"{path}: a {there.family} network, but the backbone is a {config.family}")
    own, offered = body.state_dict(), source.state_dict()
    first = families()[config.family].first_conv
    adapted = adapt_channels(offered, f"{first}.weight", config.in_channels)
    left = [key for key in offered if key.startswith(CLASSIFIER)]
    taken = {key: value for key, value in offered.items() if key not in left}
    # An ANN has no norms before neurons that only spiking networks have.
    new = _without(own, taken) if config.is_spiking and not there.is_spiking else []
    _check({key: value for key, value in own.items() if key not in new}, taken, path)
    unused = [key for key in taken if key not in own]  # step sizes of a layer that has none here
    fits = {key: value for key, value in taken.items() if key in own}
    restarted = drop_step_sizes(fits, source, body, first if adapted else "")
    body.load_state_dict(fits, strict=False)  # step sizes that are missing start from weights
    lines = [f"backbone from {path}: {len(fits)} tensors"]
    if adapted:
        lines.append(f"  adapted to {config.in_channels} channels: {first}.weight")
    if restarted:
        lines.append(f"  step sizes started from the weights: {names_in_line(restarted)}")
    if changed := _differences(there.to_dict(), config.to_dict()):
        lines.append(f"  other settings here: {changed}")
    around = _around(whole) if isinstance(whole, DenseNetwork) else []
    if tensors := [*left, *unused]:
        around.append(names_in_line(tensors))
    if around:
        lines.append(f"  left out: {', '.join(around)}")
    started = [names_in_line(new)] if new else []
    lines.append(f"  newly initialised: {', '.join([*started, *_around(network)])}")
    return lines


def _around(network: DenseNetwork) -> list[str]:
    """The parts of a dense network beside its backbone."""
    return [*network.PARTS["neck"], *network.PARTS["heads"]]


def _without(own: dict[str, Tensor], taken: dict[str, Tensor]) -> list[str]:
    """What the backbone has and a checkpoint has not, but for step sizes."""
    return [key for key in own if key not in taken and not key.endswith(STEP_SIZE)]


def _check(own: dict[str, Tensor], taken: dict[str, Tensor], path: object) -> None:
    """`UserError` for the first tensor that is missing, unknown or of another shape."""
    missing = _without(own, taken)
    unknown = [k for k in taken if k not in own and not k.endswith(STEP_SIZE)]
    advice = "give the backbone the checkpoint's model keys (dims, depth, fully_spiking, ...)"
    if missing:
        raise UserError(f"{path}: lacks {names_in_line(missing)} of the backbone: {advice}")
    if unknown:
        raise UserError(f"{path}: has {names_in_line(unknown)}, unknown to the backbone: {advice}")
    for key, value in taken.items():
        if key in own and value.shape != own[key].shape:
            have, want = tuple(value.shape), tuple(own[key].shape)
            raise UserError(f"{path}: {key} has shape {have}, the backbone {want}: {advice}")


def _differences(there: dict[str, Any], here: dict[str, Any]) -> str:
    """Settings without tensors of their own that differ, with both values."""
    names = [n for n in here if n not in SAME_LATER and there.get(n) != here[n]]
    return ", ".join(f"{n} {there.get(n)} there, {here[n]} here" for n in names)
