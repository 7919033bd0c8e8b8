"""Networks of users' own: traced, executed in every way, exported; or refused in one line."""

from __future__ import annotations

import dataclasses
import math
import operator
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import prune

import qsdformer as qsd
from graph.user_networks import (
    CLASSIFIERS,
    INFO,
    Attentive,
    Counting,
    Net,
    Pyramid,
    ResNet,
    by,
    pixels,
    settled,
    through,
)
from qsdformer.analysis.ledger import make_ledger
from qsdformer.analysis.measure import measure
from qsdformer.analysis.report.collect import attention_maps, membranes, spike_raster
from qsdformer.analysis.twins import twins
from qsdformer.errors import UserError
from qsdformer.graph.artifact import load_artifact
from qsdformer.graph.ops import Add, CountAdd, TimeSum
from qsdformer.graph.trace import trace
from qsdformer.nn import IELIF, LIF, QuantConv2d, QuantLinear, SpikingNeuron
from qsdformer.nn.taps import tap
from qsdformer.runtimes.binary import multi_bit, run_binary
from qsdformer.runtimes.executors import normalised


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_a_network_of_ones_own_gives_the_same_counts_in_every_execution(name, tmp_path):
    model = settled(CLASSIFIERS[name])
    report = qsd.verify(model, pixels(), info=INFO)
    assert report.rows[0].counts > 0
    for row in report.rows:
        assert row.differing is not None
        assert row.differing <= 2e-3 * row.counts, row.name
        assert row.broken is None
    graph = qsd.export(model, tmp_path / "model.qsd", info=INFO)
    assert load_artifact(tmp_path / "model.qsd") == graph


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_the_traced_graph_computes_what_the_forward_does(name):
    model = settled(CLASSIFIERS[name])
    images = torch.randn(3, 3, 16, 16)
    logits, counts = multi_bit(model, images)
    with torch.no_grad():
        assert torch.equal(logits, model(images))
    assert sum(int(c.sum()) for c in counts.values()) > 0
    binary = run_binary(model, images)
    assert all(torch.equal(binary.counts[n], c) for n, c in counts.items())


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_the_ledger_of_a_network_of_ones_own_counts_what_binary_execution_does(name):
    model = settled(CLASSIFIERS[name])
    images = torch.randn(3, 3, 16, 16)
    run = run_binary(model, images)
    measured = measure(model, [(images, torch.zeros(3).long())])
    rows = make_ledger("own", model, measured).rows
    assert {r.name: r.total for r in rows if r.kind in ("ac", "attention")} == run.additions
    assert {r.name: r.total for r in rows if r.kind == "mac"} == run.macs
    assert twins("own", model, measured)


def test_the_report_shows_attention_and_spikes_of_a_network_of_ones_own():
    model, images = settled(Attentive), torch.randn(3, 3, 16, 16)
    (first, *_) = attention_maps(model, images, torch.zeros(3).long(), INFO)
    assert first.maps["first block"].shape == (4, 4)
    assert len(spike_raster(model, images[0])) == 5
    plain = settled(ResNet)
    assert attention_maps(plain, images, torch.zeros(3).long(), INFO) == []
    assert membranes(plain, images) == {}


def test_feature_maps_come_out_as_named_outputs():
    model = settled(Pyramid)
    graph = qsd.lower(model, INFO)
    found = graph.real_outputs(pixels().numpy())
    with torch.no_grad():
        expected = model(normalised(pixels().numpy(), graph.preprocessing))
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value.numpy(), atol=1e-5)


def test_the_time_axis_may_be_in_the_images():
    model = settled(Attentive)
    graph = qsd.lower(model, INFO, frames=True)
    assert graph.takes_frames
    frames = torch.stack([pixels(), pixels().flip(0)])
    images = torch.stack([normalised(f.numpy(), graph.preprocessing) for f in frames])
    _, counts = multi_bit(model, images)
    _, found = graph.run_with_counts(frames.numpy())
    assert all(np.array_equal(found[n].reshape(c.shape), c.numpy()) for n, c in counts.items())


def test_sums_of_counts_stay_counts_and_means_over_time_are_sums():
    graph = qsd.lower(settled(Counting), INFO)
    assert [op.name for op in graph.ops if isinstance(op, CountAdd)] == ["add"]
    assert not [op for op in graph.ops if isinstance(op, Add)]
    assert [op.name for op in graph.ops if isinstance(op, TimeSum)] == ["head.time"]


class Joined(nn.Module):
    """Spikes of several levels and membranes of several scales meet: all become potentials."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = QuantConv2d(3, 6, 3, padding=1, bits=4), nn.BatchNorm2d(6)
        self.coarse, self.fine, self.last = IELIF(2), IELIF(8), IELIF(4)
        self.mix, self.pool = QuantConv2d(18, 6, 1, bits=4), nn.MaxPool2d(2)
        self.head = QuantLinear(6, 5, bits=4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.conv(x))
        x = torch.cat([self.coarse(x) + self.fine(x), x, self.coarse(x)], 1)
        return self.head(self.last(self.mix(self.pool(x))).mean((2, 3)))


def test_values_of_different_scale_meet_as_membrane_potentials():
    model = settled(Joined)
    report = qsd.verify(model, pixels(), info=INFO)
    assert report.ok
    assert [row.differing for row in report.rows][:3] == [0, 0, 0]


@pytest.mark.parametrize("change", [operator.iadd, lambda x, y: x.add_(y)])
def test_a_sum_in_place_is_recorded_and_changes_no_value_of_the_graph(change):
    def summed(net: Net, x: Tensor) -> Tensor:
        x = net.mix(net.neuron(x))
        return change(x, x * 0.5)

    model = settled(lambda: Net(summed, mix=QuantConv2d(6, 6, 1, bits=4)))
    images = torch.randn(3, 3, 16, 16)
    traced, values = trace(model, images.shape), {}

    def do(step, *given):
        before = [x.clone() for x in given]
        values[step.name] = step.run(*given)
        assert all(torch.equal(x, y) for x, y in zip(given, before, strict=True)), step.name
        return values[step.name]

    with torch.no_grad():
        assert torch.equal(traced.walk(images, do)["output"], model(images))
    assert qsd.verify(model, pixels(), info=INFO).ok


def test_a_copy_may_be_changed_in_place_and_a_model_is_left_as_it_was():
    def copied(x: Tensor) -> Tensor:
        y = x.clone()
        y += 0.5
        return x + y

    assert qsd.verify(settled(lambda: by(copied)), pixels(), info=INFO).ok
    model = through(Remembering()).eval()
    for _ in range(2):
        with pytest.raises(UserError, match="keeps a tensor in 'state'"):
            qsd.lower(model, INFO)
        assert model.own.state == {}


@pytest.mark.parametrize("combined", [operator.add, operator.mul])
def test_the_largest_of_sums_and_products_of_spikes_is_not_that_of_their_spikes(combined):
    """As in a residual network of spikes; 2 steps of one neuron and 4 of the other may coincide."""

    def pooled(net: Net, x: Tensor) -> Tensor:
        both = combined(net.neuron(x), net.other(x * -1.0 + 1.0))
        return net.mix(torch.nn.functional.max_pool2d(both, 2))

    model = settled(lambda: Net(pooled, other=IELIF(4), mix=QuantConv2d(6, 6, 1, bits=4)))
    images = torch.randn(3, 3, 16, 16)
    with torch.no_grad():
        expected = model(images)
    found = run_binary(model, images).outputs["output"]
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("bits", [32, 16])
def test_raw_pixels_and_results_of_any_size_do_not_saturate(bits):
    def scaled(net: Net, x: Tensor) -> dict[str, Tensor]:
        spikes = net.neuron(net.conv((x - 127.5) / 64))
        return {"depth": net.far(spikes)}

    class Depth(Net):
        def forward(self, x: Tensor) -> dict[str, Tensor]:
            return scaled(self, x)

    model = settled(lambda: Depth(lambda net, x: x, far=QuantConv2d(6, 1, 1, bits=4)))
    with torch.no_grad():
        model.far.bias.fill_(200.0)
    raw = dataclasses.replace(INFO, mean=(0.0,) * 3, std=(1 / 255,) * 3)
    rows = qsd.verify(model, pixels(), info=raw, membrane_bits=bits).rows
    integer = next(row for row in rows if row.name == "integer")
    assert integer.logit_difference < {32: 0.05, 16: 1.0}[bits]
    assert integer.differing <= {32: 2e-3, 16: 0.05}[bits] * integer.counts


class Unflat(Net):
    """Logits (B, classes, 1, 1), as convolutional heads give them."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)[:, :, None, None]


class Rows(Net):
    """Tokens before channels, (B, N, C)."""

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        y = self.neuron(self.conv(x)).flatten(2).transpose(1, 2)
        return {"tokens": self.rows(y)}


def test_results_in_other_layouts_are_compared_with_what_they_are():
    images = pixels(6)
    labels = torch.zeros(6, dtype=torch.long)
    report = qsd.verify(settled(lambda: Unflat(lambda net, x: x)), [(images, labels)], info=INFO)
    assert report.ok
    assert all(row.logit_difference < 1e-3 and row.accuracy <= 1 for row in report.rows)
    rows = settled(lambda: Rows(lambda net, x: x, rows=QuantLinear(6, 4, bits=4)))
    report = qsd.verify(rows, images, info=INFO)
    assert report.ok
    assert all(row.logit_difference < 1e-3 for row in report.rows)


def test_legal_ways_to_write_a_call_are_understood():
    def written(net: Net, x: Tensor) -> Tensor:
        return torch.cat([net.mix(x=net.neuron(x))], 1)

    model = settled(lambda: Net(written, mix=QuantConv2d(6, 6, 1, bits=4)))
    assert qsd.verify(model, pixels(), info=INFO).ok


class Configured(Net):
    """A model with a `config` of its user's own."""

    config: Any = None


@pytest.mark.parametrize("values", [{"path": Path("x")}, {"rate": math.nan}, ["a list"], None])
def test_a_configuration_that_a_file_cannot_hold_is_left_out(values, tmp_path):
    model = settled(lambda: Configured(lambda net, x: x))
    model.config = type("Config", (), {"to_dict": lambda self: values})()
    assert qsd.export(model, tmp_path / "a.qsd", info=INFO).config == {}
    assert load_artifact(tmp_path / "a.qsd").config == {}
    model.config = type(model.config)
    assert qsd.lower(model, INFO).config == {}


def test_an_output_that_is_called_like_the_images_of_an_onnx_file_is_refused(tmp_path):
    class Named(Net):
        def forward(self, x: Tensor) -> dict[str, Tensor]:
            return {"pixels": self.conv(self.neuron(x))}

    model = settled(lambda: Named(lambda net, x: x))
    with pytest.raises(UserError, match="an ONNX file calls its images 'pixels'"):
        qsd.export(model, tmp_path / "a.onnx", info=INFO)
    assert not list(tmp_path.iterdir())


def test_names_are_those_of_modules_and_of_what_a_forward_does():
    names = [step.name for step in trace(settled(ResNet), (2, 3, 16, 16)).steps]
    assert names[:4] == ["image", "repeat", "stem", "norm"]
    assert {"blocks.0.conv1", "blocks.0.add", "blocks.1.neuron2", "pool", "view", "mean"} <= {
        *names
    }
    assert len(names) == len(set(names))


def test_a_module_that_is_called_twice_has_two_names():
    names = [s.name for s in trace(settled(CLASSIFIERS["shared modules"]), (2, 3, 16, 16)).steps]
    assert [n for n in names if n.startswith("neuron")] == [
        "neuron", "neuron@2", "neuron@3", "neuron@4",
    ]  # fmt: skip


def test_tracing_leaves_a_model_as_it_was():
    model = settled(Attentive)
    before = {n: t.clone() for n, t in model.state_dict().items()}
    modes = [m.training for m in model.modules()]
    trace(model, (2, 3, 16, 16))
    assert modes == [m.training for m in model.modules()]
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())
    with torch.no_grad(), tap(model, "neuron") as acts:
        model(torch.randn(1, 3, 16, 16))
    assert acts["neuron"].shape == (2, 8, 4, 4)


class Keeping(nn.Module):
    """A neuron that keeps its membrane potential for the next batch."""

    def __init__(self, kept: Tensor | None = None, *, buffer: bool = False) -> None:
        super().__init__()
        if buffer:
            self.register_buffer("kept", torch.zeros(1))
        else:
            self.kept = kept

    def forward(self, x: Tensor) -> Tensor:
        self.kept = x if self.kept is None else 0.5 * self.kept + x
        return self.kept


class Own(SpikingNeuron):
    def _step(self, x: Tensor, v: Tensor | None) -> tuple[Tensor, Tensor]:
        return (4 * x).round().clamp(0, 4) / 4, x


REFUSED: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "values decide": (lambda: by(lambda x: x if x.mean() > 0 else -x), "decides by the values"),
    "values read": (lambda: by(lambda x: x * x.max().item()), "decides by the values"),
    "a function": (lambda: by(torch.sigmoid), r"the model \(Net\): sigmoid is not supported"),
    "a layer of torch": (
        lambda: through(nn.Sequential(nn.GroupNorm(2, 6))),
        r"own.0 \(GroupNorm\): GroupNorm is not supported: supported are QuantConv2d",
    ),
    "fp32 weights": (
        lambda: through(nn.Sequential(IELIF(4), nn.Conv2d(6, 6, 1))),
        r"own.1 \(Conv2d\) has fp32 weights",
    ),
    "a state": (lambda: through(Keeping()), "own: its forward keeps a tensor in 'kept'"),
    "a state in a buffer": (lambda: through(Keeping(buffer=True)), "keeps a tensor in 'kept'"),
    "a state left": (
        lambda: through(Keeping(torch.zeros(7, 6, 16, 16))),
        "own .Keeping.: it keeps a tensor 'kept' .* left from another batch",
    ),
    "a neuron of one's own": (lambda: through(Own(4, 1)), "Own has no integer form"),
    "other time steps": (lambda: through(LIF(4)), "time_steps=4 gets 1 of them: repeat"),
    "spikes of unequal worth": (
        lambda: Net(
            lambda net, x: net.mix(torch.cat([net.neuron(x), net.other(x)], 1)),
            other=IELIF(8),
            mix=QuantConv2d(12, 6, 1, bits=4),
        ),
        "cat: spikes worth 0.25, 0.125 are concatenated",
    ),
    "a product of membranes": (lambda: by(lambda x: x * x), "only spike counts can be multiplied"),
    "a dilated convolution": (
        lambda: through(QuantConv2d(6, 6, 3, padding=2, dilation=2, bits=4)),
        "own .QuantConv2d.: a convolution must have dilation 1",
    ),
    "a part of the channels": (
        lambda: by(lambda x: torch.cat([x[:, 3:], x[:, :3]], 1)),
        r"the model \(Net\): a part of \(T\*B, 6, 16, 16\) is taken: only whole values",
    ),
    "spikes times membranes": (
        lambda: Net(lambda net, x: net.neuron(x) * x),
        "only spike counts can be multiplied",
    ),
    "axes exchanged": (
        lambda: by(lambda x: x.permute(0, 2, 3, 1).permute(0, 3, 1, 2)),
        "axes .* are exchanged",
    ),
    "time left over": (
        lambda: nn.Sequential(
            TimeFirst(), conv_of_three(), LIF(2), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
            QuantLinear(6, 5, bits=4),
        ),
        "the result still has 2 time steps",
    ),
    "the old value of a sum in place": (
        lambda: by(lambda x: _changed(x, operator.iadd)),
        r"conv: the value is read again, as it is or through a view, after add in place has",
    ),
    "the old value of a method in place": (
        lambda: by(lambda x: _changed(x, lambda a, b: a.add_(b))),
        "after add in place has changed it: make a new tensor",
    ),
    "a view of what is changed in place": (
        lambda: by(lambda x: _changed(x, lambda a, b: a.detach().add_(b))),
        "after add in place has changed it",
    ),
    "an expanded view of what is changed in place": (
        lambda: by(_expanded_then_changed),
        "after add in place has changed it",
    ),
    "a layer with a forward of its own": (
        lambda: through(Tripled(6, 6, 1, bits=4)),
        r"own \(Tripled\): its class has a forward of its own \(graph.test_trace\)",
    ),
    "a norm with a forward of its own": (
        lambda: through(TripledNorm(6)),
        r"own \(TripledNorm\): its class has a forward of its own",
    ),
    "a layer with a hook": (lambda: hooked(), r"own \(IELIF\): it has forward hooks"),
    "a state in a dictionary": (
        lambda: through(Remembering()),
        "own: its forward keeps a tensor in 'state'",
    ),
    "a buffer changed in place": (
        lambda: through(Decaying()),
        "own.gain: mul in place changes it for the next batch",
    ),
    "a product across layouts": (
        lambda: Net(_across, mix=QuantConv2d(6, 16, 1, bits=4), back=QuantConv2d(16, 6, 1, bits=4)),
        "products are of equal shapes",
    ),
    "a division by zero": (lambda: by(lambda x: x / 0), "truediv cannot be read: "),
    "weights that are no numbers": (
        lambda: through(_lost(QuantConv2d(6, 6, 1, bits=4))),
        "own: its weight holds NaN or infinity",
    ),
    "a norm of no numbers": (
        lambda: through(_lost(nn.BatchNorm2d(6))),
        "own: its weight holds NaN or infinity",
    ),
    "a weight that is masked anew in each pass": (
        lambda: through(masked(QuantConv2d(6, 6, 3, padding=1, bits=4))),
        r"own.*: its weight is made of other parameters in each pass: make it one again",
    ),
    "no spikes": (lambda: nn.Sequential(conv_of_three(), nn.Flatten()), "no spiking neurons"),
}  # fmt: skip


def _expanded_then_changed(x: Tensor) -> Tensor:
    view = x[None].expand(1, *x.shape)
    x += 1.0
    return view.flatten(0, 1)


def _across(net: Net, x: Tensor) -> Tensor:
    """16 channels times 16 places, which torch does not tell apart."""
    x = net.mix(net.neuron(torch.nn.functional.max_pool2d(x, 4)))
    tokens = net.neuron(x).flatten(2)
    return net.back((tokens * tokens.transpose(1, 2)).unflatten(2, (4, 4)))


def _lost(layer: nn.Module) -> nn.Module:
    with torch.no_grad():
        next(layer.parameters()).view(-1)[0] = math.nan
    return layer


def _changed(x: Tensor, change: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    changed = change(x, x * 1.0)
    return changed + x


def masked(layer: nn.Module) -> nn.Module:
    return prune.l1_unstructured(layer, "weight", 0.5)


class Tripled(QuantConv2d):
    """A layer with a forward of its own."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * 3


class TripledNorm(nn.BatchNorm2d):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * 3


class Remembering(nn.Module):
    """A state in a dictionary, where no attribute shows it."""

    def __init__(self) -> None:
        super().__init__()
        self.state: dict[str, Tensor] = {}

    def forward(self, x: Tensor) -> Tensor:
        x = x + 0.5 * self.state.get("v", 0.0)
        self.state["v"] = x
        return x


class Decaying(nn.Module):
    """A buffer that every forward changes."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("gain", torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gain.mul_(0.5)


def hooked() -> nn.Module:
    layer = IELIF(4)
    layer.register_forward_hook(lambda module, args, output: output * 3)
    return through(layer)


class TimeFirst(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.repeat(2, 1, 1, 1)


def conv_of_three() -> nn.Module:
    return QuantConv2d(3, 6, 3, padding=1, bits=4)


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_is_refused_in_one_line_that_names_the_module(case: str):
    make, message = REFUSED[case]
    with pytest.raises(UserError, match=message) as error:
        qsd.lower(make().eval(), INFO)
    assert "\n" not in str(error.value)


def test_a_model_or_a_part_in_training_mode_is_refused():
    model = settled(ResNet)
    model.blocks[1].norm1.train()
    with pytest.raises(UserError, match=r"blocks.1.norm1 is in training mode"):
        qsd.lower(model, INFO)
    with pytest.raises(UserError, match="the model is in training mode"):
        trace(model.train(), (2, 3, 16, 16))


@pytest.mark.parametrize("images", [(3, 16, 16), (2, 3)])
def test_images_must_have_a_batch_and_channels(images: Any):
    with pytest.raises(UserError, match=r"\(B, C, H, W\) or \(T, B, C, H, W\)"):
        trace(settled(ResNet), images)
