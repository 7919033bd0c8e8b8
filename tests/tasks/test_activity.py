"""Spike activity: counted by hand, penalised towards a target."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from dense.networks import detection_config
from torch import Tensor, nn

from qsdformer.errors import UserError
from qsdformer.models.dense.heads import RPNHead
from qsdformer.models.metaspikeformer import MetaSpikeFormer
from qsdformer.nn.taps import spiking_neurons, tap
from qsdformer.tasks.activity import (
    ActivityConfig,
    ActivityPenalty,
    group_activity,
    group_norms,
    measure_activity,
    overall_activity,
)

Make = Callable[..., MetaSpikeFormer]


def test_a_group_is_active_if_any_of_its_four_channels_is() -> None:
    values = torch.tensor([[0.0, 0.0, 0.0, 0.5, 0.0, 0.0, 0.0, 0.0, 1.0, 1.0]])
    torch.testing.assert_close(group_norms(values), torch.tensor([[0.25, 0.0, 0.5**0.5]]))
    assert float(group_activity(values)) == 2.0


def test_silent_groups_get_no_gradient_and_active_ones_shrink_together() -> None:
    values = torch.tensor([[0.0, 0.0, 0.0, 0.0, 0.5, 0.25, 0.0, 0.0]], requires_grad=True)
    group_activity(values).backward()
    assert values.grad is not None
    assert values.grad[0, :4].tolist() == [0.0] * 4
    ratio = values.grad[0, 4] / values.grad[0, 5]
    assert float(ratio) == pytest.approx(2.0)


@pytest.mark.parametrize("fields", [{}, {"time_steps": 2}, {"neuron": "lif", "time_steps": 2}])
def test_measured_activity_counts_every_neuron_once(
    make_model: Make, settle: Callable[..., MetaSpikeFormer], fields: dict[str, object]
) -> None:
    model = settle(make_model(**fields))
    batches = [torch.randn(2, 3, 32, 32) for _ in range(2)]
    measured = measure_activity(model, batches)
    assert set(measured) == set(spiking_neurons(model))
    name = "stages.3.blocks.0.attention.neuron"
    outputs = []
    for images in batches:
        with tap(model, name) as acts, torch.no_grad():
            model(images)
        outputs.append(acts[name])
    y = torch.cat(outputs)  # (T*B, 8, 2, 2)
    groups = y.unflatten(1, (2, 4)).amax(2) > 0
    assert measured[name]["firing_rate"] == pytest.approx(float(y.double().mean()), abs=1e-6)
    assert measured[name]["active_groups"] == pytest.approx(float(groups.double().mean()))
    assert (measured[name]["neurons"], measured[name]["groups"]) == (8 * 4, 2 * 4)


def test_overall_activity_weighs_layers_by_their_size() -> None:
    measured = {
        "a": {"firing_rate": 0.1, "active_groups": 0.2, "neurons": 30.0, "groups": 10.0},
        "b": {"firing_rate": 0.5, "active_groups": 0.8, "neurons": 10.0, "groups": 2.0},
    }
    overall = overall_activity(measured)
    assert overall["firing_rate"] == pytest.approx(0.2)
    assert overall["active_groups"] == pytest.approx(0.3)


@pytest.mark.parametrize("kind", ["rate", "group"])
@pytest.mark.parametrize("fields", [{}, {"attention_gain": 2.0}, {"time_steps": 2}])
def test_the_penalty_sees_the_activity_that_is_measured(
    make_model: Make,
    settle: Callable[..., MetaSpikeFormer],
    kind: str,
    fields: dict[str, object],
) -> None:
    model = settle(make_model(**fields))
    images = torch.randn(2, 3, 32, 32)
    penalty = ActivityPenalty(model, ActivityConfig(weight=2.0, target=0.01, kind=kind))  # type: ignore[arg-type]
    penalty.open()
    model(images)
    key = {"rate": "firing_rate", "group": "active_groups"}[kind]
    seen, loss = penalty.activity().item(), penalty.loss().item()
    penalty.close()
    expected = overall_activity(measure_activity(model, [images]))[key]
    assert seen == pytest.approx(expected, rel=1e-5)
    assert loss == pytest.approx(2 * (expected - 0.01), rel=1e-4)
    assert not any(neuron._forward_hooks for neuron in spiking_neurons(model).values())


@pytest.mark.parametrize("kind", ["rate", "group"])
def test_training_on_the_penalty_alone_lowers_activity_to_the_target(
    make_model: Make, kind: str
) -> None:
    model = make_model()
    target = 0.1 if kind == "rate" else 0.2
    penalty = ActivityPenalty(model, ActivityConfig(target=target, kind=kind))  # type: ignore[arg-type]
    penalty.open()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.03)
    images = torch.randn(4, 3, 16, 16)
    before = 0.0
    for step in range(60):
        penalty.clear()
        model(images)
        before = penalty.activity().item() if step == 0 else before
        loss = penalty.loss()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    after = penalty.activity().item()
    assert before > target + 0.1
    assert after < target + 0.05


class Proposals(nn.Module):
    """The head of an R-CNN on the image itself and on every second pixel of it."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.head = RPNHead(detection_config().heads, 3, 6, 2, levels=2)

    def forward(self, images: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        return self.head([images, images[..., ::2, ::2]])


@pytest.mark.parametrize("kind", ["rate", "group"])
def test_a_head_that_runs_once_for_each_map_is_penalised_on_all_of_them(kind: str) -> None:
    model = Proposals()
    penalty = ActivityPenalty(model, ActivityConfig(kind=kind))  # type: ignore[arg-type]
    outputs: list[Tensor] = []
    penalty.open()
    for neuron in spiking_neurons(model).values():
        neuron.register_forward_hook(lambda _module, _images, y: outputs.append(y))
    model(torch.randn(2, 3, 16, 16))
    penalty.clear()
    outputs.clear()
    model(torch.randn(2, 3, 16, 16))
    assert len(outputs) == 2 * 2
    if kind == "rate":
        active, total = [y.sum() for y in outputs], sum(y.numel() for y in outputs)
    else:
        active = [group_activity(y) for y in outputs]
        total = sum(group_norms(y).numel() for y in outputs)
    expected = torch.stack(active).sum() / total
    torch.testing.assert_close(penalty.activity(), expected)
    # The last neuron's gradient goes through the norms of both maps.
    parameters = [p for conv in model.head.tower.convs for p in conv.norms.parameters()]
    wanted = torch.autograd.grad(expected, parameters, retain_graph=True)
    found = torch.autograd.grad(penalty.activity(), parameters)
    torch.testing.assert_close(found, wanted)
    assert all(gradient.any() for gradient in found)


def test_measured_neurons_of_a_head_are_those_of_all_maps() -> None:
    measured = measure_activity(Proposals().eval(), [torch.randn(2, 3, 16, 16)] * 2)
    assert measured["head.tower.neuron"]["neurons"] == 6 * (16**2 + 8**2)
    assert measured["head.tower.neuron"]["groups"] == 2 * (16**2 + 8**2)


@pytest.mark.parametrize("kind", ["rate", "group"])
def test_blocks_that_are_computed_again_are_penalised_once(make_model: Make, kind: str) -> None:
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    gradients = []
    for again in (False, True):
        model = make_model()
        model.set_grad_checkpointing(again)
        penalty = ActivityPenalty(model, ActivityConfig(kind=kind))  # type: ignore[arg-type]
        penalty.open()
        for _ in range(2):
            penalty.clear()
            model.zero_grad()
            model(images)
            penalty.loss().backward()
        found = [torch.zeros(()) if p.grad is None else p.grad for p in model.parameters()]
        gradients.append([float(gradient.norm()) for gradient in found])
    assert gradients[0] == pytest.approx(gradients[1], rel=1e-4)


def test_below_the_target_nothing_is_penalised(make_model: Make) -> None:
    model = make_model()
    penalty = ActivityPenalty(model, ActivityConfig(target=0.99))
    penalty.open()
    model(torch.randn(2, 3, 32, 32))
    assert penalty.loss().item() == 0.0


def test_an_ann_has_no_activity_to_penalise_or_measure(make_model: Make) -> None:
    model = make_model(neuron="relu")
    with pytest.raises(UserError, match="ANN"):
        ActivityPenalty(model, ActivityConfig())
    with pytest.raises(UserError, match="ANN"):
        measure_activity(model, [])


def test_no_images_are_an_error(make_model: Make) -> None:
    with pytest.raises(UserError, match="no images"):
        measure_activity(make_model(), [])


@pytest.mark.parametrize(
    "fields", [{"weight": -1.0}, {"weight": float("inf")}, {"target": 1.0}, {"kind": "layer"}]
)
def test_impossible_settings_are_refused(fields: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(fields))}="):
        ActivityConfig(**fields)  # type: ignore[arg-type]
