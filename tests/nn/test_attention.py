"""Q-SDSA and the softmax attention of the counterpart ANN."""

from __future__ import annotations

import math

import pytest
import torch

from qsdformer.nn.attention import (
    Attention,
    LayerScale,
    TransformerBlock,
    from_heads,
    softmax_attention,
    spike_attention,
    to_heads,
)
from qsdformer.nn.taps import tap


@pytest.mark.parametrize("levels", [1, 2, 4, 8])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_spike_attention_equals_integer_arithmetic_exactly(levels, seed):
    torch.manual_seed(seed)
    q, k, v = torch.randint(0, levels + 1, (3, 2, 4, 16, 5))
    integers = torch.einsum("bhnd,bhmd,bhme->bhne", q, k, v)
    expected = integers.float() / levels**3 * 0.0625
    got = spike_attention(q / levels, k / levels, v / levels, 0.0625)
    assert torch.equal(got, expected)


def test_softmax_attention_equals_its_formula():
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 2, 4, 16, 5)
    expected = ((q @ k.transpose(-2, -1)) / math.sqrt(5)).softmax(-1) @ v
    torch.testing.assert_close(softmax_attention(q, k, v), expected)


def test_heads_split_channels_in_order_and_tokens_row_by_row():
    x = torch.arange(2 * 6 * 2 * 3).view(2, 6, 2, 3)
    heads = to_heads(x, 3)
    assert heads.shape == (2, 3, 6, 2)
    # Sample 1, head 2, token (row 1, column 0), channel 1 of the head.
    assert heads[1, 2, 3, 1] == x[1, 5, 1, 0]
    assert torch.equal(from_heads(heads, 2, 3), x)


@pytest.mark.parametrize(("scale", "factor"), [(None, 1 / 12), (0.25, 0.25)])
def test_attention_is_divided_by_the_tokens_unless_a_scale_is_given(make_config, scale, factor):
    torch.manual_seed(0)
    block = Attention(make_config(attention_scale=scale, attention_norm=False), 8)
    with (
        tap(block, "[qkv]_neuron") as acts,
        tap(block, "attention_neuron", inputs=True) as attended,
    ):
        block(torch.rand(2, 8, 3, 4))
    q, k, v = (to_heads(acts[f"{name}_neuron"], 2) for name in "qkv")
    assert q.sum() > 0
    expected = from_heads((q @ (k.transpose(-2, -1) @ v)) * factor, 3, 4)
    torch.testing.assert_close(attended["attention_neuron"], expected)


def test_the_neuron_after_attention_has_its_gain(make_config):
    torch.manual_seed(0)
    block = Attention(make_config(attention_gain=2.0), 8)
    with tap(block, "attention_neuron") as acts:
        block(torch.rand(4, 8, 3, 4))
    values = set(acts["attention_neuron"].unique().tolist())
    assert values <= {0.0, 0.5, 1.0, 1.5, 2.0}
    assert max(values) > 1
    assert block.q_neuron.gain == 1.0


def test_student_and_teacher_have_the_same_names_to_tap(make_config):
    patterns = ("q_neuron", "k_neuron", "v_neuron", "attention_neuron")
    x = torch.rand(2, 8, 3, 4)
    for config in (make_config(), make_config(neuron="relu")):
        block = Attention(config, 8)
        with tap(block, *patterns) as acts:
            block(x)
        assert {name: act.shape for name, act in acts.items()} == dict.fromkeys(patterns, x.shape)


def test_layer_scales_start_as_configured_and_scale_each_channel(make_config):
    block = TransformerBlock(make_config(layer_scale=0.1), 8)
    assert torch.equal(block.scale1.scale, torch.full((8,), 0.1))
    scale = LayerScale(2, 1.0)
    with torch.no_grad():
        scale.scale.copy_(torch.tensor([2.0, 3.0]))
    assert scale(torch.ones(1, 2, 1, 1)).flatten().tolist() == [2.0, 3.0]


def test_a_dropped_block_passes_its_input_on(make_config):
    # At a rate near 1 both branches are dropped, for all samples, almost surely.
    torch.manual_seed(0)
    block = TransformerBlock(make_config(), 8, drop_path_rate=1 - 1e-9)
    x = torch.randn(4, 8, 3, 3)
    assert torch.equal(block(x), x)
    assert not torch.equal(block.eval()(x), x)
