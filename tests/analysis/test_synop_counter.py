"""Total synaptic operations against an independent tool, SpikingJelly's SynOpCounter."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from qsdformer.analysis.ledger import make_ledger
from qsdformer.analysis.measure import measure
from qsdformer.graph.spikes import trace_quantised
from qsdformer.models.metaspikeformer import MetaSpikeFormer
from qsdformer.runtimes import binary

op_counter = pytest.importorskip(
    "spikingjelly.activation_based.op_counter",
    reason="spikingjelly is not installed: pip install --no-deps spikingjelly==2.0.0 loguru",
)


@pytest.mark.parametrize(
    "fields",
    [{}, {"fully_spiking": True}, {"neuron": "lif", "time_steps": 4, "threshold": 0.3}],
    ids=["published order", "fully spiking", "LIF"],
)
def test_total_synaptic_operations_equal_spikingjellys_count(
    fields: dict[str, Any],
    make_model: Callable[..., MetaSpikeFormer],
    settle: Callable[..., MetaSpikeFormer],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = settle(make_model(**fields))
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(6))
    measured = measure(model, [(images, torch.zeros(2, dtype=torch.long))])
    ledger = make_ledger("m", model, measured)
    # Binary execution's own counting is a convolution, which the counter would count too.
    monkeypatch.setattr(binary, "reached_weights", lambda spikes, layer: 0)
    traced = trace_quantised(model, images.shape)  # without values, which the counter reads
    counter = op_counter.SynOpCounter()
    with op_counter.DispatchCounterMode([counter]):
        binary.run_binary_of(traced, images)
    ours = sum(row.total or 0 for row in ledger.rows if row.kind in ("ac", "attention"))
    assert counter.get_total() == ours
    assert ours > 10_000
