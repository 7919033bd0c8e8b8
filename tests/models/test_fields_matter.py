"""Every field that a family takes decides something: no key is accepted without effect."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import pytest
import timm
import torch
from torch import Tensor

from qsdformer import create_model
from qsdformer.errors import UserError
from qsdformer.experiments.grid import Cell, cell_recipe, load_grid
from qsdformer.models.networks import build_network
from qsdformer.models.registry import families, model_config
from qsdformer.nn.config import READ_BY, NetworkConfig, Neuron
from qsdformer.recipes.recipe import load_recipe

# Another value of each field; of yes and no the other one.
OTHERS: dict[str, Any] = {
    "in_channels": 2,
    "num_classes": 3,
    "heads": 2,
    "weight_bits": 2,
    "stem_bits": 2,
    "head_bits": 2,
    "neuron": "gelu",
    "levels": 8,
    "time_steps": 3,
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
KINDS: tuple[dict[str, Any], ...] = (
    {"time_steps": 2},
    {"time_steps": 2, "neuron": "lif", "levels": 1, "rectify": "all"},
    {"neuron": "relu"},
)
KNOWN = get_args(Neuron)


def _config(name: str, fields: dict[str, Any]) -> NetworkConfig:
    small = {"dims": (8, 8, 16, 16)} if "dims" in families()[name].fields else {"width": 16}
    return model_config(SIZES[name], **{**small, "num_classes": 4, **fields})


def _outcome(name: str, fields: dict[str, Any]) -> list[Tensor]:
    """Everything that a field can decide: first weights, logits, and the gradients of a step."""
    torch.manual_seed(0)
    model = build_network(_config(name, fields))
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
    return {name: [_outcome(name, kind) for kind in KINDS] for name in families()}


@pytest.mark.parametrize(("name", "key"), TAKEN)
def test_a_field_decides_something_where_its_neurons_are(
    name: str, key: str, outcomes: dict[str, list[list[Tensor]]]
) -> None:
    for kind, before in zip(KINDS, outcomes[name], strict=True):
        config = _config(name, kind)
        now = getattr(config, key)
        other = not now if isinstance(now, bool) else OTHERS[key]
        try:
            after = _outcome(name, {**kind, key: "spike" if now == other == "softmax" else other})
        except ValueError:  # not in such a network
            continue
        read = config.neuron in READ_BY.get(key, KNOWN)
        if (name, key) == ("sdt", "heads") and config.is_spiking:
            read = False  # of its attention, but in `dvs_mode`; its ANN's has them always
        assert _differ(before, after) == read, config.neuron


def test_a_field_without_effect_cannot_be_given() -> None:
    with pytest.raises(UserError, match="spikformer has no field residual_gain; it is for meta"):
        create_model("spikformer_tiny", residual_gain=0.5)
    with pytest.raises(UserError, match=r"^model\.residual_gain is for metaspikeformer"):
        load_recipe("cifar10-spikformer-tiny", {"residual_gain": "0.5"})
    with pytest.raises(TypeError, match="residual_gain"):
        timm.create_model("spikformer_tiny", residual_gain=0.5)


def test_a_key_that_the_neurons_do_not_read_is_refused(tmp_path: Path) -> None:
    text = r"^model\.tau is read by lif neurons, and here they are ielif: leave it out"
    with pytest.raises(UserError, match=text):
        load_recipe("digits", {"tau": "3"})
    with pytest.raises(UserError, match=r"levels is read by ielif and lif neurons, .* are relu"):
        load_recipe("digits-ann", {"levels": "8"})
    assert load_recipe("digits-lif", {"tau": "3"}).model.fields["tau"] == 3
    file = tmp_path / "mine.yaml"
    file.write_text("recipe: digits\nmodel: {surrogate: rect}\n")  # which may be for others
    assert load_recipe(str(file), {"neuron": "lif"}).model.fields["neuron"] == "lif"
    grid = tmp_path / "grid.yaml"
    grid.write_text(
        "recipe: digits\nreference: slow\nvariants:\n  - {name: slow, overrides: {model.tau: 4}}\n"
    )
    with pytest.raises(UserError, match=r"^variant slow: model\.tau is read by lif neurons"):
        cell_recipe(load_grid(str(grid)), Cell("slow", 0))
