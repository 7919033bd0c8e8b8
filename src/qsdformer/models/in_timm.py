"""The families' named sizes in timm: what `timm.create_model` builds, and timm's record of each."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, get_type_hints

import timm
from timm.models import (
    build_model_with_cfg,
    generate_default_cfgs,
    register_model,
)
from torch import nn

from qsdformer.data.base import IMAGENET_MEAN, IMAGENET_STD
from qsdformer.errors import UserError
from qsdformer.models.building import build as build_network
from qsdformer.models.registry import Family, with_our_names
from qsdformer.nn.config import completed
from qsdformer.parsing import none_word

if TYPE_CHECKING:
    from qsdformer.models.base import SpikingTransformer


def register_in_timm(family: Family) -> None:
    """Make every named size known to timm; RuntimeError where a name is taken."""
    module = sys.modules[family.network.__module__]
    # timm takes its records of a module's models from there.
    vars(module)["default_cfgs"] = generate_default_cfgs(
        {name: _record(family, name) for name in family.sizes}
    )
    for name in family.sizes:
        if timm.is_model(name):
            raise RuntimeError(f"a model named {name} is registered in timm already")
        # timm lists the name in the module's __all__, so it has to exist there.
        vars(module)[name] = register_model(_entrypoint(family, name))


def _record(family: Family, name: str) -> dict[str, Any]:
    """timm's record: there are no weights to download, only input and layer names."""
    return {
        "num_classes": 1000,
        "input_size": family.inputs.get(name, (3, 224, 224)),
        "mean": IMAGENET_MEAN,
        "std": IMAGENET_STD,
        "crop_pct": 0.875,
        "interpolation": "bicubic",
        "first_conv": family.first_conv,
        "classifier": "head",
    }


def _entrypoint(family: Family, name: str) -> Any:
    def build(cfg: dict[str, Any], **kwargs: Any) -> SpikingTransformer:
        return _build(family, {**cfg, **kwargs})

    def entrypoint(pretrained: bool = False, **kwargs: Any) -> nn.Module:
        if pretrained and not (
            kwargs.get("pretrained_cfg") or kwargs.get("pretrained_cfg_overlay")
        ):
            raise UserError(
                f"{name} has no weights to download: load a checkpoint with qsdformer.load, "
                "or a published one with qsdformer.import_reference"
            )
        if kwargs.get("features_only") and not family.feature_maps:
            raise UserError(
                f"{name}: features_only needs maps of several strides, and {family.name} has one "
                "token grid; take a metaspikeformer or an e_spikeformer"
            )
        if "in_channels" in kwargs:  # before timm adds a default under its own name
            kwargs["in_chans"] = with_our_names(kwargs).pop("in_channels")
        return build_model_with_cfg(
            build,
            name,
            pretrained,
            model_cfg=dict(family.sizes[name]),
            feature_cfg={"out_indices": (0, 1, 2, 3), "feature_cls": "getter"},
            **kwargs,
        )

    entrypoint.__name__ = name
    entrypoint.__module__ = family.network.__module__
    shape = ", ".join(f"{key} {value}" for key, value in family.sizes[name].items())
    entrypoint.__doc__ = f"{name}: {shape}."
    return entrypoint


def _build(family: Family, fields: dict[str, Any]) -> SpikingTransformer:
    """A model from timm's keyword arguments.

    Values of timm's that ask for what the model does anyway are accepted, all others refused.
    timm.create_model drops arguments that are None; "none" stands for them.
    """
    fields = with_our_names(fields)
    if fields.pop("family", None) is not None:  # of a model that timm has saved: with all fields
        fields = family.deciding(fields)
    if fields.pop("drop_rate", 0) != 0:
        raise ValueError("drop_rate: this model has no dropout; use drop_path_rate")
    if fields.pop("global_pool", "avg") != "avg":
        raise ValueError("global_pool: only 'avg' is available")
    if "img_size" in fields:
        raise ValueError("img_size: this model takes images of any size; leave it out")
    kinds = get_type_hints(family.config)
    unknown = sorted(set(fields) - set(family.fields))
    if unknown:
        raise TypeError(f"unknown model arguments: {', '.join(unknown)}")
    fields = {name: none_word(kinds[name], value) for name, value in fields.items()}
    return build_network(family.config(**completed(fields, family.config)))
