"""Teachers: frozen models in eval mode that give logits and the q, k, v of every attention block.

A teacher is one of our own models (ANN or spiking), or any vision transformer or CAFormer of timm.
Legend: B batch, h heads, N tokens, d channels per head.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn

from qsdformer.data import DataInfo
from qsdformer.data.base import numbered_classes
from qsdformer.errors import UserError, one_line
from qsdformer.models.base import SpikingTransformer
from qsdformer.models.checkpoint import load_checkpoint, load_tensors
from qsdformer.models.dense.base import DenseNetwork
from qsdformer.nn.taps import recording
from qsdformer.recipes.learning import FEATURES
from qsdformer.tasks.fgd import Features, token_features

TIMM_PREFIX = "timm:"
PRETRAINED = "pretrained"


class Teacher:
    """A frozen model; calling it with images gives (logits (B, classes), features per block).

    Not an nn.Module: it must become part of no student, and so of no checkpoint or optimiser.
    `info` says how the student's images are normalised; `mean` and `std` how the teacher wants
    them, where that differs. `checkpoint` is the file of one of our own models. `class_names` is
    None for a teacher that does not say what its classes are.
    """

    def __init__(
        self,
        model: nn.Module,
        features: Sequence[str] = FEATURES,
        *,
        name: str = "teacher",
        info: DataInfo | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        checkpoint: str | None = None,
        class_names: Sequence[str] | None = None,
    ) -> None:
        self.checkpoint = checkpoint
        self.class_names = None if class_names is None else tuple(class_names)
        self.model = model.eval().requires_grad_(False)
        self.features = tuple(features)
        self.name = name
        self.device = torch.device("cpu")
        self._affine = None if info is None else _renormalisation(info, mean, std)
        self.num_classes = int(getattr(model, "num_classes", 0))
        self._reader = _reader(model, self.features, name)

    def to(self, device: torch.device | str) -> Teacher:
        """Move to a device."""
        self.device = torch.device(device)
        self.model.to(device)
        if self._affine is not None:
            self._affine = (self._affine[0].to(device), self._affine[1].to(device))
        return self

    @torch.no_grad()
    def __call__(self, images: Tensor) -> tuple[Tensor, list[Features]]:
        """Logits and one dict a block, feature name to (B, h, N, d)."""
        if self._affine is not None:
            images = images * self._affine[0] + self._affine[1]
        logits = self.model(images)
        blocks = self._reader.blocks()
        self._reader.clear()
        return logits, blocks

    def compile(self) -> None:
        """Compile the forward pass of one of our own models; a timm model stays as it is."""
        if isinstance(self.model, SpikingTransformer):
            self.model.compile()


class FeatureReader:
    """Reads q, k, v of one of our own models at every forward pass, until it is closed.

    The hooks stay in place over many steps, and `clear` before or after each step leaves the
    same state every time, as compiled code needs. `source` "membrane" reads what enters the
    q, k, v neurons, "counts" what leaves them.
    """

    def __init__(
        self, model: SpikingTransformer, features: Sequence[str], source: str = "counts"
    ) -> None:
        self.config = model.config
        self.features = tuple(features)
        self._stack = contextlib.ExitStack()
        patterns = [f"*.attention.{name}_neuron" for name in features]
        inputs = source == "membrane"
        self._acts = self._stack.enter_context(recording(model, *patterns, inputs=inputs))

    def clear(self) -> None:
        """Forget the latest pass."""
        self._acts.clear()

    def close(self) -> None:
        """Remove the hooks."""
        self._stack.close()

    def blocks(self) -> list[Features]:
        """One dict a block of the latest pass, feature name to (B, h, N, d), gradients attached."""
        found: dict[str, dict[str, Tensor]] = {}
        for path, output in self._acts.items():
            block, _, neuron = path.rpartition(".")
            features = token_features(output, self.config.heads, self.config.time_steps)
            found.setdefault(block, {})[neuron.removesuffix("_neuron")] = features
        # By definition order, not by the order of hooks within a block.
        return [{name: block[name] for name in self.features} for block in found.values()]


class TimmReader:
    """Reads q, k, v of every softmax attention of a timm model at every forward pass.

    q and k are read after their norms, where there are any; class and register tokens are left
    out. Raises `UserError` for a model without such attention.
    """

    def __init__(self, model: nn.Module, features: Sequence[str], name: str) -> None:
        self.features = tuple(features)
        self._name = name
        self._prefix = int(getattr(model, "num_prefix_tokens", 0))
        self._captured: list[dict[str, Tensor]] = []
        for attention in _timm_attentions(model, name):
            self._captured.append(_capture(attention))

    def clear(self) -> None:
        """Forget the latest pass."""
        for block in self._captured:
            block.clear()

    def blocks(self) -> list[Features]:
        """One dict a block of the latest pass, feature name to (B, h, N, d)."""
        if any(set(one) != set(FEATURES) for one in self._captured):
            raise _unreadable(self._name)
        return [{n: one[n][:, :, self._prefix :] for n in self.features} for one in self._captured]


class NoReader:
    """For a teacher of whom the logits alone are wanted, which may be any network."""

    def clear(self) -> None:
        """Nothing to forget."""

    def blocks(self) -> list[Features]:
        """None."""
        return []


Reader = FeatureReader | TimmReader | NoReader


def _reader(model: nn.Module, features: Sequence[str], name: str) -> Reader:
    if not features:
        return NoReader()
    if isinstance(model, SpikingTransformer):
        return FeatureReader(model, features)
    return TimmReader(model, features, name)


def checkpoint_teacher(path: str | Path, info: DataInfo, features: Sequence[str]) -> Teacher:
    """A teacher from a checkpoint of ours, for images described by `info`.

    Of a dense network it is the backbone, which gives features in place of logits.
    """
    loaded = load_checkpoint(path)
    check_teacher_channels(str(path), loaded.model.config.in_channels, info)
    own = loaded.info or info
    whole: nn.Module = loaded.model
    model = whole.body if isinstance(whole, DenseNetwork) else whole
    source = loaded.recipe.get("data", {}).get("name")
    return Teacher(
        model,
        features,
        name=str(path),
        info=info,
        mean=own.mean,
        std=own.std,
        checkpoint=str(path),
        class_names=None if loaded.info is None else said_classes(loaded.info, source),
    )


def check_teacher_channels(teacher: str, channels: int, info: DataInfo) -> None:
    """`UserError` for a teacher of other channels than the data's images have."""
    if channels != info.channels:
        raise UserError(
            f"teacher {teacher} takes images of {channels} channels, the data has "
            f"{info.channels}; train a teacher on this data"
        )


def said_classes(info: DataInfo, source: str | None) -> tuple[str, ...] | None:
    """The names of the classes of a data source; None where they are numbers without a meaning.

    Digits are called by numbers; in a folder, or where no source is known, any class may be.
    """
    numbered = info.class_names == numbered_classes(len(info.class_names))
    return None if numbered and source in (None, "image_folder") else info.class_names


def timm_teacher(
    name: str,
    info: DataInfo,
    features: Sequence[str],
    weights: str = PRETRAINED,
    *,
    sizes_vary: bool = False,
) -> Teacher:
    """A timm vision transformer or CAFormer that sees the student's images at their size.

    Without `features` any classifier of timm's.

    `weights` is "pretrained" (timm downloads them) or a file of a state dict, which decides the
    number of classes. timm interpolates position embeddings to the image size and adapts the
    first layer to the images' channels; images are not resized. Where their `sizes_vary` from batch
    to batch, position embeddings are interpolated in each.
    """
    if not timm.is_model(name):
        close = ", ".join(timm.list_models(f"*{name.split('_')[0]}*")[:3])
        raise UserError(f"timm has no model {name!r}" + (f"; it has {close}" if close else ""))
    options: dict[str, Any] = {"in_chans": info.channels}
    if "vit" in name or "deit" in name:
        options["img_size"] = info.image_size
        if sizes_vary:
            options["dynamic_img_size"] = True
    failure = f"cannot make the timm teacher {name}"
    if weights == PRETRAINED:
        advice = "; without a network give a file: distill.teacher_weights"
    else:
        source = _source(name, _timm_state(weights))
        failure, advice = f"{weights} does not fit the timm teacher {name}", ""
        options |= {"num_classes": source["num_classes"], "pretrained_cfg_overlay": source}
    try:
        with _quiet("huggingface_hub"):
            model = timm.create_model(name, pretrained=True, **options)
    except (RuntimeError, OSError, ValueError, TypeError, KeyError) as error:
        reason = f"no key {error}" if isinstance(error, KeyError) else one_line(error)
        raise UserError(f"{failure}: {reason}{advice}") from error
    config: dict[str, Any] = model.pretrained_cfg  # type: ignore[assignment]
    config.pop("state_dict", None)  # timm's copy of the weights, by now in the model
    return Teacher(
        model,
        features,
        name=TIMM_PREFIX + name,
        info=info,
        mean=_per_channel(config["mean"], info.channels),
        std=_per_channel(config["std"], info.channels),
    )


def _timm_state(file: str) -> dict[str, Tensor]:
    content = load_tensors(file)
    for key in ("state_dict", "model"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if not isinstance(content, dict) or not all(isinstance(v, Tensor) for v in content.values()):
        raise UserError(f"{file}: not a state dict of a timm model")
    return content


def _classes(state: dict[str, Tensor], classifier: str | tuple[str, ...] | None) -> int:
    name = classifier if isinstance(classifier, str | None) else classifier[0]
    last = state.get(f"{name}.weight")
    return 0 if last is None else last.shape[0]


def _source(name: str, state: dict[str, Tensor]) -> dict[str, Any]:
    """What timm must know of a state dict to adapt it: its classes and its images' channels."""
    registered = timm.get_pretrained_cfg(name)
    first = getattr(registered, "first_conv", None)
    weight = state.get(f"{first}.weight")
    channels = 3 if weight is None else weight.shape[1]
    size = getattr(registered, "input_size", (3, 224, 224))
    return {
        "state_dict": state,
        "num_classes": _classes(state, getattr(registered, "classifier", None)),
        "label_offset": 0,
        "input_size": (channels, *size[1:]),
    }


@contextlib.contextmanager
def _quiet(name: str) -> Iterator[None]:
    """Only errors from a library's logger."""
    logger = logging.getLogger(name)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _per_channel(values: Sequence[float], channels: int) -> tuple[float, ...]:
    """RGB statistics, or their mean for grey images."""
    return tuple(values) if channels == 3 else (sum(values) / len(values),) * channels


def _renormalisation(
    info: DataInfo, mean: Sequence[float] | None, std: Sequence[float] | None
) -> tuple[Tensor, Tensor] | None:
    """Scale and shift, (C, 1, 1), from the student's normalisation to the teacher's, or None."""
    if mean is None or std is None or (tuple(mean), tuple(std)) == (info.mean, info.std):
        return None
    own_mean, own_std, other_mean, other_std = (
        torch.tensor(values, dtype=torch.float32).view(-1, 1, 1)
        for values in (info.mean, info.std, mean, std)
    )
    return own_std / other_std, (own_mean - other_mean) / other_std


def _timm_attentions(model: nn.Module, name: str) -> list[nn.Module]:
    """The softmax attention modules, which have `qkv`, `num_heads` and `head_dim`."""
    found = [
        module
        for module in model.modules()
        if isinstance(getattr(module, "qkv", None), nn.Module)
        and all(hasattr(module, a) for a in ("num_heads", "head_dim"))
    ]
    if not found:
        raise _unreadable(name)
    return found


def _unreadable(name: str) -> UserError:
    return UserError(
        f"{name} has no attention with one qkv layer: take a timm vision transformer "
        "(vit_*, deit_*) or a CAFormer (caformer_*), or set distill.fgd_weight to 0 and teach by "
        "its logits"
    )


def _capture(attention: Any) -> dict[str, Tensor]:
    """A dict that from now on holds q, k, v (B, h, N, d) of the latest pass."""
    into: dict[str, Tensor] = {}

    def split(_module: nn.Module, _args: Any, y: Tensor) -> None:
        qkv = y.unflatten(-1, (3, attention.num_heads, attention.head_dim))
        into.update(zip(FEATURES, qkv.permute(2, 0, 3, 1, 4).unbind(0), strict=True))

    def normed(name: str) -> Any:
        return lambda _module, _args, y: into.update({name: y})

    attention.qkv.register_forward_hook(split)
    for name in ("q", "k"):
        norm = getattr(attention, f"{name}_norm", None)
        if norm is not None:
            norm.register_forward_hook(normed(name))
    return into
