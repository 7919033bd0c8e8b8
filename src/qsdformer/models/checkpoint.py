"""Checkpoints: one file with the weights, the configuration that builds the model, and its inputs.

A checkpoint is a dictionary of tensors and plain values saved by torch, with the key "qsdformer"
(format version, model configuration, data info, extra) beside "state_dict" (keys `model.*`, and
`ema.module.*` for averaged weights). Training writes the same format with Lightning's keys added.
Reading one never unpickles anything but tensors and plain values.
"""

from __future__ import annotations

import errno
import os
import pickle
import warnings
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.serialization import safe_globals

from qsdformer.data import DataInfo
from qsdformer.devices import pick_device
from qsdformer.errors import UserError, one_line, shown_value
from qsdformer.files import atomic_path, exported_kind
from qsdformer.models.base import SpikingTransformer
from qsdformer.models.dense.config import DenseConfig, dense_config_from_dict
from qsdformer.models.networks import build_network
from qsdformer.models.registry import (
    FIRST_FAMILY,
    UnknownFamilyError,
    config_from_dict,
    families,
)
from qsdformer.nn.config import NetworkConfig

FORMAT_VERSION = 1
KEY = "qsdformer"
MODEL_PREFIX = "model."
EMA_PREFIX = "ema.module."

PICKLE_STARTS = tuple(bytes([0x80, protocol]) for protocol in range(2, 6))
BLOCK_TENSORS = 10  # fewer than any transformer block has


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """What a checkpoint holds: a model in eval mode, its inputs' description and the rest.

    The model of a dense task is a network of `qsdformer.models.dense`.
    """

    model: SpikingTransformer
    info: DataInfo | None
    extra: dict[str, Any]

    @property
    def task(self) -> str:
        """What the model is for: classification, segmentation or detection."""
        return task_of(self.model.config)

    @property
    def recipe(self) -> dict[str, Any]:
        """The plain values of the recipe it was trained with; empty if it does not say."""
        recipe: dict[str, Any] = self.extra.get("recipe", {})
        return recipe


def header(
    config: NetworkConfig | DenseConfig,
    info: DataInfo | None,
    extra: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The value of the "qsdformer" key: plain values only.

    The configuration of a dense network has the keys "task" and "backbone".
    """
    return {
        "format_version": FORMAT_VERSION,
        "model_config": config.to_dict(),
        "data_info": None if info is None else info.to_dict(),
        "extra": dict(extra or {}),
    }


def save(
    model: SpikingTransformer, path: str | os.PathLike[str], info: DataInfo | None = None
) -> None:
    """Write a model of ours, from whatever training loop, as a checkpoint that `load` reads.

    `info` describes the images that it takes and names its classes; `qsd predict`, `export` and
    `verify` need it. Raises `UserError` for anything but a whole model of ours, where `info` does
    not fit it, and where the file cannot be written. Norms may be timm's frozen ones.
    """
    if not isinstance(model, SpikingTransformer):
        inner = next((n for n in ("module", "_orig_mod") if hasattr(model, n)), None)
        hint = f": save model.{inner}, which is inside" if inner else ""
        raise UserError(f"cannot save a {type(model).__name__} as a checkpoint{hint}")
    config = model.config
    if info is not None and info.channels != config.in_channels:
        raise UserError(
            f"info says {info.channels} channels, but the model takes {config.in_channels}"
        )
    if info is not None and len(info.class_names) != config.num_classes:
        raise UserError(
            f"info names {len(info.class_names)} classes, but the model has {config.num_classes}"
        )
    write({KEY: header(config, info), "state_dict": _whole_state(model)}, path)


def save_checkpoint(
    path: str | os.PathLike[str],
    model: SpikingTransformer,
    info: DataInfo | None = None,
    extra: Mapping[str, Any] | None = None,
) -> None:
    """Write `model` to `path`, whole or not at all; `UserError` if it cannot be written."""
    write({KEY: header(model.config, info, extra), "state_dict": _stored(model.state_dict())}, path)


def _stored(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {MODEL_PREFIX + key: value.cpu() for key, value in state.items()}


def _whole_state(model: SpikingTransformer) -> dict[str, Tensor]:
    """What a checkpoint has of a model; a `UserError` for one that has lost or gained a part.

    Frozen norms have no counters of batches, which only averages without momentum look at.
    """
    state = model.state_dict()
    with torch.device("meta"):
        own = build_network(model.config, None).state_dict()
    for key in set(own) - set(state):
        if key.endswith("num_batches_tracked"):
            state[key] = torch.zeros((), dtype=torch.int64)
    wrong = sorted(set(own) ^ set(state))
    if wrong:
        kind = "lacks" if wrong[0] in own else "has besides"
        raise UserError(
            f"cannot save a model that is not as its configuration says: it {kind} {wrong[0]}"
        )
    return _stored(state)


def load_checkpoint(path: str | os.PathLike[str], device: str = "cpu") -> Loaded:
    """Read a checkpoint of ours; the averaged weights where there are any.

    Raises `UserError` for a file that is missing, damaged, of another kind or another version,
    and for weights that do not fit the model, naming the first of them.
    """
    content = read(path)
    head = content[KEY]
    try:
        config = _config(head["model_config"])
        info = None if head["data_info"] is None else DataInfo.from_dict(head["data_info"])
        extra = dict(head["extra"])
    except UnknownFamilyError as error:
        raise UserError(f"{path}: {error}: is it from another version of qsdformer?") from error
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{path}: damaged checkpoint header: {one_line(error)}") from error
    weights = _weights(content, path)
    # Even a model without memory takes its time to build.
    depth = getattr(getattr(config, "backbone", config), "depth", 0)
    if depth * BLOCK_TENSORS > len(weights):
        raise UserError(
            f"{path}: damaged checkpoint header: depth={depth} with {len(weights)} weights"
        )
    with torch.device("meta"):
        model = build_network(config, info)
    load_weights(model, weights, path)
    return Loaded(model=model.to(device).eval(), info=info, extra=extra)


def load(path: str | os.PathLike[str], device: str = "cpu") -> SpikingTransformer:
    """The model of a checkpoint in eval mode; its attribute `data_info` describes its inputs.

    `data_info` is None for imported models. Raises `UserError` as `load_checkpoint`, and for a
    device that is not there.
    """
    target = pick_device(device)  # before the file is read: a missing device is no damage to it
    loaded = load_checkpoint(path)
    # Past nn.Module.__setattr__, whose type admits only tensors and modules.
    vars(loaded.model)["data_info"] = loaded.info
    return loaded.model.to(target)


def read(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The checked dictionary behind a checkpoint of ours: tensors and plain values only."""
    return _checked(load_tensors(path), path)


def load_tensors(path: str | os.PathLike[str], allowed: Sequence[type] = ()) -> Any:
    """What torch saved in any file, refusing everything but tensors and plain values.

    `allowed` are further classes whose instances may be in it. Nothing is read that would take
    more memory than the file has bytes.
    """
    file = Path(path)
    if file.is_dir():
        hint = next((f"; did you mean {c}?" for c in _inside(file)), "; give the file in it")
        raise UserError(f"{path} is a folder, not a checkpoint{hint}")
    if not file.exists():
        raise UserError(f"no checkpoint {path}: check the path, or make one with qsd train")
    if kind := exported_kind(path):
        raise UserError(
            f"{path}: a {kind} file of qsd export, but a checkpoint is needed here: give the one "
            "it was made of (qsd predict, eval, verify, bench and simulate take exported files)"
        )
    damaged = UserError(
        f"{path}: not a checkpoint, or cut short or damaged; copy or train it again"
    )
    try:
        with file.open("rb") as opened:
            pickled = opened.read(2) in (b"PK", *PICKLE_STARTS)
        if zipfile.is_zipfile(file) and not _is_sound(file):
            raise damaged
        with warnings.catch_warnings(action="ignore"), safe_globals(list(allowed)):
            return torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if pickled and ("Unsupported" in str(error) or "GLOBAL" in str(error)):
            raise UserError(
                f"{path}: refused, it holds Python objects besides tensors and plain values"
            ) from error
        raise damaged from error
    except OSError as error:
        if error.errno == errno.EINVAL:  # a place before the file's start, in a damaged archive
            raise damaged from error
        reason = error.strerror or one_line(error)
        raise UserError(f"cannot read checkpoint {path}: {reason}") from error
    except UserError:
        raise
    except Exception as error:  # on hostile bytes unpicklers raise whatever Python has
        raise damaged from error


def write(content: Mapping[str, Any], path: str | os.PathLike[str]) -> None:
    """Save tensors and plain values to `path`, whole or not at all."""
    with atomic_path(path) as temporary:
        try:
            with temporary.open("wb") as file:
                torch.save(dict(content), file)
        except RuntimeError as error:
            # torch reports a failed write as a RuntimeError of its own, without the errno.
            raise _write_error(error) from error


def _is_sound(archive: Path) -> bool:
    """Whether all parts are as long as they say, uncompressed as torch writes them, and intact."""
    with zipfile.ZipFile(archive) as opened:
        parts = opened.infolist()
        stored = all(p.compress_type == zipfile.ZIP_STORED for p in parts)
        if not stored or sum(p.file_size for p in parts) > archive.stat().st_size:
            return False
        return opened.testzip() is None  # torch itself would not notice damage inside a tensor


def load_weights(
    model: SpikingTransformer, state: Mapping[str, Tensor], path: str | os.PathLike[str]
) -> None:
    """Make the tensors of `state` those of `model`, which may be on the meta device.

    Every key and shape must match and every value be a finite number, or a `UserError` names one.
    """
    own = model.state_dict()
    missing = sorted(set(own) - set(state))
    unknown = sorted(set(state) - set(own))
    if missing or unknown:
        kind, keys = ("lacks", missing) if missing else ("has the unknown", unknown)
        first = one_line(keys[0])
        more = f" and {len(keys) - 1} more" if len(keys) > 1 else ""
        raise UserError(f"{path}: the checkpoint {kind} weight {first}{more}; is it another's?")
    for key, value in state.items():
        if value.shape != own[key].shape:
            have, want = tuple(value.shape), tuple(own[key].shape)
            raise UserError(f"{path}: weight {key} has shape {have}, but the model needs {want}")
        if value.layout is not torch.strided or value.is_quantized or value.is_complex():
            raise UserError(f"{path}: weight {key} is not a plain tensor of real numbers")
    # One number may stand for many in a tensor of stride 0.
    needed = sum(value.numel() * value.element_size() for value in state.values())
    if needed > Path(path).stat().st_size:
        raise UserError(f"{path}: damaged: its weights need {needed:,} bytes, more than it has")
    weights = {key: value.to(own[key].dtype).contiguous() for key, value in state.items()}
    for key, value in weights.items():
        if not value.isfinite().all():
            raise UserError(
                f"{path}: weight {key} is not finite: training has diverged; train again with a "
                "lower learning rate or clip_grad"
            )
    model.load_state_dict(weights, assign=True)


def task_of(config: NetworkConfig | DenseConfig) -> str:
    """The task of a configuration's network."""
    return config.task if isinstance(config, DenseConfig) else "classification"


def _config(values: Mapping[str, Any]) -> NetworkConfig | DenseConfig:
    """A stored configuration: one that names its task is a dense network's."""
    return dense_config_from_dict(values) if "task" in values else config_from_dict(values)


def check_same_model(
    saved: Mapping[str, Any], config: NetworkConfig | DenseConfig, path: Path
) -> None:
    """`UserError` naming the first field in which a checkpoint's model differs from `config`."""
    wanted, saved = _flat(config.to_dict()), _flat(saved)
    for name in sorted(set(wanted) | set(saved)):
        if saved.get(name) != wanted.get(name):
            raise UserError(
                f"cannot resume from {path}: its model has {name}={saved.get(name)!r}, the "
                f"recipe {wanted.get(name)!r}; use the recipe it was trained with"
            )


def _flat(values: Mapping[str, Any]) -> dict[str, Any]:
    """A stored configuration with its backbone's fields among its own, and every family named.

    Fields that decide nothing in a family are left out.
    """
    backbone = values.get("backbone")
    if not isinstance(backbone, Mapping):
        whole = {"family": FIRST_FAMILY, **values}
        family = families().get(str(whole["family"]))
        return whole if family is None else family.deciding(whole)
    own = {name: value for name, value in values.items() if name != "backbone"}
    return {**own, **{f"backbone.{k}": v for k, v in _flat(backbone).items()}}


def _checked(content: Any, path: str | os.PathLike[str]) -> dict[str, Any]:
    head = content.get(KEY) if isinstance(content, dict) else None
    if not isinstance(head, dict) or not isinstance(content.get("state_dict"), dict):
        raise UserError(
            f"{path}: not a checkpoint of qsdformer; bring published weights in with "
            "qsd import-reference"
        )
    version = head.get("format_version")
    if version != FORMAT_VERSION:
        raise UserError(
            f"{path}: checkpoint format {shown_value(version)}, but this version reads "
            f"{FORMAT_VERSION}; use the qsdformer that wrote it"
        )
    _check_sections(head, path)
    return content


def _check_sections(head: Mapping[str, Any], path: str | os.PathLike[str]) -> None:
    """`UserError` where the header lacks something, or where a mapping should be and is none."""
    extra = head.get("extra")
    sections: dict[str, Any] = {"model_config": head.get("model_config"), "extra": extra}
    recipe = extra.get("recipe", {}) if isinstance(extra, dict) else {}
    sections["recipe"] = recipe
    if isinstance(recipe, dict):
        sections |= {name: recipe[name] for name in ("model", "data", "train") if name in recipe}
    for name, section in sections.items():
        if not isinstance(section, dict):
            wrong = f"{name}={shown_value(section)} is not a section"
            raise UserError(f"{path}: damaged checkpoint header: {wrong}")


def _weights(content: Mapping[str, Any], path: str | os.PathLike[str]) -> dict[str, Tensor]:
    state = content["state_dict"]
    averaged = any(str(key).startswith(EMA_PREFIX) for key in state)
    prefix = EMA_PREFIX if averaged else MODEL_PREFIX
    weights = {str(k).removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
    others = (MODEL_PREFIX, EMA_PREFIX)
    for key, value in state.items():
        if not str(key).startswith(others) or not isinstance(value, Tensor):
            raise UserError(
                f"{path}: unexpected entry {one_line(key)} in the checkpoint's state_dict"
            )
    return weights


def _inside(folder: Path) -> list[Path]:
    return [file for name in ("best.ckpt", "last.ckpt") if (file := folder / name).is_file()]


def _write_error(error: RuntimeError) -> OSError:
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError):
            return cause
        cause = cause.__cause__ or cause.__context__
    return OSError(errno.EIO, f"writing failed, perhaps the disk is full ({one_line(error)})")
