"""Checkpoints published with the paper give the published network."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file

from qsdformer.errors import UserError
from qsdformer.models.published import import_reference
from qsdformer.nn.neurons import spike_count
from qsdformer.nn.taps import spiking_neurons, tap

# Published name of each recorded neuron to ours, and of each recorded membrane potential.
NEURONS = {
    "block3.0.attn.q_lif": "stages.3.blocks.0.attention.q_neuron",
    "block3.0.attn.k_lif": "stages.3.blocks.0.attention.k_neuron",
    "block3.0.attn.v_lif": "stages.3.blocks.0.attention.v_neuron",
    "block3.0.attn.attn_lif": "stages.3.blocks.0.attention.attention_neuron",
    "lif": "neuron",
}
MEMBRANES = {
    "downsample1_1": "stages.0.downsample",
    "ConvBlock1_1.0": "stages.0.blocks.0",
    "ConvBlock1_2.0": "stages.1.blocks.0",
    "ConvBlock2_1.0": "stages.2.blocks.0",
    "ConvBlock2_2.0": "stages.2.blocks.1",
    "downsample3": "stages.3.downsample",
    "block3.0": "stages.3.blocks.0",
    "downsample4": "stages.4.downsample",
    "block4.1": "stages.4.blocks.1",
}


@pytest.fixture(scope="module")
def published(fixtures):
    """What the published code computed: input, logits and taps."""
    return load_file(fixtures / "reference_mini.safetensors")


@pytest.fixture(scope="module")
def model(fixtures):
    return import_reference(fixtures / "reference_mini.pth", heads=8)


@pytest.fixture(scope="module")
def ours(model, published):
    """Our logits and taps for the published input."""
    with tap(model, *NEURONS.values(), *MEMBRANES.values()) as acts, torch.no_grad():
        logits = model(published["input"])
    return {**acts, "logits": logits}


@pytest.fixture(scope="module")
def content(fixtures):
    return torch.load(fixtures / "reference_mini.pth", weights_only=True)


@pytest.fixture
def changed(content, tmp_path):
    """Saves the published file with some keys replaced, or removed for None; gives its path."""

    def save(**changes):
        state = {**content["model"], **changes}
        path = tmp_path / "changed.pth"
        torch.save({"model": {k: v for k, v in state.items() if v is not None}}, path)
        return path

    return save


def test_all_recorded_taps_are_compared(published):
    names = {key.removeprefix("tap.") for key in published if key.startswith("tap.")}
    assert names == set(NEURONS) | set(MEMBRANES)


@pytest.mark.parametrize(("theirs", "name"), NEURONS.items())
def test_spike_counts_equal_the_published_ones(published, ours, model, theirs, name):
    expected = published[f"tap.{theirs}"]
    neuron = spiking_neurons(model)[name]
    got = ours[name].reshape(expected.shape)
    assert torch.equal(neuron.counts(got), neuron.counts(expected))
    assert torch.equal(got, expected)
    assert len(expected.unique()) == 5


@pytest.mark.parametrize(("theirs", "name"), MEMBRANES.items())
def test_membrane_potentials_give_the_published_counts(published, ours, theirs, name):
    expected = published[f"tap.{theirs}"]
    # Float sums in another order.
    torch.testing.assert_close(ours[name], expected, rtol=0, atol=1e-4)
    assert torch.equal(spike_count(ours[name], 4), spike_count(expected, 4))


def test_logits_agree(published, ours):
    torch.testing.assert_close(ours["logits"], published["logits"], rtol=0, atol=1e-4)


def test_everything_but_the_heads_is_read_from_the_tensors(model):
    config = model.config
    assert config.dims == (16, 32, 64, 80)
    assert (config.depth, config.heads, config.num_classes, config.in_channels) == (8, 8, 10, 3)
    assert (config.weight_bits, config.stem_bits, config.head_bits) == (4, 4, 4)
    assert not model.training


def test_heads_matter(fixtures, published, ours):
    other = import_reference(fixtures / "reference_mini.pth", heads=4)
    with torch.no_grad():
        assert not torch.allclose(other(published["input"]), ours["logits"], atol=1e-3)


@pytest.mark.parametrize("heads", [3, 0])
def test_heads_that_cannot_be_are_refused(fixtures, heads):
    with pytest.raises(UserError, match=f"heads={heads}"):
        import_reference(fixtures / "reference_mini.pth", heads=heads)


def test_keys_of_a_data_parallel_model_are_understood(content, tmp_path, model):
    path = tmp_path / "parallel.pth"
    torch.save({"model": {f"module.{k}": v for k, v in content["model"].items()}}, path)
    imported = import_reference(path).state_dict()
    for key, value in model.state_dict().items():
        assert torch.equal(imported[key], value), key


@pytest.mark.parametrize(
    "key",
    [
        "downsample1_1.encode_conv.weight",
        "ConvBlock2_2.0.Conv.dwconv.alpha",
        "block3.5.attn.proj_conv.0.body.1.bn.running_var",
        "block4.1.layer_scale2",
        "head.bias",
    ],
)
def test_a_missing_key_is_named(changed, key):
    with pytest.raises(UserError, match=f"missing key '{key}'"):
        import_reference(changed(**{key: None}))


def test_an_unmatched_key_is_named(changed):
    with pytest.raises(UserError, match=r"1 unmatched keys: block3\.0\.attn\.surprise"):
        import_reference(changed(**{"block3.0.attn.surprise": torch.zeros(1)}))


@pytest.mark.parametrize(
    ("key", "shape"),
    [
        ("block3.0.mlp.fc1_bn.bias", (7,)),
        ("head.weight", (10, 80, 1)),
        ("downsample2.encode_conv.weight", ()),
        ("downsample3.encode_conv.alpha", (1,)),
        ("block4.0.attn.q_conv.0.body.2.0.weight", (80, 1, 5, 5)),
    ],
)
def test_a_misshaped_key_is_named_with_its_shape(changed, key, shape):
    with pytest.raises(UserError) as caught:
        import_reference(changed(**{key: torch.ones(shape)}))
    assert repr(key) in str(caught.value)
    assert str(shape) in str(caught.value)


def test_a_key_that_holds_no_tensor_is_named(changed):
    with pytest.raises(UserError, match=r"key 'head.bias' is not a tensor"):
        import_reference(changed(**{"head.bias": 1.0}))


def test_step_sizes_have_to_be_positive(changed, content):
    key = "head.alpha"
    with pytest.raises(UserError, match=f"key '{key}' is not positive"):
        import_reference(changed(**{key: -content["model"][key]}))


def test_codes_equal_those_of_the_published_steps(model, content):
    state = content["model"]
    step = state["downsample2.encode_conv.alpha"].view(-1, 1, 1, 1)
    expected = (state["downsample2.encode_conv.weight"] / step).clamp(-8, 7).round()
    assert torch.equal(model.stages[2].downsample.conv.codes(), expected.to(torch.int8))


def test_a_weight_between_two_codes_keeps_its_published_code(changed, content):
    key = "downsample2.encode_conv"
    step = content["model"][f"{key}.alpha"].view(-1, 1, 1, 1)
    odd = torch.randint(-7, 7, (32, 16, 3, 3), generator=torch.Generator().manual_seed(0)) + 0.5
    weight = odd * step
    expected = (weight / step).clamp(-8, 7).round().to(torch.int8)
    model = import_reference(changed(**{f"{key}.weight": weight}))
    assert torch.equal(model.stages[2].downsample.conv.codes(), expected)


class _Harmful:
    def __reduce__(self):
        return (print, ("unpickled",))


def test_arbitrary_objects_are_refused_without_running_them(tmp_path, capsys):
    path = tmp_path / "harmful.pth"
    torch.save({"model": {"x": _Harmful()}}, path)
    with pytest.raises(UserError, match=r"harmful\.pth"):
        import_reference(path)
    assert "unpickled" not in capsys.readouterr().out


@pytest.mark.parametrize("value", [{"state": {}}, [1, 2], {"model": 3}])
def test_a_file_of_another_kind_is_refused(tmp_path, value):
    path = tmp_path / "other.pth"
    torch.save(value, path)
    with pytest.raises(UserError, match='no "model" state dict'):
        import_reference(path)


def test_a_missing_and_a_truncated_file_are_named(fixtures, tmp_path):
    with pytest.raises(UserError, match=r"nowhere\.pth"):
        import_reference(tmp_path / "nowhere.pth")
    path = tmp_path / "short.pth"
    path.write_bytes((fixtures / "reference_mini.pth").read_bytes()[:100_000])
    with pytest.raises(UserError, match=r"short\.pth"):
        import_reference(path)
