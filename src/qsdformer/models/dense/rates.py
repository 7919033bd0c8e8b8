"""Parameter groups with a factor on the learning rate: by layer, for heads, for any others."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from timm.optim import param_groups_layer_decay
from torch import nn

from qsdformer.models.dense.base import DenseNetwork


def layerwise_groups(
    network: DenseNetwork,
    *,
    weight_decay: float,
    layer_decay: float = 1.0,
    head_rate: float = 1.0,
) -> list[dict[str, Any]]:
    """Groups for an optimiser, each with "lr_scale" to multiply the learning rate by.

    timm counts the layers by the backbone's `group_matcher`: each is `layer_decay` times as fast
    as the next, and neck and heads are the last. `head_rate` multiplies the heads' factor, not
    the neck's. Weight decay is for tensors of two or more dimensions. What is frozen is in none.
    """
    groups: list[dict[str, Any]] = param_groups_layer_decay(
        network,
        weight_decay=weight_decay,
        no_weight_decay_list=network.no_weight_decay(),
        layer_decay=layer_decay,
    )
    heads = [p for module in network.part("heads") for p in module.parameters()]
    return scale_rates(groups, heads, head_rate)


def scale_rates(
    groups: list[dict[str, Any]], chosen: Iterable[nn.Parameter], factor: float
) -> list[dict[str, Any]]:
    """The same groups, but `chosen` of their parameters in groups with `factor` times the rate."""
    if factor == 1.0:
        return groups
    ids = {id(p) for p in chosen}
    found = []
    for group in groups:
        for is_chosen, times in ((False, 1.0), (True, factor)):
            parameters = [p for p in group["params"] if (id(p) in ids) == is_chosen]
            if parameters:
                rate = group.get("lr_scale", 1.0) * times
                found.append({**group, "params": parameters, "lr_scale": rate})
    return found
