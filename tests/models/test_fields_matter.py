"""Every field that a family takes decides something: no key is accepted without effect."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
from torch import Tensor

from qsdformer import create_model
from qsdformer.errors import UserError
from qsdformer.models.registry import families, model_config
from qsdformer.recipes.recipe import load_recipe

# Another value of each field; of yes and no the other one.
OTHERS: dict[str, Any] = {
    "in_channels": 2,
    "num_classes": 3,
    "heads": 2,
    "weight_bits": 2,
    "stem_bits": 2,
    "head_bits": 2,
    "neuron": "relu",
    "levels": 8,
    "time_steps": 1,
    "decay": 0.75,
    "tau": 4.0,
    "threshold": 0.5,
    "surrogate": "rect",
    "rectify": "none",
    "residual_gain": 0.5,
    "dims": (8, 16, 24, 32),
    "depth": 2,
    "stem_kernel": 5,
    "stem_stride": 1,
    "drop_path_rate": 0.5,
    "attention": "softmax",
    "attention_scale": 0.75,
    "attention_gain": 3.0,
    "layer_scale": 0.5,
    "rounding": "up",
    "width": 32,
    "mlp_ratio": 2,
    "pooling": "1111",
    "stem_widths": (8, 16, 32),
    "attention_threshold": 0.125,
}
SIZES = {name: next(iter(family.sizes)) for name, family in families().items()}
TAKEN = [(name, key) for name, family in families().items() for key in family.fields]
IELIF: dict[str, Any] = {"num_classes": 4, "time_steps": 2}
LIF: dict[str, Any] = {**IELIF, "neuron": "lif", "levels": 1, "rectify": "all"}
ANN: dict[str, Any] = {"num_classes": 4, "neuron": "relu"}


def _outcome(name: str, fields: dict[str, Any]) -> list[Tensor]:
    """Everything that a field can decide: first weights, logits, and the gradients of a step."""
    torch.manual_seed(0)
    model = create_model(SIZES[name], **fields)
    first = [value.detach().clone() for value in model.state_dict().values()]
    torch.manual_seed(1)
    images = torch.rand(4, model.config.in_channels, 32, 32)
    logits = model.train()(images)
    logits.square().sum().backward()
    return [*first, logits.detach(), *(p.grad for p in model.parameters() if p.grad is not None)]


def _differ(ours: list[Tensor], theirs: list[Tensor]) -> bool:
    return len(ours) != len(theirs) or any(
        a.shape != b.shape or not torch.equal(a, b) for a, b in zip(ours, theirs, strict=True)
    )


@pytest.fixture(scope="module")
def outcomes() -> dict[str, list[list[Tensor]]]:
    return {name: [_outcome(name, kind) for kind in (IELIF, LIF, ANN)] for name in families()}


@pytest.mark.parametrize(("name", "key"), TAKEN)
def test_each_field_of_a_family_decides_something(
    name: str, key: str, outcomes: dict[str, list[list[Tensor]]]
) -> None:
    refused = 0
    for kind, before in zip((IELIF, LIF, ANN), outcomes[name], strict=True):
        now = getattr(model_config(SIZES[name], **kind), key)
        other = not now if isinstance(now, bool) else OTHERS[key]
        try:
            after = _outcome(name, {**kind, key: "spike" if now == other == "softmax" else other})
        except ValueError:  # not in such a network
            refused += 1
            continue
        if _differ(before, after):
            return
    assert refused == 3, f"{key} changes nothing"


def test_a_field_without_effect_cannot_be_given() -> None:
    with pytest.raises(UserError, match="spikformer has no field residual_gain; it is for meta"):
        create_model("spikformer_tiny", residual_gain=0.5)
    with pytest.raises(UserError, match=r"^model\.residual_gain is for metaspikeformer"):
        load_recipe("cifar10-spikformer-tiny", {"residual_gain": "0.5"})
    with pytest.raises(TypeError, match="residual_gain"):
        timm.create_model("spikformer_tiny", residual_gain=0.5)
