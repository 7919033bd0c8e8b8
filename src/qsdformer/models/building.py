"""Networks from configurations, as timm expects them: with a record of their images and layers."""

from __future__ import annotations

import importlib
from typing import Any

from qsdformer.models.base import SpikingTransformer
from qsdformer.models.registry import DEFAULT, Family, families, model_config
from qsdformer.nn.config import NetworkConfig

IN_TIMM = "qsdformer.models.families"  # importing it makes all families known to timm


def create_model(name: str = DEFAULT, **fields: Any) -> Any:
    """A model of a named size; `fields` are those of its configuration and replace the size's.

    `in_chans` is timm's name for `in_channels`. What a neuron decides need not be given:
    neuron="lif" has one level, "relu" and "gelu" have softmax attention.
    """
    return build(model_config(name, **fields))


def build(config: NetworkConfig) -> SpikingTransformer:
    """The network of a configuration, with new weights."""
    importlib.import_module(IN_TIMM)
    family = families()[config.family]
    model = family.network(config)
    model.pretrained_cfg = model.default_cfg = record_of(family, config)
    model._model_args = config.to_dict()
    return model


def record_of(family: Family, config: NetworkConfig) -> dict[str, Any]:
    """timm's record of a model: under the name of its size, or of any where it has none."""
    # Not at the top: importing timm imports the file that makes our models known to it, and that
    # imports this one.
    from timm.models import get_pretrained_cfg

    def shape(of: NetworkConfig) -> list[Any]:
        return [getattr(of, name) for name in of.SHOWN]

    fits = [n for n, size in family.sizes.items() if shape(family.config(**size)) == shape(config)]
    registered = get_pretrained_cfg(fits[0] if fits else next(iter(family.sizes)))
    assert registered is not None
    record: dict[str, Any] = registered.to_dict()
    return record
