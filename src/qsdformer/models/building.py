"""Networks from configurations, as timm expects them: with a record of their images and layers."""

from __future__ import annotations

import functools
import importlib
from typing import TYPE_CHECKING, Any

from qsdformer.models.base import SpikingTransformer
from qsdformer.models.registry import DEFAULT, families, model_config
from qsdformer.nn.config import NetworkConfig

if TYPE_CHECKING:
    from qsdformer.data import DataInfo

IN_TIMM = "qsdformer.models.families"  # importing it makes all families known to timm


def create_model(name: str = DEFAULT, **fields: Any) -> Any:
    """A model of a named size; `fields` are those of its configuration and replace the size's.

    `in_chans` is timm's name for `in_channels`. What a neuron decides need not be given:
    neuron="lif" has one level, "relu" and "gelu" have softmax attention.
    """
    return build(model_config(name, **fields))


def build(config: NetworkConfig, info: DataInfo | None = None) -> SpikingTransformer:
    """The network of a configuration, with new weights; `info` is for its record in timm."""
    model = families()[config.family].network(config)
    model._make_record = functools.partial(record_of, config, info)
    model._model_args = config.to_dict()
    return model


def timm_inputs(info: DataInfo) -> dict[str, Any]:
    """What timm's record of a model says of its images: those in `info`."""
    modes = {"crop": "center", "stretch": "squash", "pad": "border"}  # timm's border is all round
    return {
        "input_size": (info.channels, *info.sides),
        "mean": info.mean,
        "std": info.std,
        "interpolation": info.interpolation,
        "crop_pct": info.crop_pct,
        "crop_mode": modes[info.fit],
        "num_classes": len(info.class_names),
    }


def record_of(config: NetworkConfig, info: DataInfo | None) -> dict[str, Any]:
    """timm's record of a model: under the name of its size, or of any where it has none.

    Images are those that timm's models usually have, or as `info` says.
    """
    # Not at the top: importing timm takes seconds, and imports the file that makes our models known
    # to it, which imports this one.
    from timm.models import get_pretrained_cfg

    importlib.import_module(IN_TIMM)
    family = families()[config.family]

    def shape(of: NetworkConfig) -> list[Any]:
        return [getattr(of, name) for name in of.SHOWN]

    fits = [n for n, size in family.sizes.items() if shape(family.config(**size)) == shape(config)]
    registered = get_pretrained_cfg(fits[0] if fits else next(iter(family.sizes)))
    assert registered is not None
    inputs = {} if info is None else timm_inputs(info)
    return {**registered.to_dict(), **inputs}
