"""Reading a published checkpoint: which network it is, its tensors, nothing left over."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from qsdformer.errors import UserError
from qsdformer.models.base import SpikingTransformer
from qsdformer.models.building import build
from qsdformer.models.checkpoint import load_tensors
from qsdformer.models.published.e_spikeformer import PUBLISHED as E_SPIKEFORMER
from qsdformer.models.published.mapping import Pair, Published, State, Told
from qsdformer.models.published.metaspikeformer import PUBLISHED as METASPIKEFORMER
from qsdformer.models.published.sdt import PUBLISHED as SDT
from qsdformer.models.published.spikformer import PUBLISHED as SPIKFORMER

PUBLISHED: tuple[Published, ...] = (
    METASPIKEFORMER,
    SDT,
    SPIKFORMER,
    E_SPIKEFORMER,
)

SAFETENSORS = ".safetensors"
# In a safetensors file that holds more than a state dict, the keys that are its.
STATE_PREFIX = "state."


def import_reference(
    path: str | os.PathLike[str],
    heads: int | None = None,
    *,
    time_steps: int | None = None,
    pooling: str | None = None,
    dvs_mode: bool | None = None,
) -> SpikingTransformer:
    """The network of a published checkpoint, in evaluation mode; its logits are means over time.

    `path` is the published `.pth`, read without unpickling arbitrary objects, or a `.safetensors`
    file of the same names. Which network it holds, its widths, depth and classes are read from
    the tensors, other facts from the training arguments in the file. What neither tells has to be
    given: attention `heads`, `time_steps`, SDT v1's `pooling` (such as "1111"), its `dvs_mode`
    where images have two channels. What is given goes before the file's arguments; what the
    network has no choice of is ignored with a warning. Every tensor must be accounted for: an
    unmatched, missing or misshaped key is a `UserError` that names it, and so is a file that is of
    no known network or could be of two.
    """
    given = {"heads": heads, "time_steps": time_steps, "pooling": pooling, "dvs_mode": dvs_mode}
    tensors, saved = _read(path)
    for name, value in tensors.items():
        if isinstance(value, Tensor) and value.nbytes > value.untyped_storage().nbytes():
            raise UserError(f"{path}: damaged: {name} has more values than the file holds")
    state = State(tensors, str(path))
    told = Told(path=str(path), given=given, saved=saved)
    published = _recognise(state)
    fields = published.fields(state, told)
    try:
        config = published.config(**fields)
    except ValueError as error:
        raise UserError(f"{path}: {error}") from error
    model = build(config)
    pairs = list(published.pairs(config, state))
    loaded = _matched(model, state, pairs, published)
    model.load_state_dict(loaded)
    if published.finish is not None:
        published.finish(model, state, {ours: theirs for ours, theirs, _ in pairs})
    return model.eval()


def _read(path: str | os.PathLike[str]) -> tuple[dict[str, Any], argparse.Namespace | None]:
    """The state dict in a file, and the training script's arguments where it has them."""
    if Path(path).suffix == SAFETENSORS:
        return _read_safetensors(path), None
    content = load_tensors(path, allowed=(argparse.Namespace,))
    saved = None
    state = content
    if isinstance(content, dict):
        held = [key for key in ("model", "state_dict") if isinstance(content.get(key), dict)]
        if len(held) > 1:
            raise UserError(f'{path}: two state dicts, "model" and "state_dict": keep one of them')
        found = content.get("args")
        saved = found if isinstance(found, argparse.Namespace) else None
        if held:
            state = content[held[0]]
        elif not content or not all(isinstance(value, Tensor) for value in content.values()):
            state = None
    if not isinstance(state, dict):
        raise UserError(
            f'{path}: not a published checkpoint: no "model" state dict in it, no "state_dict", '
            "and not one itself"
        )
    return _named({str(key): value for key, value in state.items()}, "module.", path), saved


def _read_safetensors(path: str | os.PathLike[str]) -> dict[str, Any]:
    if not Path(path).is_file():
        raise UserError(f"no checkpoint {path}: check the path")
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path}: not a safetensors file, or cut short or damaged") from error
    state = {k: v for k, v in tensors.items() if k.startswith(STATE_PREFIX)} or tensors
    return _named(_named(state, STATE_PREFIX, path), "module.", path)


def _named(state: dict[str, Any], prefix: str, path: object) -> dict[str, Any]:
    """The entries without a prefix; a `UserError` where two then have one name."""
    found = {key.removeprefix(prefix): value for key, value in state.items()}
    if len(found) < len(state):
        twice = next(k for k in state if k.startswith(prefix) and k.removeprefix(prefix) in state)
        raise UserError(f"{path}: {twice!r} is there without {prefix!r} too: keep one of them")
    return found


def _recognise(state: State) -> Published:
    found = [published for published in PUBLISHED if published.recognises(state)]
    if not found:
        known = ", ".join(published.name for published in PUBLISHED)
        raise UserError(
            f"{state.path}: the weights are of none of the known networks: {known}; a checkpoint "
            "of qsd train is ours already and needs no import"
        )
    if len(found) > 1:
        names = " or ".join(published.name for published in found)
        raise UserError(f"{state.path}: the weights could be of {names}: keep the keys of one")
    return found[0]


def _matched(
    model: SpikingTransformer, state: State, pairs: list[Pair], published: Published
) -> dict[str, Tensor]:
    """Our state dict; a `UserError` for the first key or shape that does not fit."""
    path, expected = state.path, model.state_dict()
    loaded: dict[str, Tensor] = {}
    for ours, theirs, kind in pairs:
        if theirs not in state.tensors:
            raise UserError(f"{path}: missing key {theirs!r} (wanted for {ours})")
        value = state.tensors[theirs]
        if not isinstance(value, Tensor):
            raise UserError(f"{path}: key {theirs!r} is not a tensor")
        if value.is_floating_point() and not value.isfinite().all():
            raise UserError(f"{path}: key {theirs!r} has values that are not finite")
        loaded[ours] = _convert(value, kind, expected[ours].dim())
    used = {theirs for _, theirs, _ in pairs}
    ignored = published.ignored(state)
    unmatched = sorted(k for k in set(state.tensors) - used if not ignored.search(k))
    if unmatched:
        raise UserError(f"{path}: {len(unmatched)} unmatched keys: {_some(unmatched)}")
    missing = sorted(set(expected) - set(loaded))
    if missing:
        raise UserError(f"{path}: nothing published for {_some(missing)}")
    for ours, theirs, _ in pairs:
        if loaded[ours].shape != expected[ours].shape:
            have, want = tuple(state.tensors[theirs].shape), tuple(expected[ours].shape)
            raise UserError(f"{path}: key {theirs!r} has shape {have}, expected {want}")
    return loaded


def _convert(value: Tensor, kind: str, dimensions: int) -> Tensor:
    if kind == "step":
        return value.double().log().float()
    if kind == "conv":
        # Linear layers and 1x1 convolutions over flattened tokens become 2-D convolutions.
        return value.reshape(*value.shape, *[1] * (dimensions - value.dim()))
    return value


def _some(names: list[str], limit: int = 3) -> str:
    return ", ".join(names[:limit]) + (", ..." if len(names) > limit else "")
