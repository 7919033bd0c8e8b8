"""torch.compile: one graph, the same results."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from variants import COMPILES

from qsdformer.nn.attention import spike_attention, to_heads
from qsdformer.nn.blocks import RepConv, SepConv
from qsdformer.nn.neurons import make_neuron
from qsdformer.nn.taps import spiking_neurons, tap

# Generating code for a whole model takes minutes; a piece with every kind of operation that is ours
# stands for it. Whole models are traced, differentiated and made functional as for any backend
# ("aot_eager"), or only traced ("eager"), which finds graph breaks and what tracing gets wrong.
WHOLE = [
    pytest.param({"weight_bits": 4}, "aot_eager", id="ielif"),
    pytest.param({"neuron": "lif", "time_steps": 2, "threshold": 0.2}, "eager", id="lif"),
    pytest.param({"neuron": "relu"}, "aot_eager", id="ann"),
]


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.parametrize(("fields", "backend"), WHOLE)
def test_a_compiled_training_step_equals_the_eager_one(make_model, fields, backend):
    images = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(4)
    eager = make_model(**fields)
    compiled = copy.deepcopy(eager)

    def step(model, x, y):
        return F.cross_entropy(model(x), y)

    run = torch.compile(step, fullgraph=True, backend=backend)
    # Two steps, so that the second sees the batch statistics that the first left.
    for _ in range(2):
        expected, got = step(eager, images, labels), run(compiled, images, labels)
        assert got.item() == pytest.approx(expected.item(), abs=1e-4)
        expected.backward()
        got.backward()
    for (name, p), q in zip(eager.named_parameters(), compiled.parameters(), strict=True):
        assert q.grad is not None, name
        torch.testing.assert_close(q.grad, p.grad, rtol=1e-3, atol=1e-4, msg=name)
    for (name, a), b in zip(eager.named_buffers(), compiled.buffers(), strict=True):
        torch.testing.assert_close(b, a, rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.parametrize(("fields", "backend"), WHOLE)
def test_a_compiled_eval_forward_gives_the_same_spike_counts(make_model, settle, fields, backend):
    model = settle(make_model(**fields), size=16)
    images = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    neurons = spiking_neurons(model)

    # Taps are hooks: traced with the model, so that the one graph gives the counts as well.
    with tap(model, *neurons, "head") as expected, torch.no_grad():
        expected_logits = model(images)
    with tap(model, *neurons, "head") as outputs, torch.no_grad():
        logits = torch.compile(model, fullgraph=True, backend=backend)(images)
    torch.testing.assert_close(logits, expected_logits, rtol=1e-4, atol=1e-4)
    assert outputs.keys() == expected.keys() == {*neurons, "head"}
    for name, neuron in neurons.items():
        assert torch.equal(neuron.counts(outputs[name]), neuron.counts(expected[name])), name


class _Piece(nn.Module):
    """Neurons over time, quantised convolutions, the padded-border norm and spike attention."""

    def __init__(self, config) -> None:
        super().__init__()
        self.sepconv, self.neuron = SepConv(config, 8), make_neuron(config)
        self.repconv, self.counts = RepConv(config, 8), make_neuron(config)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        spikes = self.counts(self.repconv(self.neuron(x + self.sepconv(x))))
        heads = to_heads(spikes, 2)
        return spike_attention(heads, heads, heads, 1 / 16)


@pytest.mark.skipif(not COMPILES, reason="g++ or Python.h is missing")
def test_generated_code_computes_the_same_gradients_and_counts(make_config):
    torch.manual_seed(0)
    eager = _Piece(make_config(time_steps=2))
    compiled = copy.deepcopy(eager)
    run = torch.compile(compiled, fullgraph=True)
    for _ in range(2):
        x = torch.randn(4, 8, 4, 4)
        expected, got = eager(x), run(x)
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)
        expected.square().mean().backward()
        got.square().mean().backward()
    for (name, p), q in zip(eager.named_parameters(), compiled.parameters(), strict=True):
        torch.testing.assert_close(q.grad, p.grad, rtol=1e-3, atol=1e-5, msg=name)
    eager.eval()
    compiled.eval()
    neurons = spiking_neurons(eager)
    x = torch.randn(4, 8, 4, 4)
    with torch.no_grad(), tap(eager, *neurons) as expected:
        eager(x)
    with torch.no_grad(), tap(compiled, *neurons) as outputs:
        torch.compile(compiled, fullgraph=True)(x)
    assert outputs.keys() == neurons.keys()
    for name, neuron in neurons.items():
        assert torch.equal(neuron.counts(outputs[name]), neuron.counts(expected[name])), name
        assert expected[name].sum() > 0
